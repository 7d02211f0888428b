"""Measures fine-tuning on a CPU, ours and transformers', with the same rows: tokens per second.

    python benchmarks/finetune_cpu.py              # about ten minutes on two cores; prints Markdown
    python benchmarks/finetune_cpu.py --small      # with tiny sizes, to try the program

A step is that of `finetune_gpu.py`, with 157 M random parameters instead of 7 B, one row instead of eight, and float32
on both sides: a conversation of 2,304 tokens about a video of 8 frames, every layer recomputed for the gradient, then
AdamW with clipping. Both sides use all cores, one after the other, each in a process of its own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from finetune_work import Work
from sides import OURS, THEIRS, Section, compare, parser_of

OUR_SHARE = 0.5


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = parser_of(__doc__, ("lora", "full"))
    arguments = parser.parse_args()
    work = Work(rounds=arguments.rounds, chip=arguments.chip, cpu=True, row_tokens=2304, rows=1, micro_batches=1)
    if arguments.small:
        work = dataclasses.replace(work, small=True, cpu=False, row_tokens=192, rank=4)

    def ours() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from finetune_ours import Ours

        return Ours(work).begun()

    def theirs() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from finetune_theirs import Theirs

        return Theirs(work).begun()

    return compare(__file__, arguments, {OURS: ours, THEIRS: theirs}, share=OUR_SHARE)


if __name__ == "__main__":
    sys.exit(main())
