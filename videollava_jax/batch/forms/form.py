"""The type of a form of lines, and what passes between it and the job: lines, parts of requests, tags. No JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.compressed import opened

if TYPE_CHECKING:
    from videollava_jax.engine import Result


DEEPEST = 100
"""The most levels of lists and objects in a line: Python's own recursion, in messages and copies, has room for them."""


@dataclass(frozen=True)
class Line:
    """A line of the input.

    Attributes:
      index: its position in the output: from 0, without blank lines.
      number: its line number in the file, from 1; the row in Parquet.
      fields: its content; empty if it cannot be parsed.
      error: why it cannot be parsed; None if it was.
      file: the file's name; "" if the input is one file.
    """

    index: int
    number: int
    fields: Mapping[str, Any]
    error: str | None = None
    file: str = ""


@dataclass(frozen=True)
class Tag:
    """The parts of an input line that its record repeats.

    Attributes:
      index: position in the output, from 0.
      number: line number in the input, from 1.
      id: the line's id; None if it has none.
      prompt: its question.
      file: the name of the file that has the line; "" if the input is one file.
    """

    index: int
    number: int
    id: str | int | None
    prompt: str
    file: str = ""

    @property
    def place(self) -> dict[str, Any]:
        """What a record says about where the line is: `line`, and with several files `file`."""
        return {**({"file": self.file} if self.file else {}), "line": self.number}


@dataclass(frozen=True)
class JobFacts:
    """Facts that all records of a job share.

    Attributes:
      model: the model's name.
      created: when the job began, seconds since 1970.
      digest: hash of the job's identity, from which answers get their ids.
    """

    model: str
    created: int
    digest: str

    def answer_id(self, tag: Tag) -> str:
        """Returns an id for the answer to a line, the same in every run of the job."""
        return hashlib.sha256(f"{self.digest}/{tag.index}".encode()).hexdigest()[:24]


@dataclass(frozen=True)
class RequestParts:
    """The parts of a request that a line gives.

    Attributes:
      arguments: arguments of `Request`, by name: a prompt with its media or a conversation, and how media are read.
      options: the generation options that the line sets, by name.
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any]


def read_json_lines(path: Path) -> Iterator[Line]:
    """Reads a file with one JSON object on each line; blank lines are skipped."""
    with opened(path) as file:
        index = 0
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            yield _json_line(index, number, raw)
            index += 1


def _json_line(index: int, number: int, raw: bytes) -> Line:
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Line(index, number, {}, f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Line(index, number, {}, f"not JSON ({error})")
    if not isinstance(value, dict):
        return Line(index, number, {}, f"expected a JSON object, got a {type(value).__name__}")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and _is_deeper(value, DEEPEST):
        return Line(index, number, {}, f"expected at most {DEEPEST} lists and objects inside each other, got more")
    return Line(index, number, value)


def _is_deeper(value: Any, depth: int) -> bool:
    """Returns whether a JSON value has lists and objects inside each other, more than `depth` levels of them."""
    level = [value]
    for _ in range(depth):
        level = [each for part in level for each in (part.values() if isinstance(part, dict) else part)]
        level = [each for each in level if isinstance(each, (dict, list))]
    return bool(level)


@dataclass(frozen=True, kw_only=True)
class LineForm:
    """A form of a job's lines.

    Attributes:
      name: as `--format` takes it.
      owner: whose form it is, for messages; "" for our own.
      suffixes: of files, in lower case, by which the form is recognised.
      id_key: the field that holds a line's id; JSON lines are recognised by it.
      prompt_key: the field that holds its question, for records that repeat it.
      read: reads the lines of a file, in order; a line that cannot be parsed has an `error`. Raises ValueError for a
        file that as a whole is not in this form.
      ask: turns the fields of a line into the parts of its request. Raises ValueError for a malformed or unsupported
        line.
      record: makes the record of a line, as an object for JSON. Takes the line's tag, its result, the kind of error
        (None for an answer) and the facts of the job.
    """

    name: str
    owner: str = ""
    suffixes: tuple[str, ...] = ()
    id_key: str
    prompt_key: str = "prompt"
    read: Callable[[Path], Iterator[Line]] = read_json_lines
    ask: Callable[[Mapping[str, Any]], RequestParts]
    record: Callable[[Tag, Result, str | None, JobFacts], Mapping[str, Any]]

    @property
    def json_lines(self) -> bool:
        """Whether each line is a JSON object, which has the same meaning in any file."""
        return self.read is read_json_lines


def either(names: Sequence[str]) -> str:
    """Returns names as an error message lists alternatives: "a, b or c"."""
    *before, last = names
    return f"{', '.join(before)} or {last}" if before else last
