"""Reads mutated media one after another in a child process, and prints how each format fared.

    python -m tests.faults.media --files 20000 --seed 0
    python -m tests.faults.media --files 1 --first 4711 --seed 0 --keep DIR      writes that mutation to DIR

What must not come is a crash, a hang, an error of another type than `MediaError`, much memory, or a video that is read
without an error though it has another number of frames than its container says. The exit status is 1 if there were any.
Containers that do not say how many frames they hold (transport and program streams, FLV, ASF, raw streams, APNG) may
lose some; so may a recording that begins within a group, at its beginning, and an MP4 whose edit list or table of
keyframes was changed, as any value of theirs may be meant.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Died, messages
from tests.faults.media_mutations import Whole, fingerprint, free_choice, mutated, write_wholes
from tests.faults.memory import forgotten_peak, most_memory
from tests.faults.report import PAGE, by_row, dated, into_page
from tests.faults.tables import Tally, said, table

SECONDS = 10
"""A file of some kilobytes that takes longer hangs."""
PIXELS = 10**6
"""The limit of the reads: no file has more than 5,000."""
MEMORY = 400 * 2**20
"""The most bytes that one may take: a frame of the most pixels takes 3 MB, and decoders keep a dozen a thread."""


def fuzz_media(number: int, seed: int, first: int = 0) -> list[Tally]:
    """Reads `number` mutations from the one numbered `first` on; returns a row for each file that was changed."""
    with tempfile.TemporaryDirectory() as place:
        wholes = write_wholes(Path(place))
    tallies = {whole.name: Tally(whole.name) for whole in wholes}
    tallies[wholes[0].name].note = f"the files without fault are {fingerprint(wholes)}"
    position, current = first, wholes[0].name

    def start() -> Child | None:
        end = first + number
        return Child(_work, wholes, position, end, seed, say=True) if position < end else None

    for message in messages(start, 12 * SECONDS):
        if isinstance(message, Died):
            outcome, detail, seconds, memory = message.outcome, str(message), None, None
        else:
            position, current, outcome, detail, seconds, memory = message
        if outcome != "begun":
            tallies[current].add(outcome, f"mutation {position} of seed {seed}: {detail}", seconds, memory)
            position += 1
    return list(tallies.values())


def part(seed: int, scale: float) -> list[Tally]:
    """Reads `8000 * scale` changed files; see `tests.faults.parts`."""
    return fuzz_media(round(8000 * scale), seed)


class _Hang(BaseException):
    pass


def _work(say: Callable[[Any], None], wholes: list[Whole], first: int, end: int, seed: int) -> None:
    def hang(*_: Any) -> None:
        raise _Hang

    signal.signal(signal.SIGVTALRM, hang)
    totals = {whole.name: _read(whole, whole.content) for whole in wholes}
    for position in range(first, end):
        whole, kind, content = mutated(wholes, seed, position)
        say((position, whole.name, "begun", "", None, None))
        began, before = time.perf_counter(), forgotten_peak()
        outcome, detail = _tried(whole, content, totals[whole.name])
        seconds, memory = time.perf_counter() - began, most_memory() - before
        if memory > MEMORY:
            outcome, detail = "violation", f"took {memory / 2**20:.0f} MiB"
        say((position, whole.name, outcome, f"{kind}: {detail}", seconds, memory))


def _read(whole: Whole, content: bytes) -> int:
    from videollava_jax.media import MediaLimits, read_image, read_video

    limits = MediaLimits(max_pixels=PIXELS)
    if whole.states is None:
        read_image(content, limits)
        return 1
    return read_video(content, limits=limits).total_frames


def _tried(whole: Whole, content: bytes, total: int) -> tuple[str, str]:
    """Reads a mutation; returns ("refused" | "read" | "read, another total", or one of `BAD`; why)."""
    from videollava_jax.media import MediaError

    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # of the processor: other programs may be at work here
    try:
        found = _read(whole, content)
    except MediaError as error:
        return ("violation", f"two lines: {error}") if "\n" in str(error) else ("refused", "")
    except _Hang:
        return "hang", f"took over {SECONDS} s"
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if found == total:
        return "read", ""
    if why := free_choice(whole, content, total, found):
        return why, ""
    return ("silent", f"{found} frames for {total}") if whole.states else ("read, another total", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="how many mutations; default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="the number of the first; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all of them; default: %(default)s")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    parser.add_argument("--keep", type=Path, help="write the mutations to this directory instead of reading them")
    asked = parser.parse_args()
    if asked.keep:
        with tempfile.TemporaryDirectory() as place:
            wholes = write_wholes(Path(place))
        asked.keep.mkdir(parents=True, exist_ok=True)
        for number in range(asked.first, asked.first + asked.files):
            whole, kind, content = mutated(wholes, asked.seed, number)
            path = asked.keep / f"{number}-{whole.name.replace(', ', '.').replace(' ', '-')}"
            path.write_bytes(content)
            print(f"{path}: {kind}")
        return 0
    started = time.perf_counter()
    tallies = fuzz_media(asked.files, asked.seed, asked.first)
    seconds, files = time.perf_counter() - started, tallies[0].note
    print(f"seed {asked.seed}, mutations from {asked.first} on, {seconds:.0f} s, {files}\n")
    print(table(tallies))
    if asked.write:
        first = f" --first {asked.first}" if asked.first else ""
        command = f"python -m tests.faults.media --files {asked.files}{first} --seed {asked.seed}"
        into_page(
            PAGE,
            "changed files",
            f"`{command}` <!-- not run: minutes -->, {seconds:.0f} s, {dated()}; {files}.\n\n"
            + by_row(tallies, "file that was changed"),
        )
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
