"""Plans the 7B model for TPUs that are not here, at the sizes of its requirements; takes minutes per topology.

python -m tests.planning.plan_programs                     prints the tables of docs/planning.md
python -m tests.planning.plan_programs --keep DIRECTORY    keeps results there, and resumes from them
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COMMAND = "import sys; from videollava_jax.cli import main; sys.exit(main())"
MESHES = {"v5e:2x4": (1, 8), "v6e:2x4": (1, 8), "v5p:2x2x2": (1, 8), "v5e:16x16": (32, 8)}
"""Topologies, and the mesh data × tensor on each: 8 chips per copy."""
GRIDS = {"8 × 8": (8, 8), "64 × 1": (64, 1)}
"""Prefixes × rows of a copy: 64 rows of 2112 + 64 + 128 = 2304 positions."""
NAMES = ("encode", "prefill", "begin", "decode")
GIB, MIB = 2**30, 2**20


def planned(topology: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs `videollava plan --json` in a separate process and returns its record.

    Args:
      environment: more variables for that process.
    """
    command = [sys.executable, "-c", COMMAND, "plan", "--topology", topology, "--json", *arguments]
    # XLA flags that make the tests' compilations for the CPU fast do not apply here.
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = inherited | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def required(topology: str, grid: str, *arguments: str) -> dict[str, Any]:
    """Plans a batch of 64 rows per copy."""
    (data, tensor), (slots, rows) = MESHES[topology], GRIDS[grid]
    return planned(
        topology,
        *("--mesh", f"{data}x{tensor}", "--grid", f"{slots * data}x{rows}", "--questions", str(rows)),
        *("--question-tokens", "64", "--answer-tokens", "128", *arguments),
    )


def traffic_ratio(record: dict[str, Any]) -> float:
    """Returns the HBM traffic of a decode step divided by the decoder's weights and the cache, read once."""
    decode, once = record["batch"]["programs"]["decode"], record["batch"]["read_once"]
    return float((decode["hbm_read"] + decode["hbm_written"]) / once)


def found(keep: Path | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (topology, grid, plan). For 64 × 1 it plans only decode, as the other programs are like those of 8 × 8."""
    for grid in GRIDS:
        for topology in MESHES:
            file = None if keep is None else keep / f"{topology}-{grid}.json".replace(":", "-").replace(" × ", "x")
            if file is not None and file.exists():
                yield topology, grid, json.loads(file.read_text())
                continue
            record = required(topology, grid, *(("--programs", "decode") if grid == "64 × 1" else ()))
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(record))
            yield topology, grid, record


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for cells in (heads, ("---",) * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")


def main(keep: Path | None) -> None:
    """Prints MiB per chip, the traffic of decoding, and the throughput."""
    memory, steps, rates = [], [], []
    for topology, grid, record in found(keep):
        batch = record["batch"]
        programs, name = batch["programs"], (topology, grid)
        decode = programs["decode"]
        sizes = [decode["resident"][kind] for kind in ("weights", "prefix", "tails")]
        temporaries = [f"{programs[n]['temporaries'] / MIB:.0f}" if n in programs else "" for n in NAMES]
        most = max(program["total"] for program in programs.values())
        totals = f"{most / MIB:.0f} of {record['hbm_bytes'] / MIB:.0f}"
        seconds = [f"{programs[n]['compile_seconds']:.0f}" if n in programs else "" for n in NAMES]
        memory.append((*name, *(f"{size / MIB:.0f}" for size in sizes), *temporaries, totals, " / ".join(seconds)))
        collectives = ", ".join(f"{c['count']} {c['kind']} ({c['bytes'] / MIB:.1f} MiB)" for c in decode["collectives"])
        traffic = [f"{size / MIB:.0f}" for size in (batch["read_once"], decode["hbm_read"], decode["hbm_written"])]
        moves = sum(len(program["big_moves"]) for n, program in programs.items() if n != "encode")
        ratio, best = f"{traffic_ratio(record):.2f}", f"{decode['seconds'] * 1e3:.2f}"
        steps.append((*name, *traffic, ratio, str(moves), collectives, best))
        if batch["throughput"] is not None:
            each = [f"{programs[n]['seconds'] * 1e3:.2f} ({programs[n]['bound']})" for n in NAMES]
            both = [f"{rate['answers_per_second']:.1f}" for rate in (batch["throughput"], record["limit"])]
            rates.append((topology, *each, *both))
    table(("topology", "prefixes × rows", "weights", "prefixes", "tails", *NAMES, "most", "seconds to compile"), memory)
    print()
    heads = ("read once", "read", "written", "ratio", "big moves", "collectives", "ms at best")
    table(("topology", "prefixes × rows", *heads), steps)
    print()
    table(("topology", *NAMES, "answers/s", "answers/s by arithmetic"), rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY")
    main(parser.parse_args().keep)
