"""Measures the 7B model on one GPU: every phase and whole jobs, with the device's limits and transformers' rates.

    python benchmarks/gpu.py --out out/gpu.json       # one GPU, under nine minutes; Markdown on standard output
    python benchmarks/gpu.py --sections caption int8  # some sections, to split the compilations between two runs
    python benchmarks/gpu.py --small                  # all of it with tiny sizes, to try the program on a CPU

Weights are random and drawn on the device, in bfloat16, so no checkpoint is needed. Both sides do the same work on the
same device in one run, JAX in one process and torch in the next. Each measures its sections in order; sections for
which time or memory ran out are listed. A figure is the median of several rounds with its range, after a round that
compiles or warms up.

    section   ours                                          transformers
    ceilings  a copy, a product of matrices                 -
    encode    8 frames to features: 1 and 8 videos a call   the same
    decode    prefill of a video's prompt; steps of         the same; its `generate` with one row, with many (SDPA),
              decoding with one row and with many           and with one row and a static cache, which it compiles
    one       the engine: one question a video, 10 tokens   `generate`: batch 1, batched, static cache
    ten       the engine: ten questions a video             as `one`: each is a separate prompt
    caption   the engine: 256 tokens a video                as `one`
    int8      steps with many rows and captions, with       -
              int8 weights and prefixes

Videos are frames in memory, so decoding of files is not measured, but the host's preprocessing is, on both sides. The
number of rows is that of `gpu_work.py`, or as many as fit into memory; the table says how many. Limits are rooflines
(`costs/work.py`) with the rates in `costs/chips.py`: those measured on such a chip, or else the manufacturer's.
*ceilings* is compared with the manufacturer's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from gpu_work import SECTIONS, Work
from sides import OURS, THEIRS, Section, compare, parser_of

OUR_SHARE = 0.62
"""Our share of the time; ours has more sections, and compiles whole programs."""


def main() -> int:
    """Runs the command line; returns the exit status."""
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
