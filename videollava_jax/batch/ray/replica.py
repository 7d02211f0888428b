"""An engine in which a request that raises fails alone, and `AnswerLines`, for pipelines of Ray Data.

This module does not import Ray; Ray creates and calls these classes in its workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.form import either
from videollava_jax.batch.runner import BatchOptions, Runner, run_batch
from videollava_jax.engine import Request, Result
from videollava_jax.temporary import TemporaryPlace


class Replica:
    """Wraps a runner so that an exception fails only the request that caused it.

    Args:
      make_runner: makes the wrapped runner; called once.
    """

    def __init__(self, make_runner: Callable[[], Runner]):
        self._runner = make_runner()

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields one result for each request.

        After an exception all requests without a result are tried again one by one. Those that raise again have an
        error with the cause "engine_failed".

        Raises:
          MemoryError, RuntimeError: the device or the engine is at fault, not a request.
        """
        source = _TrackedRequests(requests)
        while True:
            try:
                for result in self._runner.run(source):
                    source.pending.pop(result.id, None)
                    yield result
                return
            except Exception as error:
                if error is source.error or isinstance(error, (MemoryError, RuntimeError)):
                    raise
            while source.pending:
                yield self._run_alone(source.pending.pop(next(iter(source.pending))))

    def _run_alone(self, request: Request) -> Result:
        try:
            (result,) = self._runner.run([request])
            return result
        except (MemoryError, RuntimeError):
            raise
        except Exception as error:
            line = f"the engine failed at this request ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            return Result(id=request.id, finish_reason="error", error=line, cause="engine_failed")


class _TrackedRequests:
    """Passes requests on; remembers those without a result, in `pending`, and an exception of their source."""

    def __init__(self, requests: Iterable[Request]):
        self._requests = iter(requests)
        self.pending: dict[str, Request] = {}
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
        self.pending[request.id] = request
        return request


class AnswerLines:
    """Answers lines of a job in `ray.data.Dataset.map_batches`: reads one column, adds another with the records.

    Each batch is run as a small job (see `runner`): its lines have any form except tables, and each gets one record,
    which has an `error` if it failed. Ids must differ within a batch. Lines whose answers are sampled need a `seed`,
    because otherwise it depends on the line's position in the batch, and Ray decides what a batch holds.

    Args:
      make_runner: makes an `Engine`, once in each replica.
      options: as of a job; without a `form`, it is jsonl. `max_error_rate`, `retry_errors` and `keep_ledger` are
        ignored.
      column: the column of lines, as text or bytes. Read them with `ray.data.read_text`: `ray.data.read_json` would
        give every line all fields that occur in any line.
    """

    def __init__(self, make_runner: Callable[[], Runner], options: BatchOptions | None = None, *, column: str = "text"):
        options = options or BatchOptions()
        if options.form is not None and not FORMS[options.form].json_lines:
            names = either([form.name for form in FORMS.values() if form.json_lines])
            raise ValueError(f"form: expected {names}, as tables are not lines; got {options.form}")
        self._replica = Replica(make_runner)
        self._options = dataclasses.replace(
            options, form=options.form or "jsonl", max_error_rate=1, retry_errors=False, keep_ledger=False
        )
        self._column = column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch with one more column, `record`: a line of JSON for each line.

        Args:
          batch: columns by name, arrays of the same length.

        Raises:
          ValueError: the column of lines is missing, or an id repeats.
        """
        if self._column not in batch:
            raise ValueError(f"expected lines in a column {self._column!r}, got {', '.join(batch)}")
        lines = [_one_line(line) for line in batch[self._column]]
        with TemporaryPlace("videollava-replica-") as directory:
            source, output = Path(directory, "lines"), Path(directory, "records")
            source.write_bytes(b"".join(line + b"\n" for line in lines))
            run_batch(source, output, lambda: self._replica, self._options)
            records = output.read_text(encoding="utf-8").split("\n")[:-1]
        return {**batch, "record": np.array(records, dtype=object)}


def _one_line(line: Any) -> bytes:
    """Returns a line as bytes without line breaks, which are only blanks in JSON. An empty line becomes "null"."""
    raw = line if isinstance(line, bytes) else str(line).encode("utf-8", "surrogatepass")
    return raw.replace(b"\n", b" ").replace(b"\r", b" ").strip() or b"null"
