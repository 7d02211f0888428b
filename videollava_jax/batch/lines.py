"""Reads a job's input as numbered lines: recognises its form, parses lines to dictionaries, checks ids. No JAX."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

Form = Literal["jsonl", "openai", "llava", "csv", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)
ID_KEYS: Mapping[Form, str] = {
    "jsonl": "id",
    "openai": "custom_id",
    "llava": "question_id",
    "csv": "id",
    "parquet": "id",
}
_LOOKED_AT = 100
"""How many lines `recognise` reads at most; more than one, as the first may be damaged."""
_LONGEST_FIELD = 2**30
"""The most characters in a CSV field; Python's default of 131,072 is too few for an image."""


@dataclass(frozen=True)
class Line:
    """A line of the input.

    Attributes:
      index: its position in the output: from 0, without blank lines.
      number: its line number in the file, from 1; the row in Parquet.
      fields: its content; empty if it cannot be parsed.
      error: why it cannot be parsed; None if it was.
    """

    index: int
    number: int
    fields: Mapping[str, Any]
    error: str | None = None


def recognise(path: Path) -> Form:
    """Recognises the form of an input by its suffix, or by the keys of its first lines.

    Raises:
      ValueError: it has none of the known forms.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "csv"
    if suffix in (".parquet", ".pq"):
        return "parquet"
    first = None
    for line in islice(_json_lines(path), _LOOKED_AT):
        for form in ("openai", "llava", "jsonl"):
            if ID_KEYS[form] in line.fields:
                return form
        first = first or line
    if first is None:
        raise ValueError(f"{path}: expected a question on each line, but the file holds no lines")
    what = first.error or f"an object with the keys {', '.join(map(repr, first.fields)) or '(none)'}"
    raise ValueError(
        f"{path}, line {first.number}: expected a JSON object with 'id', 'custom_id' (OpenAI) or 'question_id' "
        f"(LLaVA), got {what}; --format says which form it is ({', '.join(FORMS)})"
    )


def read_lines(path: Path, form: Form) -> Iterator[Line]:
    """Reads the lines of an input, in order. A line that cannot be parsed has an `error`.

    Raises:
      ValueError: the file as a whole cannot be read in this form.
      OSError: it cannot be opened.
    """
    if form == "csv":
        return _csv_lines(path)
    return _parquet_lines(path) if form == "parquet" else _json_lines(path)


def line_id(line: Line, form: Form) -> str | int | None:
    """Returns the id of a line, a string or an integer; None if it has none or its value is neither."""
    value = line.fields.get(ID_KEYS[form])
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return value


def count_lines(lines: Iterable[Line], form: Form) -> int:
    """Counts the lines and checks that their ids differ; "1" and 1 are the same id.

    Raises:
      ValueError: an id occurs more than once; the message names its lines.
    """
    first: dict[str, int] = {}
    again: dict[str, list[int]] = {}
    count = 0
    for line in lines:
        count += 1
        if (found := line_id(line, form)) is not None:
            before = first.setdefault(str(found), line.number)
            if before != line.number:
                again.setdefault(str(found), [before]).append(line.number)
    if again:
        repeated = [f"{_short(name)} on lines {', '.join(map(str, numbers[:5]))}" for name, numbers in again.items()]
        more = f"; and {len(repeated) - 10} more" if len(repeated) > 10 else ""
        raise ValueError(
            f"expected a different id on each line, but {len(again)} come more than once: "
            f"{'; '.join(repeated[:10])}{more}"
        )
    return count


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")


def _json_lines(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
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
    return Line(index, number, value)


def _csv_lines(path: Path) -> Iterator[Line]:
    csv.field_size_limit(_LONGEST_FIELD)
    with open(path, "rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        if "id" not in header or "prompt" not in header or len(set(header)) != len(header):
            raise ValueError(
                f"{path}: expected a first line that names the columns, id and prompt among them, each once; "
                f"got {', '.join(header)[:200] or 'nothing'}"
            )
        index = 0
        while True:
            number = rows.line_num + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Line(index, number, {}, f"not CSV ({error})")
                index += 1
                continue
            if row is None:
                return
            if row:
                yield _csv_line(index, number, header, row)
                index += 1


def _csv_line(index: int, number: int, header: list[str], row: list[str]) -> Line:
    if len(row) != len(header):
        return Line(index, number, {}, f"expected {len(header)} columns, got {len(row)}")
    try:
        "".join(row).encode()
    except UnicodeEncodeError:  # surrogateescape has turned bytes that are not UTF-8 into lone surrogates
        return Line(index, number, {}, "not UTF-8")
    return Line(index, number, {name: value for name, value in zip(header, row, strict=True) if value})


def _parquet_lines(path: Path) -> Iterator[Line]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: Parquet is read with pyarrow, which is not installed: pip install 'videollava-jax[parquet]'"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(os.fspath(path))
        index = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield Line(index, index + 1, {name: value for name, value in row.items() if value is not None})
                index += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file that pyarrow reads ({type(error).__name__})") from None
