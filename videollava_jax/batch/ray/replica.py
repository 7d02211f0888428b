"""An engine that stands for many: requests that break it fail alone; and `AnswerLines`, for pipelines of Ray Data.

Nothing here imports Ray: it calls these classes where its workers are.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.batch.runner import BatchOptions, Runner, run_batch
from videollava_jax.engine import Request, Result


class Replica:
    """A runner around another, for which an exception is the end of one request and not of those beside it.

    Args:
      make_runner: called once.
    """

    def __init__(self, make_runner: Callable[[], Runner]):
        self._runner = make_runner()

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result for each request.

        After an exception the requests that were under way are tried again, each by itself, and the one that raises
        again has an error with the cause "engine_failed".

        Raises:
          MemoryError, RuntimeError: the device or the engine is at fault, and no request.
        """
        source = _Watched(requests)
        while True:
            try:
                for result in self._runner.run(source):
                    source.under_way.pop(result.id, None)
                    yield result
                return
            except Exception as error:
                if error is source.error or isinstance(error, (MemoryError, RuntimeError)):
                    raise
            while source.under_way:
                yield self._alone(source.under_way.pop(next(iter(source.under_way))))

    def _alone(self, request: Request) -> Result:
        try:
            (result,) = self._runner.run([request])
            return result
        except (MemoryError, RuntimeError):
            raise
        except Exception as error:
            line = f"the engine failed at this request ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            return Result(id=request.id, finish_reason="error", error=line, cause="engine_failed")


class _Watched:
    """Requests on their way into a runner: those that have no result yet, and what their source has raised."""

    def __init__(self, requests: Iterable[Request]):
        self._requests = iter(requests)
        self.under_way: dict[str, Request] = {}
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        try:
            request = next(self._requests)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.under_way[request.id] = request
        return request


class AnswerLines:
    """For `ray.data.Dataset.map_batches`: lines of a job in one column, and their records in another.

    A batch is a small job of its own (see `runner`): its lines are in any of the forms but tables, what is wrong with
    one is its record's `error`, and every line has one record. Its ids have to differ within the batch. Answers that
    are drawn need a `seed` in their line: what a batch holds is for Ray to say, and so is a line's place in it.

    Args:
      make_runner: makes an `Engine`, once in each replica.
      options: a job's; `form` is jsonl where they say none; `max_error_rate`, `retry_errors` and
        `keep_ledger` do not apply.
      column: of the lines, as text or bytes. They have to come as they were written: `ray.data.read_json` would give
        all lines the fields that any of them has.
    """

    def __init__(self, make_runner: Callable[[], Runner], options: BatchOptions | None = None, *, column: str = "text"):
        options = options or BatchOptions()
        if options.form in ("csv", "parquet"):
            raise ValueError(f"form: expected one whose lines stand for themselves, got {options.form}")
        self._replica = Replica(make_runner)
        self._options = dataclasses.replace(
            options, form=options.form or "jsonl", max_error_rate=1, retry_errors=False, keep_ledger=False
        )
        self._column = column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with one column more, `record`: a line of JSON for each line.

        Args:
          batch: arrays of one length, by column.

        Raises:
          ValueError: no such column; an id that comes twice.
        """
        if self._column not in batch:
            raise ValueError(f"expected lines in a column {self._column!r}, got {', '.join(batch)}")
        lines = [_one_line(line) for line in batch[self._column]]
        with tempfile.TemporaryDirectory(prefix="videollava-") as place:
            source, output = Path(place, "lines"), Path(place, "records")
            source.write_bytes(b"".join(line + b"\n" for line in lines))
            run_batch(source, output, lambda: self._replica, self._options)
            records = output.read_text(encoding="utf-8").split("\n")[:-1]
        return {**batch, "record": np.array(records, dtype=object)}


def _one_line(line: Any) -> bytes:
    """A line without its ends; in JSON they are blanks. An empty one is no question, and has its record too."""
    raw = line if isinstance(line, bytes) else str(line).encode("utf-8", "surrogatepass")
    return raw.replace(b"\n", b" ").replace(b"\r", b" ").strip() or b"null"
