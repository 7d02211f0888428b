"""Compiles a session's loops for a GPU that is not here, and prints what XLA will run: its thunks, by kind.

python -m tests.planning.gpu_loops decode_part     {"outermost": ["kCommandBuffer"], "all": {"kWhile": 1, ...}}

`decode` decodes the whole grid, `decode_part` two of its eight slots; rows may draw, have penalties, and want
log-probabilities. One layer of the 7B model.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SLOTS = 2


def thunks(sequence: str) -> dict[str, Any]:
    """Counts the kinds of thunks in XLA's dump of a program: the outermost in order, and all."""
    outermost = [line.split()[1] for line in sequence.splitlines() if line[:1].isdigit()]
    return {"outermost": outermost, "all": Counter(re.findall(r"\bk[A-Z]\w+", sequence))}


def main(program: str) -> dict[str, Any]:
    from videollava_jax.costs.chips import topology
    from videollava_jax.planning.devices import devices_of, set_environment

    with tempfile.TemporaryDirectory() as dump:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        chip, chips = topology("h200")
        set_environment(chip)
        import jax

        from tests.planning.gpu_tables import SHAPE
        from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
        from videollava_jax.engine.part_programs import decode_part
        from videollava_jax.engine.sizes import Branches
        from videollava_jax.model.sharding import make_mesh
        from videollava_jax.planning.engine_programs import Setting, program_with_arguments

        config = ModelConfig(
            text_config=TextConfig(num_hidden_layers=1), vision_config=VisionConfig(num_hidden_layers=1)
        )
        mesh = make_mesh(1, 1, devices=devices_of("h200", chip, chips))
        setting = Setting(config=config, mesh=mesh, shape=SHAPE, branches=Branches())
        decode, arguments = program_with_arguments("decode", setting)
        if program == "decode":
            decode.lower(*arguments).compile()
        else:
            slots = jax.ShapeDtypeStruct((SLOTS,), "int32")
            decode_part.lower(*arguments, slots, shards=1, rows=SHAPE.rows).compile()
        (sequence,) = Path(dump).glob(f"*jit_{program}.*thunk_sequence_after_thunk_passes.txt")
        return thunks(sequence.read_text())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
