"""The 7B model on one GPU: every phase and whole jobs, beside what the device cannot exceed and beside transformers.

    python benchmarks/gpu.py --out out/gpu.json       # one GPU, under nine minutes; Markdown on standard output
    python benchmarks/gpu.py --sections caption int8  # some of it: where two runs are to share what compiles
    python benchmarks/gpu.py --small                  # all of it with tiny sizes, to try the program on a CPU

Weights are random and drawn on the device, in bfloat16, so no checkpoint is needed. Both sides do the same work on the
same device in one run, JAX in one process and torch in the next; each measures its sections in order, and what it has
no more time or memory for is named. A figure is the median of some rounds with its range, after a round that compiles
or warms up.

    section   ours                                          transformers
    ceilings  a copy, a product of matrices                 -
    encode    8 frames to features: 1 and 8 videos a call   the same
    decode    prefill of a video's prompt; steps of         the same; its `generate` with one row, with many (SDPA),
              decoding with one row and with many           and with one row and a static cache, which it compiles
    one       the engine: one question a video, 10 tokens   `generate`: batch 1, batched, static cache
    ten       the engine: ten questions a video             as with one: each is a prompt of its own
    caption   the engine: 256 tokens a video                as one
    int8      steps with many rows and captions, with       -
              int8 weights and prefixes

Videos are frames in memory: decoding of files is not in it, the host's preprocessing is, on both sides. As many rows
are taken as the work says, or as fit the memory; a cell says so. Limits are the roofline's (`arithmetic.py`) by the
figures of `hardware.py`: those that were measured on such a chip where there are some, else its maker's. *ceilings*
stands beside its maker's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from gpu_work import SECTIONS, Work
from sides import OURS, THEIRS, Section, compare, parser_of

OUR_SHARE = 0.62
"""Of the time: ours has more sections, and compiles whole programs."""


def main() -> int:
    parser = parser_of(__doc__, SECTIONS)
    arguments = parser.parse_args()
    work = Work.tiny() if arguments.small else Work()
    work = dataclasses.replace(work, rounds=arguments.rounds, chip=arguments.chip)

    def ours() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from gpu_ours import Ours

        return Ours(work).begun()

    def theirs() -> tuple[dict[str, Any], Mapping[str, Section]]:
        from gpu_theirs import Theirs

        return Theirs(work).begun()

    return compare(__file__, arguments, {OURS: ours, THEIRS: theirs}, share=OUR_SHARE)


if __name__ == "__main__":
    sys.exit(main())
