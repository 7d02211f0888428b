"""Compiles the engine's programs for GPUs that are not here, with a few layers of the 7B model, and prints a table.

python -m tests.planning.gpu_tables                       the table of docs/planning.md
python -m tests.planning.gpu_tables --programs decode     one program alone
python -m tests.planning.gpu_tables --layers 4 32         the whole model; takes a quarter of an hour
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.planning.plan_programs import MIB, table
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.costs.chips import topology
from videollava_jax.engine.sizes import GridShape
from videollava_jax.planning.devices import device_of, devices_of, set_environment

LAYERS = (2, 4)
"""The model is compiled with few and with more layers; what each of them adds follows from the difference."""
PROGRAMS = ("prefill", "begin", "decode")
SHAPE = GridShape(shards=1, slots=8, rows=8, prefix=2112, question=64, answer=128)
"""8 prefixes × 8 rows, of 2304 positions each."""


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    gpus: int
    int8: bool
    program: str


@dataclass(frozen=True)
class Row:
    """What the compiler gives for the more layers, and the launches and temporaries (bytes) that each layer adds."""

    launches: int
    a_layer: float
    temporaries: int
    temporaries_a_layer: float
    ratio: float | None
    bias: int
    moves: int


CASES = [Case(gpus, int8, program) for gpus in (1, 8) for int8 in (False, True) for program in PROGRAMS]


def compiled(case: Case, layers: int) -> Any:
    from videollava_jax.model.sharding import make_mesh
    from videollava_jax.planning.engine_programs import Setting, compile_program

    name = f"h200:{case.gpus}"
    chip, chips = topology(name)
    config = ModelConfig(
        text_config=TextConfig(num_hidden_layers=layers), vision_config=VisionConfig(num_hidden_layers=2)
    )
    mesh = make_mesh(1, case.gpus, devices=devices_of(name, chip, chips))
    setting = Setting(config=config, mesh=mesh, shape=SHAPE, int8_weights=case.int8, int8_cache=case.int8)
    program: Any = case.program
    return compile_program(program, setting, device_of(chip)), setting.read_once_bytes


def measured(case: Case, layers: tuple[int, int]) -> Row:
    """Compiles a case; in a process that has not used JAX before."""
    (few, _), (more, once) = (compiled(case, count) for count in layers)
    added = layers[1] - layers[0]
    return Row(
        launches=more.step.launches,
        a_layer=(more.step.launches - few.step.launches) / added,
        temporaries=more.temporaries,
        temporaries_a_layer=(more.temporaries - few.temporaries) / added,
        ratio=more.step.hbm_bytes / once if case.program == "decode" else None,
        bias=sum(n for target, n in more.text.calls.items() if "fmha" in target and "Bias" in target),
        moves=len(more.moves),
    )


def main(programs: Sequence[str], gpus: Sequence[int], layers: tuple[int, int]) -> Iterator[tuple[Case, Row]]:
    set_environment(topology("h200")[0])
    for case in CASES:
        if case.program in programs and case.gpus in gpus:
            yield case, measured(case, layers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--gpus", nargs="+", type=int, choices=(1, 8), default=(1, 8))
    parser.add_argument("--layers", nargs=2, type=int, default=LAYERS, metavar=("FEW", "MORE"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = main(arguments.programs, arguments.gpus, tuple(arguments.layers))
    if arguments.json:
        for case, row in rows:
            print(json.dumps(asdict(case) | asdict(row)), flush=True)
        sys.exit()
    cells = [
        (
            f"{case.gpus} × H200",
            "int8" if case.int8 else "bfloat16",
            case.program,
            f"{row.a_layer:g}",
            str(row.launches),
            f"{row.temporaries / MIB:.0f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            str(row.bias),
            str(row.moves),
        )
        for case, row in rows
    ]
    heads = ("launches a layer", "launches", "MiB of temporaries", "ratio", "attentions with a bias", "big moves")
    table(("chips", "weights, cache", "program", *heads), cells)
