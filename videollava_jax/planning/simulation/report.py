"""A plan's job on a simulated clock: its share of the best that its programs could reach, and what limits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from videollava_jax.costs.work import Job
from videollava_jax.engine.packing import packed_length
from videollava_jax.engine.schedule import Limits
from videollava_jax.engine.sizes import LIVE_ROWS, MOST_AHEAD, PREFIX_BUCKET, CacheMemory, Demand, GridShape
from videollava_jax.planning.plan import Plan, Throughput, chosen_shape, demand_of, free_memory, rows_of, throughput
from videollava_jax.planning.simulation import workload
from videollava_jax.planning.simulation.programs import ProgramTimes
from videollava_jax.planning.simulation.run import Outcome, simulate
from videollava_jax.planning.simulation.workload import Shape, SimulatedQuestion

Limit = Literal["device", "host decoding", "cache"]
WINDOW = 1024
"""As `EngineOptions.window`."""
SESSION_ROWS, SESSION_QUESTION, SESSION_ANSWER = 8, 128, 512
"""As `Engine.session`."""
PROMPT_TOKENS = 5
"""Of the template before the video."""
NOTICEABLE = 0.05
"""A share that is worth a word."""


@dataclass(frozen=True, kw_only=True)
class SimulationRequest:
    """What to simulate.

    Attributes:
      shape: of a drawn job, or of the job in a file: what reading its videos costs.
      file: lines of a job; None to draw one.
      rate: requests a second of a server; None for a job.
      readers: host cores that read media.
    """

    shape: Shape
    file: Path | None = None
    rate: float | None = None
    readers: int = 4


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A simulated job.

    Attributes:
      request: what was simulated.
      outcome: of the run.
      best: the throughput of these programs if every call is full and none waits, for the job's mean lengths.
      best_with_more: the same with twice the memory for caches.
      media_seconds: of a host core for a video, on average.
    """

    request: SimulationRequest
    outcome: Outcome
    best: Throughput
    best_with_more: Throughput
    media_seconds: float

    @property
    def answers_per_second(self) -> float:
        """Of the whole run, its beginning and its end included."""
        return self.outcome.answers / self.outcome.seconds

    @property
    def share(self) -> float:
        """The share of these programs' best."""
        return self.answers_per_second / self.best.answers_per_second

    @property
    def busy(self) -> float:
        """The share of the time in which the device works."""
        return sum(self.outcome.phases.seconds.values()) / self.outcome.seconds

    @property
    def occupancy(self) -> float:
        """The share of the rows of a step of decoding that write a token."""
        return self.outcome.phases.row_steps / max(1, self.outcome.phases.grid_rows)

    @property
    def cores(self) -> float:
        """Host cores that read media as fast as these programs' best needs them."""
        return self.media_seconds * self.best.videos_per_second

    @property
    def limit(self) -> Limit:
        """What limits the throughput."""
        if self.outcome.waiting_for_media > NOTICEABLE * self.outcome.seconds:
            return "host decoding"
        more = self.best_with_more.answers_per_second / self.best.answers_per_second
        return "cache" if more > 1 + NOTICEABLE else "device"


def simulated(plan: Plan, request: SimulationRequest) -> Simulation:
    """Simulates a job on the chips and by the programs of a plan; without compiled programs, by arithmetic.

    Raises:
      ValueError: the weights and one video do not fit, or a file has no questions.
    """
    asked = plan.request
    if plan.limit is None:
        raise ValueError(plan.why_no_limit)
    tensor = plan.limit.tensor if plan.mesh is None else plan.mesh[1]
    data = plan.chips // tensor
    times = ProgramTimes(config=asked.config, job=asked.job, chip=plan.chip, tensor=tensor, storage=asked.storage)
    if plan.batch is not None and plan.batch.throughput is not None:
        compiled = {name: program.seconds_of_slot for name, program in plan.batch.programs.items()}
        times = times.as_compiled(compiled, plan.batch.shape, _begun(plan.batch.shape, asked.job))
    prefix = asked.job.prefix_tokens(asked.config) + PROMPT_TOKENS
    if request.file is None:
        questions = workload.drawn(request.shape, asked.job, prefix, rate=request.rate)
    else:
        questions = workload.read(request.file, asked.job, prefix, request.shape.media_seconds)
    videos = {question.video for question in questions}
    if request.file is not None:
        asked = dataclasses.replace(asked, job=_mean(asked.job, questions, len(videos)))

    def shape_of(demand: Demand, memory: CacheMemory) -> GridShape:
        return chosen_shape(asked, demand, data, rows_of(plan.chip, data), memory)

    memory = free_memory(asked, plan.chip, data, tensor)
    twice = dataclasses.replace(memory, size=2 * memory.size)
    limits = Limits(
        shards=data,
        window=WINDOW,
        ahead=min(2 * rows_of(plan.chip, data), MOST_AHEAD),
        positions=asked.config.text_config.max_positions_in_parts,
        grid=None if request.rate is None else shape_of(_session(plan, prefix, data), memory.share),
    )

    def job_shape(demand: Demand) -> GridShape:
        return shape_of(demand, memory.of_grid)

    outcome = simulate(questions, limits, times, job_shape, readers=request.readers)
    best, more = (_best(asked.job, shape_of(demand_of(asked), size.of_grid), times) for size in (memory, twice))
    return Simulation(
        request=request,
        outcome=outcome,
        best=best,
        best_with_more=more,
        media_seconds=sum(video.seconds for video in videos) / len(videos),
    )


def _best(job: Job, shape: GridShape, times: ProgramTimes) -> Throughput:
    return throughput(job, shape, dataclasses.replace(times, job=job).on_full_grid(shape))


def _begun(shape: GridShape, job: Job) -> int:
    """Returns the tokens that begin in a slot."""
    return packed_length(shape.rows * job.question_tokens)


def _session(plan: Plan, prefix: int, data: int) -> Demand:
    """Returns the demand for which a session makes its grid."""
    enough = max(1, max(LIVE_ROWS[plan.chip.kind], data) // SESSION_ROWS)
    return Demand(prefix + PREFIX_BUCKET, [SESSION_ROWS] * enough, SESSION_QUESTION, SESSION_ANSWER)


def _mean(job: Job, questions: Sequence[SimulatedQuestion], videos: int) -> Job:
    """Returns the job whose questions have the mean lengths of these."""
    count = len(questions)
    return dataclasses.replace(
        job,
        questions=max(1, round(count / videos)),
        question_tokens=max(1, round(sum(question.tokens for question in questions) / count)),
        answer_tokens=max(1, round(sum(question.written for question in questions) / count)),
    )


# ── text and JSON ──


def record(simulation: Simulation) -> dict[str, Any]:
    """Returns a simulation for JSON; times are in seconds."""
    outcome, request = simulation.outcome, simulation.request
    return {
        "job": request.shape.name if request.file is None else str(request.file),
        "rate": request.rate,
        "readers": request.readers,
        "videos": outcome.videos,
        "answers": outcome.answers,
        "refused": outcome.failed,
        "seconds": outcome.seconds,
        "answers_per_second": simulation.answers_per_second,
        "best": dataclasses.asdict(simulation.best),
        "share": simulation.share,
        "busy": simulation.busy,
        "occupancy": simulation.occupancy,
        "device": dict(outcome.phases.seconds),
        "calls": dict(outcome.phases.calls),
        "waiting_for_media": outcome.waiting_for_media,
        "waits": {name: quantile(outcome.waits, at) for name, at in WAITS.items()},
        "media_seconds": simulation.media_seconds,
        "cores_at_best": simulation.cores,
        "grids": [dataclasses.asdict(grid) for grid in outcome.grids],
        "limited_by": simulation.limit,
        "schedule_seconds": outcome.schedule_seconds,
    }


WAITS = {"half": 0.5, "95%": 0.95, "all": 1.0}
"""Quantiles of the seconds from a question to its answer."""


def quantile(values: Sequence[float], at: float) -> float:
    """Returns the value below or at which a share of the values lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))] if ordered else 0.0


def text(simulation: Simulation) -> str:
    """Returns a simulation as a few lines."""
    outcome, request = simulation.outcome, simulation.request
    name = request.shape.name if request.file is None else str(request.file)
    came = "all there from the start" if request.rate is None else f"{request.rate:g} a second as they come"
    device = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in outcome.phases.seconds.items())
    rows = outcome.phases.begin_rows
    lines = [
        f"simulated: {name}, {outcome.answers} questions about {outcome.videos} videos, {came}; "
        f"{request.readers} host cores read media, {simulation.media_seconds:.2f} s a video",
        "",
        f"answers/s        {simulation.answers_per_second:.1f}, {100 * simulation.share:.0f}% of these programs' best "
        f"({simulation.best.answers_per_second:.1f})",
        f"device           busy {100 * simulation.busy:.0f}% of {outcome.seconds:.2f} s: {device}",
        f"occupancy        {100 * simulation.occupancy:.0f}% of the rows in {outcome.phases.steps} steps write, "
        f"{100 * outcome.phases.begun_rows / max(1, rows):.0f}% of the rows that begin get a question",
        "waits            " + ", ".join(f"{at} {quantile(outcome.waits, q):.2f} s" for at, q in WAITS.items()),
        f"host             waited for media {outcome.waiting_for_media:.2f} s; the best needs "
        f"{simulation.cores:.1f} cores",
        f"limited by       {simulation.limit}",
    ]
    for grid in outcome.grids[:3]:
        lines.append(
            f"grid             {grid.prefixes} prefixes of {grid.prefix} positions with {grid.rows} rows of "
            f"{grid.question} + {grid.answer} each: {grid.batch} rows"
        )
    if outcome.failed:
        lines.append(f"refused          {outcome.failed} questions")
    return "\n".join(lines)
