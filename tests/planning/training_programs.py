"""Compiles both programs of fine-tuning the 7B model for TPUs that are not here; takes minutes for each.

python -m tests.planning.training_programs                     prints the tables of docs/training.md
python -m tests.planning.training_programs --keep DIRECTORY    keeps what was found there, and goes on from it
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from tests.planning.plan_programs import GIB, MIB, table
from tests.planning.tpu_programs import ENVIRONMENT
from tests.training.rows import UNCHANGED
from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import topology
from videollava_jax.costs.work import train_flops
from videollava_jax.model.layers import Quantization
from videollava_jax.model.sharding import STACKED, Placement, make_mesh
from videollava_jax.planning.devices import device_of, devices_of
from videollava_jax.planning.hlo.traffic import Traffic
from videollava_jax.planning.training_programs import CompiledStep, StepProgram, compile_step
from videollava_jax.training.data.packing import RowShape
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.options import GROUPS, Lora, Rates, is_lora

PROGRAMS: tuple[StepProgram, ...] = ("accumulate", "update")
CONFIG = ModelConfig()
ROW = RowShape(tokens=3072, images=6, videos=1)
FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class What:
    """What is trained and what is frozen."""

    rates: Rates
    lora: Lora | None = None
    quantization: Quantization | None = None


RECIPES = {
    "full": What(rates=Rates(projector=2e-5, decoder=2e-5)),
    "LoRA": What(rates=Rates(projector=2e-5, lora=2e-4), lora=Lora()),
    "QLoRA": What(rates=Rates(projector=2e-5, lora=2e-4), lora=Lora(), quantization="int8"),
}


@dataclass(frozen=True)
class Case:
    """A line of the tables, for micro-batches of one row per batch shard."""

    topology: str
    data: int
    tensor: int
    recipe: str

    def __str__(self) -> str:
        return f"{self.topology} {self.data}x{self.tensor} {self.recipe}"


_MESHES = (("v5p:2x2x4", 8, 2), ("v5e:16x16", 64, 4), ("v6e:4x4", 8, 2))
CASES = [
    *(Case(*mesh, recipe) for recipe in ("full", "LoRA") for mesh in _MESHES),
    Case("v5e:16x16", 64, 4, "QLoRA"),
]
WHOLE_TOPOLOGY = Case("v5p:2x2x4", 16, 1, "full")
"""A worse mesh: if the axis `data` spans the whole topology, the compiler scatters nothing."""


# ── in a process of its own, which loads libtpu for one topology ──


def described(case: Case) -> dict[str, Any]:
    """Both compiled programs of a step; sizes in bytes on a chip."""
    what = RECIPES[case.recipe]
    chip, chips = topology(case.topology)
    devices = devices_of(case.topology, chip, chips)
    placement = Placement(CONFIG, make_mesh(case.data, case.tensor, devices=devices))
    model = TrainingModel(
        CONFIG,
        preprocess=UNCHANGED,
        placement=placement,
        dtype=jnp.bfloat16,
        lora=what.lora,
        quantization=what.quantization,
    )
    programs = {}
    for program in PROGRAMS:
        started = time.perf_counter()
        step = compile_step(program, model, what.rates, ROW, rows=case.data, frames=FRAMES)
        programs[program] = of_step(step) | {"seconds": time.perf_counter() - started}
    flops = train_flops(
        CONFIG,
        [group for group in GROUPS if what.rates.of(group) is not None],
        [ROW.tokens] * case.data,
        frames=FRAMES * case.data,
        adapters=sum(math.prod(shape) for key, shape in model.shapes.items() if is_lora(key)),
    )
    return {
        "available": device_of(chip).hbm_bytes,
        "seconds_at_peak": flops / chips / chip.bf16_flops,
        "flops": flops / chips,
        "layer": layer_bytes(model, what.rates),
        "programs": programs,
    }


def layer_bytes(model: TrainingModel, rates: Rates) -> dict[str, int]:
    """Returns bytes on a chip of a layer's matrices, gathered over `data`: of all, and of the trained ones."""
    assert model.placement is not None
    found = {"all": 0, "trained": 0}
    for key, shape in model.shapes.items():
        if key.startswith("language_model.layers.") and len(shape) == 3:
            int8 = f"{key}_scale" in model.shapes
            part = model.placement.parameter(key.replace(STACKED, ".0."), shape[1:]).shard_shape(shape[1:])
            size = math.prod(part) * (1 if int8 else model.dtype.itemsize)
            found["all"] += size
            found["trained"] += size * rates.trains(key)
    return found


def of_step(step: CompiledStep) -> dict[str, Any]:
    """Returns the figures of a program; `parts` are its entry and its loops, in the order in which they run."""
    text = step.text
    parts = [(1, text.entry), *((text.iterations[name], loop) for name, loop in text.loops.items())]
    return {
        "resident": dict(step.resident),
        "batch": step.batch,
        "temporaries": step.temporaries,
        "code": step.code,
        "total": step.total,
        "kernels": step.kernels,
        "hbm": text.total.hbm_bytes,
        "collectives": collectives(text.total),
        "parts": [{"times": times, "collectives": collectives(part)} for times, part in parts],
    }


def collectives(traffic: Traffic) -> dict[str, dict[str, int]]:
    return {c.kind: {"count": c.count, "bytes": c.bytes} for c in traffic.collectives}


# ── from outside ──


def compiled(case: Case) -> dict[str, Any]:
    """Runs `described` in a separate process."""
    # XLA flags that make the tests' compilations for the CPU fast do not apply here.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | ENVIRONMENT
    command = [sys.executable, "-m", "tests.planning.training_programs", "--only", *map(str, astuple(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def found(keep: Path | None) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Returns the results of all cases."""
    for case in CASES:
        file = None if keep is None else keep / f"{case}.json".replace(":", "-").replace(" ", "-")
        if file is not None and file.exists():
            yield case, json.loads(file.read_text())
            continue
        one = compiled(case)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(one))
        yield case, one


def main(keep: Path | None) -> None:
    """Prints MiB per chip, the collectives of a micro-batch, and its operations."""
    memory, sent, work = [], [], []
    for case, one in found(keep):
        accumulate, update = (one["programs"][program] for program in PROGRAMS)
        head = (case.topology, f"{case.data} × {case.tensor}", case.recipe)
        held = [f"{size / MIB:.0f}" for size in accumulate["resident"].values()]
        more = [f"{accumulate[kind] / MIB:.0f}" for kind in ("batch", "temporaries", "code")]
        most = max(accumulate["total"], update["total"]) / MIB
        seconds = f"{accumulate['seconds']:.0f} / {update['seconds']:.0f}"
        memory.append((*head, *held, *more, f"{most:.0f} of {one['available'] / MIB:.0f}", seconds))
        parts = [amounts(part["collectives"]) for part in layers(one)]
        sent.append((*head, f"{one['layer']['all'] / MIB:.1f}", *parts, amounts(accumulate["collectives"], GIB, "GiB")))
        flops, milliseconds = f"{one['flops'] / 1e12:.1f}", f"{one['seconds_at_peak'] * 1e3:.0f}"
        traffic = f"{accumulate['hbm'] / GIB:.0f}"
        work.append((*head, str(case.data), str(accumulate["kernels"]), flops, milliseconds, traffic))
    heads = ("topology", "mesh", "recipe")
    kinds = ("trained", "frozen", "moments", "gradients", "batch", "temporaries", "code")
    table((*heads, *kinds, "most", "seconds to compile"), memory)
    print()
    table((*heads, "a layer's matrices", "a layer forward", "a layer backward", "all of a micro-batch"), sent)
    print()
    table((*heads, "rows", "kernels", "TFLOP a chip", "ms at peak", "GiB read and written"), work)


def layers(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the loops over the decoder's layers: forward, backward."""
    found = one["programs"]["accumulate"]["parts"]
    return [part for part in found if part["times"] == CONFIG.text_config.num_hidden_layers]


def amounts(kinds: dict[str, dict[str, int]], unit: int = MIB, name: str = "MiB") -> str:
    return ", ".join(f"{of['count']} {kind} ({of['bytes'] / unit:.1f} {name})" for kind, of in kinds.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY")
    parser.add_argument(
        "--only", nargs=4, metavar=("TOPOLOGY", "DATA", "TENSOR", "RECIPE"), help="one of them, as JSON"
    )
    arguments = parser.parse_args()
    if arguments.only:
        name, data, tensor, recipe = arguments.only
        print(json.dumps(described(Case(name, int(data), int(tensor), recipe))))
    else:
        main(arguments.keep)
