"""What keeps the schedule from its programs' best: shares with lengths alike, and with as many questions a video.

Simulated by arithmetic, without JAX. Prints two tables for docs/planning.md; the second has the shares of the limit by
arithmetic that full grids of the engine's choice reach.

python -m benchmarks.schedule_shares
"""

from __future__ import annotations

import dataclasses

from videollava_jax.config import ModelConfig
from videollava_jax.costs.work import Job
from videollava_jax.engine.sizes import GridShape
from videollava_jax.planning.devices import device_of
from videollava_jax.planning.plan import PlanRequest, engine_shape, make_plan, throughput
from videollava_jax.planning.simulation.programs import ProgramTimes
from videollava_jax.planning.simulation.report import SimulationRequest, simulated
from videollava_jax.planning.simulation.workload import shape_of

CHIPS: tuple[tuple[str, tuple[int, int] | None], ...] = (("h200", None), ("v5e:2x4", (1, 8)), ("v5e:2x4", (2, 4)))
JOBS = {
    "25 questions": Job(questions=25),
    "10 questions": Job(questions=10),
    "one question": Job(),
    "captions": Job(answer_tokens=256),
}
READERS = 32
"""As many as keep up with any of these chips."""


def _name(chips: tuple[str, tuple[int, int] | None]) -> str:
    topology, mesh = chips
    return topology if mesh is None else f"{topology}, {mesh[0]} × {mesh[1]}"


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


def share_of_limit(topology: str, mesh: tuple[int, int] | None, job: Job) -> tuple[float, GridShape]:
    """Returns the share of the limit that a grid reaches if it is always full, and the grid."""
    plan = make_plan(PlanRequest(topology=topology, mesh=mesh, config=ModelConfig(), job=job, arithmetic=True))
    assert plan.limit is not None
    data, tensor = mesh or (1, 1)
    chip = device_of(plan.chip)
    shape = engine_shape(plan.request, chip, data, tensor)
    times = ProgramTimes(config=ModelConfig(), job=job, chip=chip, tensor=tensor, storage=plan.request.storage)
    found = throughput(job, shape, times.on_full_grid(shape))
    return found.videos_per_second / plan.limit.videos_per_second, shape


def main() -> None:
    """Prints the tables."""
    print("| chips, job | as drawn | lengths alike | numbers alike | both |")
    print("| --- | --- | --- | --- | --- |")
    for name in ("msvd", "activitynet"):
        for topology, mesh in CHIPS:
            found = [
                share(topology, mesh, name, lengths=lengths, numbers=numbers)
                for lengths, numbers in ((False, False), (True, False), (False, True), (True, True))
            ]
            print(f"| {_name((topology, mesh))}, {name} | " + " | ".join(f"{100 * each:.0f}%" for each in found) + " |")
    print("\n| job | " + " | ".join(map(_name, CHIPS)) + " |")
    print("| --- |" + " --- |" * len(CHIPS))
    for name, job in JOBS.items():
        cells = []
        for each in CHIPS:
            part, shape = share_of_limit(*each, job)
            cells.append(f"{100 * part:.0f}% ({shape.prefixes} × {shape.rows})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
