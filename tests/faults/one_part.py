"""Runs one part of `make faults` in this process; `tests.faults` starts it.

    python -m tests.faults.one_part DIRECTORY MODULE FUNCTION SEED SCALE

writes the part's tallies into the directory, and while it runs how many inputs it has tried.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.faults import tables
from tests.faults.parts import function_of
from tests.faults.report import to_json


def run(place: Path, module: str, function: str, seed: int, scale: float) -> None:
    """Runs a part and writes what came of it."""
    tried, written = 0, 0.0

    def counted() -> None:
        nonlocal tried, written
        tried += 1
        if time.monotonic() - written > 0.5:
            written = time.monotonic()
            (place / "tried").write_text(str(tried))

    tables.listener = counted
    tallies = function_of(module, function)(seed, scale)
    (place / "tallies.json").write_text(json.dumps(to_json(tallies)))


if __name__ == "__main__":
    directory, module, function, seed, scale = sys.argv[1:]
    run(Path(directory), module, function, int(seed), float(scale))
