"""Plans a job on chips that need not be here: compiles its programs, finds the largest batch and the best throughput.

    job, chips ──▶ mesh ──▶ grid ──▶ encode, prefill, begin, decode compiled ──▶ memory, traffic, seconds ──▶ throughput
                                     the grid grown until decode does not fit ──▶ the largest batch

A plan for GPUs is arithmetic alone where their compiler is not installed. JAX is imported only when something is
compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import Chip, topology
from videollava_jax.costs.work import Job, Limit, Storage, best_possible, parameters, stored_bytes
from videollava_jax.engine.budget import LEAST_SHARE, FreeMemory
from videollava_jax.engine.sizes import ROWS, CacheMemory, Demand, GridShape, choose_shape
from videollava_jax.planning.devices import device_of, devices_of, has_compiler, set_environment
from videollava_jax.planning.simulation.programs import ProgramTimes

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from videollava_jax.planning.engine_programs import Program, Setting

PROGRAMS = ("encode", "prefill", "begin", "decode")
MANY = 1 << 16
"""Videos in a planned job: more than any grid holds."""
TRIES = 4
"""How many grids are compiled at most to find the largest batch."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The job to plan, and the chips.

    Attributes:
      topology: as `costs.chips.topology` parses it.
      config: the model.
      job: the questions about each video.
      storage: dtypes of weights and caches.
      mesh: sizes of the axes data and tensor; None for the fewest chips per copy that leave room for caches.
      grid: prefixes, and rows of each. None plans both the grid that the engine chooses and the largest that fits.
      programs: which to compile; the throughput needs all four.
      arithmetic: compile nothing. So it is for GPUs without their compiler, too.
    """

    topology: str
    config: ModelConfig
    job: Job
    storage: Storage = field(default_factory=Storage)
    mesh: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    programs: tuple[str, ...] = PROGRAMS
    arithmetic: bool = False


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The throughput of compiled programs if each takes its roofline's time.

    Attributes:
      videos_per_second, answers_per_second, tokens_per_second: of all chips together; only tokens of answers count.
      phases: seconds of each phase while one grid is filled and answered.
    """

    videos_per_second: float
    answers_per_second: float
    tokens_per_second: float
    phases: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A grid and its compiled programs.

    Attributes:
      shape: the grid.
      programs: compiled, by name.
      too_large: the compiler's message for each program that does not fit, by name.
      throughput: of the job; None if a program is missing.
      read_once: bytes that a step of decoding must read on a device.
    """

    shape: GridShape
    programs: Mapping[str, Program]
    too_large: Mapping[str, str]
    throughput: Throughput | None
    read_once: int

    def fits(self, name: str) -> bool:
        """Returns whether a program, with everything else that is held then, fits a device."""
        program = self.programs.get(name)
        return program is not None and program.total <= program.chip.hbm_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to a `PlanRequest`.

    Attributes:
      request: what was asked for.
      chip, chips: of the topology; where it was compiled for, devices and their number.
      limit: the throughput that no engine exceeds, by arithmetic; None if not even one video fits.
      why_no_limit: the reason if `limit` is None.
      mesh: sizes of the axes data and tensor; None if nothing was compiled.
      batch: the grid that was given or that the engine would choose; None if nothing was compiled.
      largest: the largest grid with which decode fits; None if nothing was compiled or the grid was given.
      meshes: the throughput of each mesh by arithmetic, the best first; empty if one was given.
    """

    request: PlanRequest
    chip: Chip
    chips: int
    limit: Limit | None
    why_no_limit: str = ""
    mesh: tuple[int, int] | None = None
    batch: BatchPlan | None = None
    largest: BatchPlan | None = None
    meshes: Mapping[tuple[int, int], Throughput] = field(default_factory=dict)


Progress = Callable[[Iterable[Any]], Iterable[Any]]


def make_plan(request: PlanRequest, progress: Progress = iter) -> Plan:
    """Plans a job: compiles in this process, which may not have used JAX before, for one topology only.

    For GPUs whose compiler is not installed the plan is arithmetic alone.

    Args:
      request: the job and the chips.
      progress: wraps the names of the programs while they are compiled, like `tqdm`.

    Raises:
      ValueError: the chips are unknown, their compiler is missing, or the mesh, the grid or the weights do not fit.
    """
    chip, chips = topology(request.topology)
    if request.arithmetic or (chip.kind == "gpu" and not has_compiler(chip)):
        tensor = None if request.mesh is None else _checked_mesh(request.mesh, chips)[1]
        limit, why = _limit(request, chip, chips, tensor)
        return Plan(
            request=request,
            chip=chip,
            chips=chips,
            limit=limit,
            why_no_limit=why,
            meshes={} if request.mesh else compared_meshes(request, device_of(chip), chips * chip.devices),
        )

    set_environment(chip)
    from videollava_jax.model.sharding import make_mesh

    devices, chip = devices_of(request.topology, chip, chips), device_of(chip)
    data, tensor = (
        _checked_mesh(request.mesh, len(devices)) if request.mesh else choose_mesh(request, chip, len(devices))
    )
    mesh = make_mesh(data, tensor, devices=devices)
    shape = engine_shape(request, chip, data, tensor) if request.grid is None else _given_shape(request, data)
    batch = _batch_plan(request, chip, mesh, shape, progress(request.programs), {})
    limit, why = _limit(request, chip, len(devices), tensor)
    return Plan(
        request=request,
        chip=chip,
        chips=data * tensor,
        limit=limit,
        why_no_limit=why,
        mesh=(data, tensor),
        batch=batch,
        largest=_largest(request, chip, mesh, batch) if request.grid is None and batch.throughput else None,
        meshes={} if request.mesh else compared_meshes(request, chip, len(devices)),
    )


def _limit(request: PlanRequest, chip: Chip, chips: int, tensor: int | None) -> tuple[Limit | None, str]:
    try:
        return best_possible(request.job, request.config, chip, chips, storage=request.storage, tensor=tensor), ""
    except ValueError as error:
        return None, str(error)


# ── mesh and grid ───────────────────────────────────────────────────────────────────────────────────────────


def _checked_mesh(mesh: tuple[int, int], devices: int) -> tuple[int, int]:
    data, tensor = mesh
    if data * tensor != devices:
        raise ValueError(f"mesh {data}x{tensor}: expected data × tensor to be the {devices} devices that there are")
    return mesh


def choose_mesh(request: PlanRequest, chip: Chip, devices: int) -> tuple[int, int]:
    """Chooses a mesh: the fewest devices per copy (1, 2, 4 or 8) on which caches get as much memory as the weights.

    Then a step of decoding reads about as many bytes of caches as of weights. If none suffices, it takes the most
    devices.

    Returns:
      The sizes of the axes data and tensor.
    """
    heads = request.config.text_config.num_key_value_heads
    candidates = [t for t in (1, 2, 4, 8) if devices % t == 0 and heads % t == 0]
    for tensor in candidates:
        weights = _weights_bytes(request, tensor)
        if LEAST_SHARE * (chip.hbm_bytes - weights) >= weights:
            return devices // tensor, tensor
    return devices // candidates[-1], candidates[-1]


def compared_meshes(request: PlanRequest, chip: Chip, devices: int) -> dict[tuple[int, int], Throughput]:
    """Returns the throughput of each mesh on which weights and one video fit, the best first.

    It is that of the grid that the engine chooses there, with every program's least time by arithmetic: operations,
    bytes and all-reduces for the tokens that it computes, padding included. Nothing is compiled.

    Args:
      chip: one device.
      devices: how many.
    """
    heads = request.config.text_config.num_key_value_heads
    found = {}
    for tensor in (t for t in (1, 2, 4, 8) if devices % t == 0 and heads % t == 0):
        data = devices // tensor
        try:
            shape = engine_shape(request, chip, data, tensor)
        except ValueError:
            continue
        times = ProgramTimes(config=request.config, job=request.job, chip=chip, tensor=tensor, storage=request.storage)
        found[data, tensor] = throughput(request.job, shape, times.on_full_grid(shape))
    return dict(sorted(found.items(), key=lambda item: -item[1].videos_per_second))


def _weights_bytes(request: PlanRequest, tensor: int) -> float:
    """Returns the bytes of weights on a device: decoder and head are split, towers and projector are not."""
    counted = parameters(request.config)
    whole = 2 * (counted.image_tower + counted.video_tower + counted.projector)
    return whole + (stored_bytes(request.config, request.storage) - whole) / tensor


def _given_shape(request: PlanRequest, data: int) -> GridShape:
    assert request.grid is not None
    prefixes, rows = request.grid
    if prefixes % data or prefixes < 1 or rows < 1:
        raise ValueError(f"grid {prefixes}x{rows}: expected prefixes × rows, the prefixes a multiple of {data}")
    return chosen_shape(request, demand_of(request, prefixes, rows), data, prefixes * rows, memory=1 << 62)


def engine_shape(request: PlanRequest, chip: Chip, data: int, tensor: int) -> GridShape:
    """Returns the grid that `engine.Engine` would choose for the job."""
    memory = free_memory(request, chip, data, tensor)
    return chosen_shape(request, demand_of(request), data, rows_of(chip, data), memory.of_grid)


def free_memory(request: PlanRequest, chip: Chip, data: int, tensor: int) -> FreeMemory:
    """Returns the memory that the weights leave, on all devices together."""
    return FreeMemory(
        size=max(0, int((chip.hbm_bytes - _weights_bytes(request, tensor)) * data * tensor)),
        devices=data * tensor,
        shards=data,
        config=request.config.text_config,
        dtype=ml_dtypes.bfloat16,
    )


def rows_of(chip: Chip, data: int) -> int:
    """Returns the most rows that the engine answers at a time, at least one for each shard."""
    return max(ROWS[chip.kind], data)


def demand_of(request: PlanRequest, videos: int = MANY, questions: int | None = None) -> Demand:
    """Returns the demand for which the engine chooses the grid of a job.

    Args:
      videos: of the job.
      questions: about each; None for those of the job.
    """
    job = request.job
    each = [job.questions if questions is None else questions] * videos
    return Demand(job.prefix_tokens(request.config), each, job.question_tokens, job.answer_tokens)


def chosen_shape(request: PlanRequest, demand: Demand, data: int, max_rows: int, memory: CacheMemory) -> GridShape:
    """Returns the grid that the engine chooses for a demand; see `engine.sizes.choose_shape`.

    Args:
      data: W.
    """
    text, int8 = request.config.text_config, request.storage.int8_kv
    return choose_shape(demand, text, ml_dtypes.bfloat16, shards=data, max_rows=max_rows, memory=memory, int8=int8)


# ── compiling ───────────────────────────────────────────────────────────────────────────────────────────────


def _setting(request: PlanRequest, mesh: Mesh, shape: GridShape) -> Setting:
    from videollava_jax.planning.engine_programs import Setting

    return Setting(
        config=request.config,
        mesh=mesh,
        shape=shape,
        frames=request.job.frames,
        pooling=request.job.pooling,
        int8_weights=request.storage.int8_weights,
        int8_cache=request.storage.int8_kv,
        question_tokens=request.job.question_tokens,
    )


def _batch_plan(
    request: PlanRequest, chip: Chip, mesh: Mesh, shape: GridShape, names: Iterable[Any], known: Mapping[str, Program]
) -> BatchPlan:
    """Compiles programs for a grid; `known` has programs that were compiled already and do not depend on its slots."""
    from videollava_jax.planning.engine_programs import compile_program

    setting = _setting(request, mesh, shape)
    programs, too_large = dict(known), {}
    for name in names:
        try:
            programs[name] = compile_program(name, setting, chip)
        except MemoryError as error:
            too_large[name] = str(error)
    return BatchPlan(
        shape=shape,
        programs={name: programs[name] for name in PROGRAMS if name in programs},
        too_large=too_large,
        throughput=throughput(request.job, shape, {n: p.seconds_of_slot for n, p in programs.items()})
        if set(programs) == set(PROGRAMS)
        else None,
        read_once=setting.read_once_bytes,
    )


def _largest(request: PlanRequest, chip: Chip, mesh: Mesh, batch: BatchPlan) -> BatchPlan | None:
    """Finds the grid with the most slots that fit next to the weights and temporaries, by compiling decode.

    The memory that the other programs need for themselves does not depend on the number of slots.
    """
    known = {name: program for name, program in batch.programs.items() if name != "decode"}
    held = batch.programs["decode"].resident
    per_slot = sum(size for kind, size in held.items() if kind != "weights") / batch.shape.slots
    extra = max(program.extra for program in batch.programs.values())
    slots = int((chip.hbm_bytes - held["weights"] - extra) / per_slot)
    for _ in range(TRIES):
        if slots < 1:
            return None
        tried = _batch_plan(request, chip, mesh, dataclasses.replace(batch.shape, slots=slots), ["decode"], known)
        excess = per_slot
        if "decode" in tried.programs:
            extra = max(program.extra for program in tried.programs.values())
            excess = sum(tried.programs["decode"].resident.values()) + extra - chip.hbm_bytes
        if excess <= 0:
            return tried
        slots -= math.ceil(excess / per_slot)
    return None


def throughput(job: Job, shape: GridShape, seconds: Mapping[str, float]) -> Throughput:
    """Returns the throughput if grids are filled and answered one after the other, and programs never overlap.

    Args:
      job: the questions about each video.
      shape: the grid.
      seconds: of each program by name; of decode, for one step; of begin, for the slots of one index.
    """
    rounds = math.ceil(job.questions / shape.rows)
    phases = {
        "encode": shape.slots * seconds["encode"],
        "prefill": shape.slots * seconds["prefill"],
        "begin": rounds * shape.slots * seconds["begin"],
        # An answer's first token comes from the logits of the question.
        "decode": rounds * (job.answer_tokens - 1) * seconds["decode"],
    }
    videos = shape.prefixes / sum(phases.values())
    return Throughput(
        videos_per_second=videos,
        answers_per_second=videos * job.questions,
        tokens_per_second=videos * job.questions * job.answer_tokens,
        phases=phases,
    )
