"""Measures fine-tuning of the 7B model on one GPU, ours and transformers': tokens per second and MFU.

    python benchmarks/finetune_gpu.py --out out/finetune.json      # one GPU, under nine minutes; prints Markdown
    python benchmarks/finetune_gpu.py --sections full --layers 16  # a part of it, with fewer layers
    python benchmarks/finetune_gpu.py --small                      # all of it with tiny sizes, to try it on a CPU

    section  trained                     kept in    ours                                transformers
    lora     adapters of rank 128 in     float32    the programs of train/finetune.py   PEFT, autocast to bfloat16
             all projections; projector
    full     decoder, head, projector    float32    the same                            autocast to bfloat16
    bf16     the same                    bfloat16   the same                            a model in bfloat16

*kept in* is the dtype of trained parameters and their moments; frozen ones are bfloat16. A step is several
micro-batches, whose rows are each filled by a conversation about one video of 8 frames, then AdamW with clipping. Both
sides recompute every layer for the gradient and have their batches on the device. transformers uses SDPA, checkpoints
its layers without reentry and updates with the fused AdamW. Weights are random. A figure is the median of several steps
with their range, after two steps that compile or warm up. JAX runs in one process and torch in the next.

A trained parameter with its moments and gradients takes 22 bytes in float32: 149 GB in all, more than a GPU of 141 GB
has. So the program computes, from the memory that the manufacturer states, how many decoder layers fit on both sides,
uses that many and says so in the name of the row. MFU is the rate of necessary operations (`costs.work.train_flops`) of
the model with these layers, divided by the manufacturer's peak. The limit uses the rates measured on such a chip, if
there are any.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from finetune_work import KINDS, Work
from sides import OURS, THEIRS, Section, compare, parser_of

OUR_SHARE = 0.5


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = parser_of(__doc__, tuple(KINDS))
    parser.add_argument("--layers", type=int, help="of the decoder; default: as many as fit")
    arguments = parser.parse_args()
    work = Work(rounds=arguments.rounds, layers=arguments.layers, chip=arguments.chip)
    if arguments.small:
        work = dataclasses.replace(work, small=True, row_tokens=192, micro_batches=2, rank=4)

    def ours() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from finetune_ours import Ours

        return Ours(work).begun()

    def theirs() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from finetune_theirs import Theirs

        return Theirs(work).begun()

    return compare(__file__, arguments, {OURS: ours, THEIRS: theirs}, share=OUR_SHARE)


if __name__ == "__main__":
    sys.exit(main())
