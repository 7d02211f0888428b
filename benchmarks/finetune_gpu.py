"""Fine-tuning the 7B model on one GPU, beside transformers: tokens a second and the share of the device's arithmetic.

    python benchmarks/finetune_gpu.py --out out/finetune.json      # one GPU, under nine minutes; prints Markdown
    python benchmarks/finetune_gpu.py --sections full --layers 16  # a part of it, with fewer layers
    python benchmarks/finetune_gpu.py --small                      # all of it with tiny sizes, to try it on a CPU

    section  trained                     kept in    ours                                transformers
    lora     adapters of rank 128 in     float32    the programs of train/finetune.py   PEFT, autocast to bfloat16
             all projections; projector
    full     decoder, head, projector    float32    the same                            autocast to bfloat16
    bf16     the same                    bfloat16   the same                            a model in bfloat16

*kept in* is for what is trained and its moments; what is frozen is bfloat16. A step is some micro-batches of rows, each
a conversation about one video of 8 frames that fills it, then AdamW with clipping; both sides compute every layer again
for the gradient, and find their batches on the device. transformers runs SDPA, checkpoints its layers without
reentry and updates by the fused AdamW. Weights are random. A figure is the median of some steps with their range, after
two that compile or warm up; JAX runs in one process and torch in the next.

Trained parameters with moments and gradients are 22 bytes each in float32: 149 GB, more than a GPU of 141 GB has. So
the program reckons, by the device's memory as its maker states it, how many layers of the decoder fit both sides, takes
that many and says so in the name of the row. MFU counts the operations that cannot be done without
(`arithmetic.train_flops`), of the model with these layers, against the maker's peak; the limit is the same by what was
measured on such a chip, where there is such a figure.
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
    parser = parser_of(__doc__, tuple(KINDS))
    parser.add_argument("--layers", type=int, help="of the decoder, where another number than fits is wanted")
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
