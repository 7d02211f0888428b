"""`videollava serve` that also says how much processor time its threads have taken: `benchmarks/serving.py` runs it.

    python benchmarks/serving_ours.py ARGUMENTS

serves as `videollava serve ARGUMENTS` does. For each line on its standard input it prints the seconds that its threads
have taken so far, in JSON: `{"state": "spent", "engine": …, "device": …, "http": …}`. "engine" is the thread that owns
the device, "device" are XLA's threads, "http" are all others, with those of the process of HTTP.
"""

import json
import os
import sys
import threading
from pathlib import Path

from videollava_jax.cli import main


def spent() -> dict[str, float]:
    """Returns the seconds of processor time of the server so far, by what its threads do."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = dict.fromkeys(("engine", "device", "http"), 0.0)
    for task in Path("/proc/self/task").iterdir():
        name = names.get(int(task.name))
        kind = "device" if name is None else "engine" if name == "engine" else "http"
        found[kind] += thread_seconds(task)
    http = http_process(os.getpid())
    for task in [] if http is None else Path(f"/proc/{http}/task").iterdir():
        found["http"] += thread_seconds(task)
    return found


def http_process(server: int) -> str | None:
    """Returns the number of a server's process of HTTP, a child of its; None if it has none."""
    tasks = Path(f"/proc/{server}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    of_http = (child for child in children if b"serving.http_process" in Path(f"/proc/{child}/cmdline").read_bytes())
    return next(of_http, None)


def thread_seconds(task: Path) -> float:
    """Returns the processor time of a thread, seconds, by its directory in /proc; 0 if it has ended."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def answer_lines() -> None:
    """Prints a record for each line of the standard input."""
    for _ in sys.stdin:
        print(json.dumps({"state": "spent", **spent()}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    threading.Thread(target=answer_lines, daemon=True).start()
    sys.exit(main(["serve", *sys.argv[1:]]))
