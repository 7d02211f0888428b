"""Drives the engine's schedule over a simulated job, as `engine.run` drives it over a real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from videollava_jax.engine.events import (
    Answer,
    Arrived,
    Begin,
    Decode,
    Exhausted,
    Fail,
    Finish,
    Identified,
    Identify,
    MakeGrid,
    Prefill,
    ReadMedia,
    RowsEnded,
    TakeRequest,
    Wait,
)
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.sizes import Demand, GridShape
from videollava_jax.planning.simulation.clock import CALL_SECONDS, Host, Phases, SimulatedDevice
from videollava_jax.planning.simulation.programs import ProgramTimes
from videollava_jax.planning.simulation.workload import SimulatedQuestion


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulated run has come to: the figures from which a report is made.

    Attributes:
      answers, videos: answered questions, and the videos that they are about.
      seconds: from the start to the last answer.
      phases: of the device.
      idle: seconds in which the device had nothing to do between its first call and its last.
      waiting_for_media: of these, seconds in which the schedule waited for media.
      host_busy: seconds of host cores for reading media.
      grids: that were made, in order.
      waits: of each answer, the seconds since its question had come.
      failed: questions that were refused.
      schedule_seconds: that the schedule itself took on this machine's processor.
    """

    answers: int
    videos: int
    seconds: float
    phases: Phases
    idle: float
    waiting_for_media: float
    host_busy: float
    grids: tuple[GridShape, ...]
    waits: tuple[float, ...]
    failed: int
    schedule_seconds: float


def simulate(
    questions: Sequence[SimulatedQuestion],
    limits: Limits,
    times: ProgramTimes,
    choose_shape: Callable[[Demand], GridShape] | None = None,
    *,
    readers: int,
    call_seconds: float = CALL_SECONDS,
) -> Outcome:
    """Answers questions on a simulated clock.

    Args:
      questions: in order; to a live schedule, whose `limits` have a grid, they come at their times.
      limits: of the schedule.
      times: of the programs.
      choose_shape: returns the grid for a demand; a live schedule needs none.
      readers: host threads that read media, each on a core.
      call_seconds: of the host, for a call of decoding.
    """
    schedule, host, device = (
        Schedule(limits, choose_shape),
        Host(readers),
        SimulatedDevice(times, fixed=limits.grid is not None),
    )
    incoming, grids = iter(questions), []
    answered: list[SimulatedQuestion] = []
    waits: list[float] = []
    now, media_wait, failed, begun = 0.0, 0.0, 0, time.process_time()
    if limits.grid is not None:
        grids.append(limits.grid)
        device.make_grid(limits.grid)
        for question in questions:
            host.put(question.at, Arrived(question))
        host.put(max(question.at for question in questions), Exhausted())

    while True:
        for event in host.finished(now):
            schedule.take(event)
        match schedule.next():
            case Finish():
                break
            case TakeRequest():
                arrived = next(incoming, None)
                schedule.take(Exhausted() if arrived is None else Arrived(arrived))
            case Identify(asked):
                schedule.take(Identified(asked, cast(SimulatedQuestion, asked).video))
            case ReadMedia(key, asked):
                host.read(now, key, cast(SimulatedQuestion, asked).video)
            case Wait():
                until = host.next_at
                assert until is not None, "the schedule waits for nothing"
                media_wait += max(0.0, until - max(now, device.free_at))
                now = max(now, until)
            case MakeGrid(shape):
                grids.append(shape)
                device.make_grid(shape)
            case Prefill():
                device.prefill(now)
            case Begin(slot, begins):
                device.begin(now, slot, begins)
            case Decode(steps, enough, rows):
                ended = device.decode(now, steps, enough, rows)
                now = device.free_at + call_seconds
                schedule.take(RowsEnded(ended))
            case Answer(asked):
                own = cast(SimulatedQuestion, asked)
                answered.append(own)
                waits.append(now - own.at)
            case Fail():
                failed += 1
    return Outcome(
        answers=len(answered),
        videos=len({question.video for question in answered}),
        seconds=now,
        phases=device.phases,
        idle=device.idle,
        waiting_for_media=media_wait,
        host_busy=host.busy,
        grids=tuple(grids),
        waits=tuple(waits),
        failed=failed,
        schedule_seconds=time.process_time() - begun,
    )
