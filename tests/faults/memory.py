"""What processes hold and have held, by /proc."""

from __future__ import annotations

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
