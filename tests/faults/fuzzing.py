"""Opens mutated checkpoints one after another in a child with little memory, and counts the outcomes."""

from __future__ import annotations

import functools
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.bases import SWAP, Base, Case, Link, Moved, write_bases
from tests.faults.children import Child, Died, messages
from tests.faults.mutations import KINDS, make_case
from tests.faults.tables import Tally
from videollava_jax.weights.layouts import EMBEDDING, HEAD

SECONDS = 5
MEMORY = 8 * 2**30  # of address space on top of what the imports use; threads take much of it
RESIDENT = 300 * 2**20  # of memory in use, beyond the most that was in use before a case
LINE = 1000
"""Characters that a line of an error may have: names from hostile files must not flood the terminal."""


def fuzz(number: int, seed: int) -> list[Tally]:
    """Opens `number` mutations; returns a row for each kind."""
    tallies = {kind: Tally(f"mutations: {kind}") for kind in KINDS}
    tallies[SWAP].note = "only hashes from elsewhere find these"
    position, current = 0, next(iter(KINDS))

    def start() -> Child | None:
        return Child(_work, position, number, seed, say=True) if position < number else None

    for message in messages(start, 120):
        if isinstance(message, Died):
            outcome, detail, seconds = message.outcome, str(message), None
        else:
            position, current, outcome, detail, seconds = message
        if outcome != "begun":
            tallies[current].add(outcome, f"mutation {position} of seed {seed}: {detail}", seconds)
            position += 1
    return list(tallies.values())


def part(seed: int, scale: float) -> list[Tally]:
    """Opens `6000 * scale` mutations; see `tests.faults.parts`."""
    return fuzz(round(6000 * scale), seed)


class _Hang(BaseException):
    pass


def _work(say: Callable[[Any], None], first: int, number: int, seed: int) -> None:
    import transformers

    import videollava_jax.weights.checkpoint as checkpoint

    transformers.logging.set_verbosity_error()
    # The shapes of a model take 0.1 s to work out, and most mutations leave the configuration unchanged.
    checkpoint.parameter_shapes = functools.cache(checkpoint.parameter_shapes)  # type: ignore[attr-defined]

    def hang(*_: Any) -> None:
        raise _Hang

    signal.signal(signal.SIGVTALRM, hang)
    with tempfile.TemporaryDirectory() as place:
        bases = write_bases(Path(place))
        whole = {base.name: _contents(base.directory) for base in bases.values()}
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for position in range(first, number):
            case = make_case(bases, seed, position)
            say((position, case.kind, "begun", "", None))
            began = time.perf_counter()
            with _applied(bases[case.base], case):
                outcome, detail = _open(bases[case.base], case, whole[case.base])
            say(
                (position, case.kind, outcome, f"{case.base}: {case.note[:200]}: {detail}", time.perf_counter() - began)
            )


def _open(base: Base, case: Case, whole: dict[str, Any]) -> tuple[str, str]:
    """Opens a mutation; returns ("refused" | "accepted" | "undetectable", or one of `BAD`; why)."""
    from videollava_jax.weights import WeightsError

    before, started = _most_memory(), time.process_time()
    refused = ""
    # The alarm ends what would go on for ever; it may ring where Python drops exceptions, so the clock is read too.
    # Both go by the processor's time: other programs may be at work here.
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
    try:
        found = _contents(base.directory)
    except WeightsError as error:
        refused = str(error)
    except _Hang:
        pass
    except BaseException as error:
        return "crash", f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if (seconds := time.process_time() - started) > SECONDS:
        return "hang", f"took {seconds:.1f} s"
    if (grown := _most_memory() - before) > RESIDENT or "MemoryError" in refused:
        return "violation", f"took {grown / 2**20:.0f} MiB: {refused}"
    if refused:
        problem = message_problem(refused, base.directory)
        return ("violation", f"{problem}: {refused[:500]!r}") if problem else ("refused", "")
    if base.name == "tied" and found.get(HEAD) == found[EMBEDDING]:
        found.pop(HEAD)  # a configuration that does not tie it finds it in the file
    if found.keys() != whole.keys():
        return "silent", f"accepted with other tensors: {sorted(found.keys() ^ whole.keys())[:3]}"
    other = [name for name in whole if found[name] != whole[name]]
    if other and case.kind == SWAP:
        return "undetectable", ""
    return ("silent", f"accepted with other content: {other[:3]}") if other else ("accepted", "")


def message_problem(text: str, directory: Path) -> str:
    """Returns what is wrong with an error's text, which must name a file and have a short line for each problem."""
    if str(directory) not in text:
        return "an error that does not say where"
    if any(len(line) > LINE for line in text.split("\n")):
        return "an error with an endless line"
    if not all(line.isprintable() for line in text.split("\n")):
        return "an error with characters that cannot be printed"
    return ""


def _contents(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Returns dtype, shape and bytes of every tensor of a checkpoint, by our names."""
    from videollava_jax.config import ModelConfig
    from videollava_jax.weights import WeightsError, open_checkpoint, verify_checkpoint

    checkpoint = open_checkpoint(directory)
    # A conversion would write this configuration, and has to find the same again.
    if ModelConfig.from_hf(checkpoint.config.to_hf()) != checkpoint.config:
        raise AssertionError("a configuration that is read differently from how it was written")
    arrays = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    # Last, so that damage is met by what opens and reads as well.
    if (directory / "manifest.json").exists() and (problems := verify_checkpoint(directory)):
        raise WeightsError(f"{directory}:\n" + "\n".join(problems))
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


@contextmanager
def _applied(base: Base, case: Case) -> Iterator[None]:
    """Applies a case's changes to the checkpoint, and undoes them when the block ends."""
    outside = []
    try:
        for name, content in case.files.items():
            path = base.directory / name
            path.unlink(missing_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, Link):
                path.symlink_to(content.target)
            elif isinstance(content, Moved):
                moved = base.directory / content.place
                moved.write_bytes(base.files[name])
                outside.append(moved)
                path.symlink_to(content.place)
        yield
    finally:
        for path in outside:
            path.unlink()
        for name in case.files:
            (base.directory / name).unlink(missing_ok=True)
            if name in base.files:
                (base.directory / name).write_bytes(base.files[name])


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
