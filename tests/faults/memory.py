"""What processes hold and have held, by /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def family(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    found, waiting = list[int](), [pid]
    while waiting:
        found.append(pid := waiting.pop())
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the seconds of the processor that a process and its descendants have used, so far as they are known."""
    total = 0
    for one in family(pid):
        with suppress(OSError):
            total += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def most_memory(pid: int | str = "self") -> int:
    """Returns the most bytes that a process has held; 0 for one that has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def forgotten_peak() -> int:
    """Makes the kernel forget the most that this process has held; returns the bytes that it holds now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return most_memory()
