"""Plans a training step on chips that need not be here: both of its programs, compiled as a run of the recipe has them.

recipe, chips ──▶ mesh ──▶ accumulate, update compiled ──▶ memory, traffic, least seconds
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import Chip, Roofline, roofline, topology
from videollava_jax.costs.work import train_flops
from videollava_jax.extras import installs
from videollava_jax.planning.devices import device_of, devices_of, first_line, has_compiler, set_environment
from videollava_jax.planning.report import aligned

if TYPE_CHECKING:
    from videollava_jax.planning.training_programs import CompiledStep
    from videollava_jax.training.run.recipe import Recipe

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A recipe's step on a topology. Sizes and operations are of one device.

    Attributes:
      topology: as it was given.
      recipe: the recipe.
      chip: a device, with the memory that programs can use.
      mesh: sizes of the axes data and tensor.
      rows: of a micro-batch, on all devices together.
      programs: compiled, by name.
      too_large: the compiler's message for each program that does not fit, by name.
      flops: operations that a micro-batch of full rows needs, without those that are done again to save memory.
      seconds: of compiling each program.
    """

    topology: str
    recipe: Recipe
    chip: Chip
    mesh: tuple[int, int]
    rows: int
    programs: Mapping[str, CompiledStep]
    too_large: Mapping[str, str]
    flops: float
    seconds: Mapping[str, float]

    def fits(self, name: str) -> bool:
        """Returns whether a program, with everything else that is held then, fits a device."""
        program = self.programs.get(name)
        return program is not None and program.total <= self.chip.hbm_bytes

    def least(self, name: str) -> Roofline:
        """Returns the least time of a program: of the operations that it needs, its memory traffic, its collectives."""
        traffic = self.programs[name].text.total
        sent = sum(collective.bytes for collective in traffic.collectives)
        return roofline(self.flops * (name == "accumulate"), traffic.hbm_bytes, self.chip, sent_bytes=sent)

    @property
    def tokens_per_second(self) -> float | None:
        """Positions of full rows in a second at best, if nothing but `accumulate` runs; None without it."""
        if "accumulate" not in self.programs:
            return None
        return self.rows * self.recipe.data.row_tokens / self.least("accumulate").seconds


def plan_training(
    name: str,
    recipe: Recipe,
    config: ModelConfig,
    mesh: tuple[int, int] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> TrainingPlan:
    """Compiles a recipe's step in this process, which may not have used JAX before, for one topology only.

    Args:
      name: of the topology, as `costs.chips.topology` parses it.
      recipe: what is trained, the rows, dtypes and memory; no data is read.
      config: the model.
      mesh: sizes of the axes data and tensor; None for the recipe's, as a run has it.
      progress: wraps the names of the programs while they are compiled, like `tqdm`.

    Raises:
      ValueError: the chips are unknown, their compiler is missing, or mesh, rows and model do not fit each other.
    """
    if recipe.data.features is not None:
        raise ValueError("data.features: a step without towers is not planned; expected null")
    chip, chips = topology(name)
    if not has_compiler(chip):
        extra = "tpu" if chip.kind == "tpu" else "cuda"
        raise ValueError(f"a training step is compiled, and the compiler for {chip.name} is missing: {installs(extra)}")
    set_environment(chip)
    from jax.errors import JaxRuntimeError

    from videollava_jax.media import FramePreprocessor
    from videollava_jax.model.sharding import Placement, make_mesh
    from videollava_jax.planning.training_programs import StepProgram, compile_step
    from videollava_jax.processing.preset import get_preset
    from videollava_jax.training.run.inputs import batch_shape
    from videollava_jax.training.update.model import TrainingModel
    from videollava_jax.training.update.options import GROUPS, is_lora

    devices, chip, compute, data = devices_of(name, chip, chips), device_of(chip), recipe.compute, recipe.data
    shards, tensor = mesh or (compute.data or len(devices) // compute.tensor, compute.tensor)
    if shards * tensor != len(devices):
        raise ValueError(f"mesh {shards}x{tensor}: expected data × tensor to be the {len(devices)} devices of {name}")
    shape = batch_shape(recipe, shards)
    preset = get_preset(data.preset or config.variant)
    preset = preset if data.resize is None else preset.changed({"resize": data.resize})
    model = TrainingModel(
        config,
        preprocess={kind: preset.preprocessor(kind, FramePreprocessor()) for kind in ("image", "video")},
        placement=Placement(config, make_mesh(shards, tensor, devices=devices)),
        dtype=compute.dtype,
        lora=recipe.lora,
        quantization="int8" if compute.int8 else None,
        remat=compute.remat,
        loss_chunk=compute.loss_chunk,
        loss_vocabulary=config.text_vocab_size if data.loss_vocabulary == "text" else None,
    )
    programs: dict[str, CompiledStep] = {}
    too_large, seconds = {}, {}
    names: tuple[StepProgram, ...] = ("accumulate", "update")
    for program in progress(names):
        started = time.perf_counter()
        try:
            programs[program] = compile_step(
                program,
                model,
                recipe.rates,
                shape.row,
                rows=shape.rows,
                frames=data.frames,
                optimizer=recipe.optimizer,
                trained=compute.trained_dtype,
                frozen=compute.dtype,
            )
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            too_large[program] = first_line(error)
        seconds[program] = time.perf_counter() - started
    flops = train_flops(
        config,
        [group for group in GROUPS if recipe.rates.of(group) is not None],
        [data.row_tokens] * shape.rows,
        frames=data.frames * shape.rows * (data.videos_per_row > 0),
        adapters=sum(math.prod(size) for key, size in model.shapes.items() if is_lora(key)),
    )
    return TrainingPlan(
        topology=name,
        recipe=recipe,
        chip=chip,
        mesh=(shards, tensor),
        rows=shape.rows,
        programs=programs,
        too_large=too_large,
        flops=flops / len(devices),
        seconds=seconds,
    )


def record(plan: TrainingPlan) -> dict[str, Any]:
    """Returns the whole plan for JSON. Sizes are in bytes, on one device."""
    programs = {}
    for name, program in plan.programs.items():
        traffic, least = program.text.total, plan.least(name)
        programs[name] = {
            "resident": dict(program.resident),
            "batch": program.batch,
            "temporaries": program.temporaries,
            "code": program.code,
            "total": program.total,
            "fits": plan.fits(name),
            "hbm_read": traffic.hbm_read_bytes,
            "hbm_written": traffic.hbm_written_bytes,
            "collectives": [dataclasses.asdict(collective) for collective in traffic.collectives],
            "seconds": least.seconds,
            "bound": least.bound,
            "compile_seconds": round(plan.seconds[name], 1),
        }
    return {
        "topology": plan.topology,
        "hbm_bytes": plan.chip.hbm_bytes,
        "mesh": plan.mesh,
        "rows": plan.rows,
        "flops": plan.flops,
        "programs": programs,
        "too_large": dict(plan.too_large),
        "tokens_per_second": plan.tokens_per_second,
    }


def text(plan: TrainingPlan) -> str:
    """Returns the plan as two tables."""
    data, compute, chip = plan.recipe.data, plan.recipe.compute, plan.chip
    trained = ", ".join(name for name, rate in dataclasses.asdict(plan.recipe.rates).items() if rate is not None)
    lines = [
        f"{plan.topology}: {math.prod(plan.mesh)} × {chip.name} of {chip.hbm_bytes / _GIB:.2f} GiB, mesh "
        f"{plan.mesh[0]} × {plan.mesh[1]} (data × tensor)",
        f"trained: {trained}; micro-batches of {plan.rows} rows of {data.row_tokens} tokens, each with "
        f"{data.images_per_row} images and {data.videos_per_row} videos of {data.frames} frames; {compute.dtype}",
    ]
    kinds = ("trained", "frozen", "optimizer", "gradients")
    memory = [
        ["MiB a chip", "trained", "frozen", "moments", "gradients", "batch", "temporary", "code", "total", "fits"]
    ]
    work = [["at best", "TFLOP", "GiB read", "GiB written", "ms", "bound by", "collectives"]]
    for name, program in plan.programs.items():
        sizes = [*(program.resident[kind] for kind in kinds), program.batch, program.temporaries, program.code]
        fits = "yes" if plan.fits(name) else "NO"
        memory.append([name, *(f"{size / _MIB:.0f}" for size in (*sizes, program.total)), fits])
        traffic, least = program.text.total, plan.least(name)
        collectives = ", ".join(f"{c.count} {c.kind} ({c.bytes / _GIB:.2f} GiB)" for c in traffic.collectives)
        work.append(
            [
                name,
                f"{plan.flops * (name == 'accumulate') / 1e12:.1f}",
                *(f"{size / _GIB:.1f}" for size in (traffic.hbm_read_bytes, traffic.hbm_written_bytes)),
                f"{least.seconds * 1e3:.1f}",
                least.bound,
                collectives or "none",
            ]
        )
    lines += ["", *aligned(memory), "", *aligned(work)]
    lines += [f"{name} does not fit: {why}" for name, why in plan.too_large.items()]
    if plan.tokens_per_second is not None:
        lines += [
            "",
            f"at best {plan.tokens_per_second:.0f} tokens/s on all chips, if rows are full and media are ready",
        ]
    return "\n".join(lines)
