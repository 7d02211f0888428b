"""Reads the kinds of files that tasks are published in, and checks what is in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
"""In the order in which the authors' programs look for a video."""


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: it is not JSON.
    """
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got something else at byte {error.start}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a list of objects: a JSON array, or an object on each line.

    Raises:
      ValueError: it is neither.
    """
    text = _read_text(path)
    rows: list[dict[str, Any]]
    places: list[str]
    if text.lstrip()[:1] == "[":
        rows = read_json(path)
        places = [f"{path}, entry {i}" for i in range(1, len(rows) + 1)]
    else:
        rows, places = [], []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            places.append(f"{path}, line {number}")
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{places[-1]}: expected a JSON object, got something else ({error})") from None
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected an object, got a {type(row).__name__}")
    return rows


def read_table(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    """Reads a table with a first line of column names, as strings.

    Raises:
      ValueError: a row has more or fewer fields than there are columns.
    """
    header: list[str] = []
    csv.field_size_limit(2**30)  # images in base64
    with io.StringIO(_read_text(path), newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"{path}, line {rows.line_num}: not a table ({error})") from None
            if not row:
                continue
            if not header:
                header = row
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected {len(header)} fields as in its first line, got {len(row)}"
                )
            yield dict(zip(header, row, strict=True))


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Reads a Parquet file as a list of rows.

    Raises:
      ImportError: pyarrow is not installed.
    """
    from videollava_jax.extras import installs

    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"{path}: Parquet needs pyarrow: {installs('parquet')}") from None
    rows: list[dict[str, Any]] = list(parquet.read_table(path).to_pylist())
    return rows


def object_of(value: Any, path: Path) -> Mapping[str, Any]:
    """Returns an object.

    Raises:
      ValueError: the value is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object, got {_short(value)}")
    return value


def rows_under(path: Path, key: str) -> list[Any]:
    """Reads the list under a key of a file's JSON object.

    Raises:
      ValueError: there is none.
    """
    found = object_of(read_json(path), path).get(key)
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list under {key!r}, got {_short(found)}")
    return found


def texts_of(row: Any, key: str, path: Path, count: int | None = None) -> tuple[str, ...]:
    """Returns a list of texts, of this number if one is given, from a row.

    Raises:
      ValueError: there is none.
    """
    found = object_of(row, path).get(key)
    if not isinstance(found, list) or not found or count not in (None, len(found)):
        raise ValueError(f"{path}: expected a list of {count or 'some'} texts under {key!r}, got {_short(found)}")
    return tuple(text_of({key: each}, key, path) for each in found)


def index_of(row: Any, key: str, path: Path, below: int) -> int:
    """Returns a whole number from 0 to below a bound, from a row.

    Raises:
      ValueError: there is none.
    """
    text = text_of(row, key, path)
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < below):
        raise ValueError(f"{path}: expected a whole number from 0 to {below - 1} under {key!r}, got {text[:100]!r}")
    return int(text)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return "nothing" if value is None else text if len(text) <= 100 else f"{text[:100]}…"


def text_of(row: Any, key: str, path: Path) -> str:
    """Returns a text, or a number as a text, from a row.

    Raises:
      ValueError: there is none.
    """
    value = object_of(row, path).get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        got = "nothing" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{path}: expected a text under {key!r}, got {got} in {json.dumps(row, default=str)[:200]}")
    return str(value)


def by_id(rows: Iterable[Mapping[str, Any]], key: str, path: Path) -> dict[str, Mapping[str, Any]]:
    """Returns rows by their ids.

    Raises:
      ValueError: an id is missing or comes twice.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = text_of(row, key, path)
        if name in found:
            raise ValueError(f"{path}: expected each {key!r} once, but {name!r} comes again")
        found[name] = row
    return found


def first_existing(root: Path, names: Sequence[str]) -> str:
    """Returns the first of some names that is in a directory; the first one where none is."""
    return next((name for name in names if (root / name).exists()), names[0])


def video_named(root: Path, folder: str, name: str) -> str:
    """Returns a video's path under the root; as the authors' programs, with the first suffix that is there."""
    return first_existing(root, [f"{folder}/{name}{suffix}" for suffix in VIDEO_SUFFIXES])


def first_word(question: str) -> str:
    """Returns the word that a question begins with, in lower case, by which video QA is often reported."""
    word = question.split(maxsplit=1)[0].lower().strip("?,.'") if question.split() else ""
    return (
        word if word in ("what", "who", "how", "when", "where", "which", "why", "is", "are", "does", "do") else "other"
    )
