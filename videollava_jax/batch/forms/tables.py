"""Tables, CSV and Parquet: columns id, prompt, image and video; other columns are ignored. Records as of our form."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from videollava_jax.batch.forms.fields import images_and_videos, question
from videollava_jax.batch.forms.form import Line, LineForm, RequestParts
from videollava_jax.batch.forms.ours import record
from videollava_jax.compressed import opened
from videollava_jax.extras import installs

_LONGEST_FIELD = 2**30
"""The most characters in a CSV field; Python's default of 131,072 is too few for an image."""


def _ask(fields: Mapping[str, Any]) -> RequestParts:
    media = images_and_videos(fields)
    return RequestParts(question(fields.get("prompt"), media), {})


def _read_csv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(_LONGEST_FIELD)
    with opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
        rows = _rows(file)
        _, header = next(rows, (1, []))
        if not isinstance(header, list):
            raise ValueError(f"{path}, line 1: not CSV ({header})")
        if "id" not in header or "prompt" not in header or len(set(header)) != len(header):
            raise ValueError(
                f"{path}: expected a first line that names the columns, id and prompt among them, each once; "
                f"got {', '.join(header)[:200] or 'nothing'}"
            )
        for index, (number, row) in enumerate(rows):
            if isinstance(row, list):
                yield _csv_line(index, number, header, row)
            else:
                yield Line(index, number, {}, f"not CSV ({row})")


def _rows(file: Iterator[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yields each row that is not empty, or its error, with the number of its first line.

    After an error reading goes on at the next line. So a quote that is never closed costs its own line, though to a
    parser of CSV it makes one field of all that follows it.
    """
    number = 1
    again: deque[str] = deque()  # lines that were taken for a part of a row that ended in an error
    while True:
        taken: list[str] = []

        def lines(taken: list[str] = taken) -> Iterator[str]:
            while (line := again.popleft() if again else next(file, "")) != "":
                taken.append(line)
                yield line

        try:
            row = next(csv.reader(lines(), strict=True), None)
        except csv.Error as error:
            again.extendleft(reversed(taken[1:]))
            yield number, error
            number += 1
            continue
        if row is None:
            return
        if row:
            yield number, row
        number += len(taken)


def _csv_line(index: int, number: int, header: list[str], row: list[str]) -> Line:
    if len(row) != len(header):
        return Line(index, number, {}, f"expected {len(header)} columns, got {len(row)}")
    try:
        "".join(row).encode()
    except UnicodeEncodeError:  # surrogateescape has turned bytes that are not UTF-8 into lone surrogates
        return Line(index, number, {}, "not UTF-8")
    return Line(index, number, {name: value for name, value in zip(header, row, strict=True) if value})


def _read_parquet(path: Path) -> Iterator[Line]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: Parquet is read with pyarrow, which is not installed: {installs('parquet')}"
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


CSV = LineForm(name="csv", suffixes=(".csv",), id_key="id", read=_read_csv, ask=_ask, record=record)
PARQUET = LineForm(
    name="parquet", suffixes=(".parquet", ".pq"), id_key="id", read=_read_parquet, ask=_ask, record=record
)
