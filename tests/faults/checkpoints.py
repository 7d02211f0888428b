"""Tests checkpoints to destruction and prints the outcomes: flipped bits, mutations, kills, full disks, other runs.

    python -m tests.faults.checkpoints --flips 500 --mutations 20000 --kills 100 --seed 0

The exit status is 1 if there were violations. A part whose number is 0 is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from tests.faults.disks import fill, forbid
from tests.faults.flips import flip
from tests.faults.fuzzing import fuzz
from tests.faults.interruptions import kill, meet
from tests.faults.tables import Tally, said, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500, help="bits flipped; default: %(default)s")
    parser.add_argument("--mutations", type=int, default=20_000, help="of headers and so on; default: %(default)s")
    parser.add_argument("--kills", type=int, default=100, help="runs killed; default: %(default)s")
    parser.add_argument("--disks", type=int, default=24, help="disks filled; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs on one target; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all of it; default: %(default)s")
    asked = parser.parse_args()
    parts: list[tuple[int, Callable[[], list[Tally]]]] = [
        (asked.flips, lambda: flip(asked.flips, asked.seed)),
        (asked.mutations, lambda: fuzz(asked.mutations, asked.seed)),
        (asked.kills, lambda: kill(asked.kills, asked.seed)),
        (asked.disks, lambda: fill(asked.disks, asked.seed) + forbid()),
        (asked.pairs, lambda: meet(asked.pairs, asked.seed)),
    ]
    tallies: list[Tally] = []
    started = time.perf_counter()
    for number, part in parts:
        if number:
            begun = time.perf_counter()
            made = part()
            tallies += made
            tried = sum(tally.outcomes.total() for tally in made)
            print(f"{made[0].name.split(':')[0]}: {tried} in {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\nseed {asked.seed}, {time.perf_counter() - started:.0f} s\n\n{table(tallies)}")
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
