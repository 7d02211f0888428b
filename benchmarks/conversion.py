"""Measures conversion beside a plain copy of the same files, on the same disk, in the same run.

    python benchmarks/random_checkpoint.py out/7b
    python benchmarks/conversion.py out/7b --scratch out/scratch

Each round copies the checkpoint, converts it to Orbax, verifies that, and exports it back to the hub's layout; files
are dropped from the page cache before each step, and flushed to the disk within it. Every step runs in a process of
its own, whose peak memory is told. The round trip is compared file by file: equal tensors give equal bytes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import json, resource, sys, time
from pathlib import Path
from videollava_jax.weights import convert_to_orbax, export, verify_checkpoint
step, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
started = time.perf_counter()
if step == "convert":
    convert_to_orbax(source, target)
elif step == "verify":
    assert verify_checkpoint(source) == []
else:
    export(source, target, "hub")
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scratch", type=Path, required=True, help="a directory on the same disk; it is emptied")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source, scratch = arguments.checkpoint, arguments.scratch
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, {arguments.rounds} rounds")

    figures: dict[str, list[tuple[float, int]]] = {}
    for number in range(arguments.rounds):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        steps = (
            ("copy", source, scratch / "copy"),
            ("convert", source, scratch / "orbax"),
            ("verify", scratch / "orbax", scratch / "none"),
            ("export", scratch / "orbax", scratch / "back"),
        )
        for step, start, end in steps:
            forget(scratch, source)
            figures.setdefault(step, []).append(copy(start, end) if step == "copy" else child(step, start, end))
            seconds, peak = figures[step][-1]
            print(f"  {number} {step:8} {size / seconds / 1e9:.3f} GB/s  peak {peak / 2**30:.2f} GiB", flush=True)
            if step == "copy":
                shutil.rmtree(end)
        tell_whether_equal(source, scratch / "back")
    shutil.rmtree(scratch)

    print(f"\n| step | GB/s, median ({arguments.rounds} rounds) | spread | of the copy's rate | peak memory |")
    print("|---|---|---|---|---|")
    for step, measured in figures.items():
        rates = [size / seconds / 1e9 for seconds, _ in measured]
        ratios = [copied / seconds for (seconds, _), (copied, _) in zip(measured, figures["copy"], strict=True)]
        print(
            f"| {step} | {statistics.median(rates):.2f} | {min(rates):.2f}-{max(rates):.2f} | "
            f"{statistics.median(ratios):.0%} | {max(peak for _, peak in measured) / 2**30:.2f} GiB |"
        )


def copy(source: Path, target: Path) -> tuple[float, int]:
    started = time.perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        descriptor = os.open(target / path.name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - started, 0


def child(step: str, source: Path, target: Path) -> tuple[float, int]:
    command = [sys.executable, "-c", CHILD, step, str(source), str(target)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def forget(*directories: Path) -> None:
    """Drops what the page cache holds of these files, so that every step reads from the disk."""
    os.sync()
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def tell_whether_equal(first: Path, second: Path) -> None:
    from videollava_jax.weights import compare_checkpoints, open_checkpoint

    compared = compare_checkpoints(open_checkpoint(first), open_checkpoint(second))
    if compared.differences:
        raise SystemExit(f"the round trip is not equal: {compared.differences[:5]}")
    print(f"  round trip: {compared.equal} tensors equal to the bit")


if __name__ == "__main__":
    main()
