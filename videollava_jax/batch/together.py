"""The lines that are left to do, those about the same media one after the other: each medium is read once for all."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.batch.formats import Defaults, prompt_text, to_request, with_sources
from videollava_jax.batch.lines import Form, line_id, read_lines
from videollava_jax.batch.records import Tag
from videollava_jax.engine import Request

HELD_LINES = 2**16
HELD_CHARACTERS = 2**27
"""Of the media's names: `data:` URLs are as long as what they hold."""


@dataclass(frozen=True)
class Left:
    """A line that is left to do.

    Attributes:
      tag: what its record repeats of it.
      request: its media as the line names them; or why it has none.
      about: equal for lines that name the same media; a line without media has its own.
      characters: of the media's names.
    """

    tag: Tag
    request: Request | ValueError
    about: bytes | int
    characters: int


def left_lines(source: Path, form: Form, defaults: Defaults, done: Container[int]) -> Iterator[Left]:
    """The lines of an input that are not done, in its order."""
    for line in read_lines(source, form):
        if line.index in done:
            continue
        names: list[str] = []

        def note(kind: str, name: Any, names: list[str] = names) -> Any:
            names.append(f"{kind} {name}")
            return name

        request: Request | ValueError
        try:
            request = with_sources(to_request(line, form, defaults), note)
        except ValueError as error:
            request = error.with_traceback(None)  # which holds the line
        about = hashlib.blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=16).digest()
        tag = Tag(line.index, line.number, line_id(line, form), prompt_text(line, form))
        yield Left(tag, request, about if names else line.index, sum(map(len, names)))


def together(
    lines: Iterable[Left], most_lines: int = HELD_LINES, most_characters: int = HELD_CHARACTERS
) -> Iterator[Left]:
    """The same lines: each medium's after its first one, as far as they come while no more than so many are held."""
    groups: OrderedDict[bytes | int, deque[Left]] = OrderedDict()
    incoming, count, characters = iter(lines), 0, 0
    while True:
        while count < most_lines and characters < most_characters and (line := next(incoming, None)) is not None:
            groups.setdefault(line.about, deque()).append(line)
            count, characters = count + 1, characters + line.characters
        if not groups:
            return
        about, group = next(iter(groups.items()))
        if not group:  # only now: what came since its last line was taken might have been about the same
            del groups[about]
            continue
        line = group.popleft()
        count, characters = count - 1, characters - line.characters
        yield line
