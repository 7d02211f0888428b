"""Reads the lines that are left to answer, and puts lines about the same media together, so each is read once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.batch.forms.form import Tag
from videollava_jax.batch.lines import read_lines
from videollava_jax.batch.records import tag_of
from videollava_jax.batch.requests import Defaults, to_request, with_sources
from videollava_jax.engine import Request

HELD_LINES = 2**16
HELD_CHARACTERS = 2**27
"""The most characters of held lines' media names; a `data:` URL is as long as its content."""


@dataclass(frozen=True)
class PendingLine:
    """A line that has no record yet.

    Attributes:
      tag: the parts of the line that its record will repeat.
      request: its request, with media named as in the line; or the error why there is none.
      about: equal for lines that name the same media, different for lines without media.
      characters: length of the names of its media.
    """

    tag: Tag
    request: Request | ValueError
    about: bytes | int
    characters: int


def pending_lines(files: Sequence[Path], form: str, defaults: Defaults, done: Container[int]) -> Iterator[PendingLine]:
    """Yields the lines of an input that are not in `done`, in the input's order."""
    for line in read_lines(files, form):
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
            request = error.with_traceback(None)  # the traceback would keep the line in memory
        about = hashlib.blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=16).digest()
        yield PendingLine(tag_of(line, form), request, about if names else line.index, sum(map(len, names)))


def grouped_by_media(
    lines: Iterable[PendingLine], most_lines: int = HELD_LINES, most_characters: int = HELD_CHARACTERS
) -> Iterator[PendingLine]:
    """Yields the lines reordered: after a line about some media come all others about them that are held by then.

    Args:
      lines: in the input's order.
      most_lines: how many lines may be held.
      most_characters: how many characters of media names may be held.
    """
    groups: OrderedDict[bytes | int, deque[PendingLine]] = OrderedDict()
    incoming, count, characters = iter(lines), 0, 0
    while True:
        while count < most_lines and characters < most_characters and (line := next(incoming, None)) is not None:
            groups.setdefault(line.about, deque()).append(line)
            count, characters = count + 1, characters + line.characters
        if not groups:
            return
        about, group = next(iter(groups.items()))
        if not group:  # not sooner, as the lines read since its last line was taken might have joined it
            del groups[about]
            continue
        line = group.popleft()
        count, characters = count - 1, characters - line.characters
        yield line
