"""Measures conversion, and a plain copy of the same files on the same disk for comparison.

    python benchmarks/random_checkpoint.py out/7b
    python benchmarks/conversion.py out/7b --scratch out/scratch

Each round copies the checkpoint, converts it to Orbax, verifies the result, and exports it back to the hub's layout.
Files are dropped from the page cache before each step and flushed to the disk within it. Every step runs in a separate
process. Its peak memory and its CPU seconds (user and system, including imports) are printed; on a machine that others
use too they say more than the rate. The tensors of the round trip are compared bit for bit.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHILD = """
import json, os, resource, shutil, sys, time
from pathlib import Path
step, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if step != "copy":
    from videollava_jax.weights import convert_to_orbax, export, verify_checkpoint
started = time.perf_counter()
if step == "copy":
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        descriptor = os.open(target / path.name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
elif step == "convert":
    convert_to_orbax(source, target)
elif step == "verify":
    assert verify_checkpoint(source) == []
else:
    export(source, target, "hub")
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([seconds, used.ru_utime, used.ru_stime, used.ru_maxrss * 1024]))
"""


@dataclass(frozen=True)
class Figures:
    """The cost of a step.

    Attributes:
      seconds: wall time, without imports.
      user, system: CPU seconds.
      peak: the most bytes of memory.
    """

    seconds: float
    user: float
    system: float
    peak: int

    @property
    def cpu(self) -> float:
        """CPU seconds, user and system."""
        return self.user + self.system


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scratch", type=Path, required=True, help="a directory on the same disk; it is emptied")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source, scratch = arguments.checkpoint, arguments.scratch
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, {arguments.rounds} rounds")

    figures: dict[str, list[Figures]] = {}
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
            taken = child(step, start, end)
            figures.setdefault(step, []).append(taken)
            print(
                f"  {number} {step:8} {size / taken.seconds / 1e9:.3f} GB/s  CPU {taken.cpu:.1f} s (user "
                f"{taken.user:.1f}, system {taken.system:.1f})  peak {taken.peak / 2**30:.2f} GiB",
                flush=True,
            )
            if step == "copy":
                shutil.rmtree(end)
        tell_whether_equal(source, scratch / "back")
    shutil.rmtree(scratch)

    print(
        f"\n{arguments.rounds} rounds\n\n"
        "| step | GB/s, median | spread | relative to copy | CPU seconds, median | peak memory |"
    )
    print("|---|---|---|---|---|---|")
    for step, measured in figures.items():
        rates = [size / taken.seconds / 1e9 for taken in measured]
        ratios = [copied.seconds / taken.seconds for taken, copied in zip(measured, figures["copy"], strict=True)]
        print(
            f"| {step} | {statistics.median(rates):.2f} | {min(rates):.2f}-{max(rates):.2f} | "
            f"{statistics.median(ratios):.0%} | {statistics.median(taken.cpu for taken in measured):.1f} | "
            f"{max(taken.peak for taken in measured) / 2**30:.2f} GiB |"
        )


def child(step: str, source: Path, target: Path) -> Figures:
    """Runs a step in a separate process."""
    command = [sys.executable, "-c", CHILD, step, str(source), str(target)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def forget(*directories: Path) -> None:
    """Drops the files of these directories from the page cache, so that every step reads from the disk."""
    os.sync()
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


COMPARE = """
import sys
from pathlib import Path
from videollava_jax.weights import compare_checkpoints, open_checkpoint
compared = compare_checkpoints(*(open_checkpoint(Path(name)) for name in sys.argv[1:]))
if compared.differences:
    raise SystemExit(f"the round trip is not equal: {compared.differences[:5]}")
print(f"  round trip: {compared.equal} tensors equal bit for bit")
"""


def tell_whether_equal(first: Path, second: Path) -> None:
    """Compares two checkpoints, in a separate process because this one's memory would count in every later step."""
    subprocess.run([sys.executable, "-c", COMPARE, str(first), str(second)], check=True)


if __name__ == "__main__":
    main()
