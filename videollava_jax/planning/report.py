"""Writes a plan as a record for JSON, and as text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from videollava_jax.planning.plan import BatchPlan, Plan, Throughput

if TYPE_CHECKING:
    from videollava_jax.engine.sizes import GridShape
    from videollava_jax.planning.engine_programs import Program

_MIB, _GIB = 2**20, 2**30


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────


def record(plan: Plan) -> dict[str, Any]:
    """Returns the whole plan for JSON. Sizes are in bytes, on one device unless their name says otherwise."""
    limit = plan.limit
    return {
        "topology": plan.request.topology,
        "compiled": plan.batch is not None,
        "chips": plan.chips,
        "hbm_bytes": plan.chip.hbm_bytes,
        "mesh": plan.mesh,
        "meshes": {f"{data}x{tensor}": dataclasses.asdict(rate) for (data, tensor), rate in plan.meshes.items()},
        "variant": plan.request.config.variant,
        "job": dataclasses.asdict(plan.request.job),
        "storage": dataclasses.asdict(plan.request.storage),
        "batch": None if plan.batch is None else _batch(plan.batch),
        "largest": None if plan.largest is None else _batch(plan.largest),
        "limit": plan.why_no_limit if limit is None else dataclasses.asdict(limit),
    }


def _batch(batch: BatchPlan) -> dict[str, Any]:
    shape = batch.shape
    return {
        "grid": {**dataclasses.asdict(shape), "prefixes": shape.prefixes, "batch": shape.batch},
        "programs": {name: _program(program, batch) for name, program in batch.programs.items()},
        "too_large": dict(batch.too_large),
        "read_once": batch.read_once,
        "throughput": None if batch.throughput is None else dataclasses.asdict(batch.throughput),
    }


def _program(program: Program, batch: BatchPlan) -> dict[str, Any]:
    step, least = program.step, program.roofline
    return {
        "resident": dict(program.resident),
        "inputs": program.inputs,
        "outputs": program.outputs,
        "temporaries": program.temporaries,
        "code": program.code,
        "total": program.total,
        "fits": batch.fits(program.name),
        "flops": program.flops,
        "hbm_read": step.hbm_read_bytes,
        "hbm_written": step.hbm_written_bytes,
        "collectives": [dataclasses.asdict(collective) for collective in step.collectives],
        "big_moves": [dataclasses.asdict(move) for move in program.moves],
        "kernels": program.kernels,
        "slots": program.slots,
        "launches": step.launches,
        "seconds": least.seconds,
        "bound": least.bound,
        "compile_seconds": round(program.compile_seconds, 1),
    }


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────


def text(plan: Plan) -> str:
    """Returns the plan as a few tables."""
    request, job = plan.request, plan.request.job
    lines = [
        f"{request.topology}: {plan.chips} × {plan.chip.name} of {plan.chip.hbm_bytes / _GIB:.2f} GiB"
        + ("" if plan.mesh is None else f", mesh {plan.mesh[0]} × {plan.mesh[1]} (data × tensor)"),
        f"job: videos of {job.frames} frames, {job.prefix_tokens(request.config)} tokens; {job.questions} "
        f"question{'s' * (job.questions > 1)} of {job.question_tokens} tokens, answers of {job.answer_tokens}",
    ]
    if plan.batch is not None:
        lines += ["", f"grid: {_grid(plan.batch.shape)}", *_programs(plan.batch)]
    if plan.largest is not None:
        decode = plan.largest.programs["decode"]
        lines += [
            "",
            f"largest that fits: {_grid(plan.largest.shape)}",
            f"  {decode.total / _GIB:.2f} GiB a chip; a step of decoding takes {decode.roofline.seconds * 1e3:.2f} ms "
            "at best",
        ]
    return "\n".join([*lines, "", *_throughput(plan), *_meshes(plan)])


def _meshes(plan: Plan) -> list[str]:
    """Returns a line that compares meshes, and says which to take; nothing where there is no choice."""
    if len(plan.meshes) < 2:
        return []
    rates = {f"{data}x{tensor}": rate.answers_per_second for (data, tensor), rate in plan.meshes.items()}
    best = next(iter(rates))
    compared = ", ".join(f"{mesh} {rate:.1f}" for mesh, rate in rates.items())
    return ["", f"meshes by arithmetic, answers/s of the grids that the engine chooses: {compared}: take --mesh {best}"]


def _grid(shape: GridShape) -> str:
    return (
        f"{shape.prefixes} prefixes of {shape.prefix} positions with {shape.rows} rows of "
        f"{shape.question} + {shape.answer} each: {shape.batch} rows"
    )


def _programs(batch: BatchPlan) -> list[str]:
    kinds = ("weights", "prefix", "tails")
    memory = [["MiB a chip", *kinds, "other", "temporary", "code", "total", "fits"]]
    work = [["at best", "GFLOP", "MiB read", "MiB written", "ms", "bound by", "launches", "collectives"]]
    for name, program in batch.programs.items():
        other = program.resident["answers"] + program.inputs + program.outputs
        sizes = [*(program.resident[kind] for kind in kinds), other, program.temporaries, program.code, program.total]
        memory.append([name, *(f"{size / _MIB:.0f}" for size in sizes), "yes" if batch.fits(name) else "NO"])
        step, least = program.step, program.roofline
        work.append(
            [
                name + ", a step" * (name == "decode") + f", {program.slots} slots" * (program.slots > 1),
                f"{program.flops / 1e9:.1f}",
                *(f"{size / _MIB:.1f}" for size in (step.hbm_read_bytes, step.hbm_written_bytes)),
                f"{least.seconds * 1e3:.3f}",
                least.bound,
                str(step.launches),
                ", ".join(f"{c.count} {c.kind} ({c.bytes / _MIB:.1f} MiB)" for c in step.collectives) or "none",
            ]
        )
    if not any(program.chip.kind == "gpu" for program in batch.programs.values()):
        for row in work:
            row.pop(-2)  # a TPU runs a program as a whole
    lines = ["", *aligned(memory), "", *aligned(work)]
    for name, why in batch.too_large.items():
        lines += ["", f"{name} does not fit: {why}"]
    for name, program in batch.programs.items():
        alike = Counter((move.kind, f"{move.bytes / _MIB:.1f}", move.source) for move in program.moves)
        for (kind, size, source), count in alike.items():
            lines.append(f"{name}: {count} × {kind} of {size} MiB" + f" ({source})" * bool(source))
    return lines


def _throughput(plan: Plan) -> list[str]:
    rows = [["at best, all chips", "videos/s", "answers/s", "tokens/s", "rows"]]

    def row(name: str, throughput: Throughput | Any, batch: int) -> list[str]:
        numbers = throughput.videos_per_second, throughput.answers_per_second, throughput.tokens_per_second
        return [name, *(f"{number:.2f}" for number in numbers), str(batch)]

    for name, batch in (("these programs, this grid", plan.batch), ("the largest grid", plan.largest)):
        if batch is not None and batch.throughput is not None:
            rows.append(row(name, batch.throughput, batch.shape.batch))
    if plan.limit is not None:
        rows.append(row("by arithmetic" + ", not compiled" * (plan.batch is None), plan.limit, plan.limit.rows))
    lines = aligned(rows) if len(rows) > 1 else []
    if plan.limit is None:
        lines.append(plan.why_no_limit)
    elif plan.batch is None:
        lines.append(f"each copy of the weights on {plan.limit.tensor}")
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, whose first and last columns are aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
