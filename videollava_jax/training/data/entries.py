"""Reads files of samples one entry at a time: a JSON list, or a JSON object a line. No JAX in here."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from videollava_jax.compressed import opened
from videollava_jax.training.data.skips import SampleError

_CHUNK = 2**22
"""Characters of a JSON list that are read at a time."""
_SPACE = re.compile(r"\s*")


def entries(path: Path) -> Iterator[Any]:
    """Yields the elements of a file's list or of its lines, and a `SampleError` for each line that is not JSON.

    Raises:
        ValueError: a list that is not JSON, or a compressed file that is damaged or cut short.
        OSError: the file cannot be read.
    """
    with _text(path) as file:
        text = _Text(file)
        if text.peek() == "[":
            try:
                yield from text.listed()
            except ValueError as error:
                raise ValueError(f"{path}: expected a JSON list, or a JSON object a line; {error}") from None
            return
    with _text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _line(line, number)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    # Bytes that are not UTF-8 become halves of surrogate pairs, so that only the sample that has them is bad.
    with opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape") as file:
        yield file


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return SampleError(f"line {number} is not JSON ({error})")


class _Text:
    """A file's text, read piece by piece: only the value that is being parsed and a piece after it are in memory.

    Parsed as a whole, a list would take several times the memory of its file.
    """

    def __init__(self, file: TextIO):
        self._file, self._text, self._at = file, "", 0

    def peek(self) -> str:
        """Returns the next character that is not a space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def listed(self) -> Iterator[Any]:
        """Yields the elements of the list that begins here.

        Raises:
            ValueError: this is not a list, or something follows it.
        """
        count, expected = 0, "["
        while (found := self.peek()) and found in expected:
            self._at += 1
            if found == "]":
                break
            if self.peek() != "]" or found == ",":
                try:
                    yield self._value()
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"after {count} elements: {error}") from None
                count += 1
            expected = ",]"
        if found != "]" or self.peek():
            raise ValueError(f"after {count} elements: expected {' or '.join(expected)}, or the end after a ]")

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            # A number could continue in the next piece.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _more(self) -> bool:
        piece = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


def _decode(text: str, at: int) -> tuple[Any, int]:
    return json.JSONDecoder().raw_decode(text, at)
