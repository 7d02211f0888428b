"""What keeps the schedule from its programs' best: shares with lengths alike, and with as many questions a video.

Simulated by arithmetic, without JAX. Prints a table for docs/planning.md.

python -m benchmarks.schedule_shares
"""

from __future__ import annotations

import dataclasses

from videollava_jax.config import ModelConfig
from videollava_jax.costs.work import Job
from videollava_jax.planning.plan import PlanRequest, make_plan
from videollava_jax.planning.simulation.report import SimulationRequest, simulated
from videollava_jax.planning.simulation.workload import shape_of

CHIPS: tuple[tuple[str, tuple[int, int] | None], ...] = (("h200", None), ("v5e:2x4", (1, 8)), ("v5e:2x4", (2, 4)))
READERS = 32
"""As many as keep up with any of these chips."""


def share(topology: str, mesh: tuple[int, int] | None, name: str, *, lengths: bool, numbers: bool) -> float:
    """Returns the share of its programs' best that a job gets.

    Args:
      lengths: all questions have as many tokens, and all answers.
      numbers: all videos have as many questions.
    """
    shape = shape_of(name)
    shape = dataclasses.replace(
        shape, spread=0 if numbers else shape.spread, length_spread=0.0 if lengths else shape.length_spread
    )
    plan = make_plan(
        PlanRequest(
            topology=topology, mesh=mesh, config=ModelConfig(), job=Job(questions=shape.questions), arithmetic=True
        )
    )
    return simulated(plan, SimulationRequest(shape=shape, readers=READERS)).share


def main() -> None:
    """Prints the table."""
    print("| chips, job | as drawn | lengths alike | numbers alike | both |")
    print("| --- | --- | --- | --- | --- |")
    for name in ("msvd", "activitynet"):
        for topology, mesh in CHIPS:
            chips = topology if mesh is None else f"{topology}, {mesh[0]} × {mesh[1]}"
            found = [
                share(topology, mesh, name, lengths=lengths, numbers=numbers)
                for lengths, numbers in ((False, False), (True, False), (False, True), (True, True))
            ]
            print(f"| {chips}, {name} | " + " | ".join(f"{100 * each:.0f}%" for each in found) + " |")


if __name__ == "__main__":
    main()
