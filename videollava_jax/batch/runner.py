"""Runs a job: gives the lines without a record to a runner as requests, and commits its results to the ledger."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.form import JobFacts, either
from videollava_jax.batch.identity import identity_digest, job_identity
from videollava_jax.batch.job_files import LedgerError, Paths, locked, no_space, remove
from videollava_jax.batch.ledger import Ledger
from videollava_jax.batch.lines import count_lines, read_lines, recognise
from videollava_jax.batch.media.spool import Fetch, Resolver, Spool, SpoolError
from videollava_jax.batch.output import read_receipt
from videollava_jax.batch.pending import PendingLine, grouped_by_media, pending_lines
from videollava_jax.batch.records import record
from videollava_jax.batch.requests import Defaults, with_sources
from videollava_jax.batch.summary import ErrorRate, Summary
from videollava_jax.engine import Request, Result
from videollava_jax.media.urls import short_name

_FETCHERS, _AHEAD = 8, 32
"""How many threads find media, and how many lines ahead of the runner they work."""


class Runner(Protocol):
    """An `Engine`, or anything else that gives one result for each request."""

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields one result for each request, in any order."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The options of a job.

    Attributes:
      form: the name of the input's form in `FORMS`; None recognises it.
      defaults: options for lines that set none of their own.
      media_root: the directory that media must be in; None allows any path.
      fetch: fetches http and https URLs (a `remote.Fetcher`); None refuses them.
      max_bytes: the most bytes of one medium.
      max_error_rate: the run ends when more than this share of lines has failed, among those whose media were looked
        for or among those that were answered.
      retry_errors: whether lines whose record is an error are tried again.
      keep_ledger: whether the job's directory stays after the output is written.
      model: the model's name in records.
      facts: stored with the job, such as the model's fingerprint and dtype. A later run with other facts is refused
        instead of resumed.
      on_stop: called when a signal stops the run, to end whatever the run waits for.
      grace: seconds after a signal until a run that is still busy (compiling, for example) commits its records and
        ends the process; None waits without limit.
    """

    form: str | None = None
    defaults: Defaults = field(default_factory=Defaults)
    media_root: Path | None = None
    fetch: Fetch | None = None
    max_bytes: int = 2**30
    max_error_rate: float = 0.95
    retry_errors: bool = False
    keep_ledger: bool = False
    model: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    on_stop: Callable[[], None] | None = None
    grace: float | None = None

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in FORMS:
            raise ValueError(f"form: expected {either(list(FORMS))}, got {self.form!r}")


class Stopped(BaseException):
    """A signal has ended the run. Everything that was committed is kept.

    Attributes:
      signal: the number of the signal.
      summary: the counts of the run so far.
    """

    def __init__(self, number: int, summary: Summary):
        super().__init__(
            f"stopped by {signal.Signals(number).name}: {summary.done} of {summary.lines} lines are done and kept; "
            "the same command goes on from there"
        )
        self.signal, self.summary = number, summary


def run_batch(
    source: Path | Sequence[Path], output: Path, make_runner: Callable[[], Runner], options: BatchOptions
) -> Summary:
    """Runs or resumes a job and writes its output: one record for each line of the input, in the input's order.

    Args:
      source: the input, in one of the forms: a file or several; each may be compressed.
      output: appears when every line has a record. Until then the records are in a ledger next to it (see `ledger`).
      make_runner: called once, if there is something to run.
      options: how to run it.

    Raises:
      ValueError: the input cannot be read, ids repeat, or a ledger or output belongs to another job.
      TooManyErrors: more lines failed than `max_error_rate` allows.
      OSError: another run of the job is active, or the disk is full.
      Stopped: SIGTERM or SIGINT came.
    """
    files = [source] if isinstance(source, Path) else list(source)
    versions = {file: _version(file) for file in files}
    form = options.form or recognise(files)
    paths = Paths(output)
    with locked(paths):
        if output.exists() and any(map(output.samefile, files)):
            raise ValueError(f"{output}: the output would take the place of the input; choose another output")
        count = count_lines(read_lines(files, form), form)
        identity = {**job_identity(files, form, options.defaults), **options.facts}
        receipt = read_receipt(paths, identity)
        if receipt is None or paths.ledger.exists():  # a ledger may have records that the output lacks
            summary = _resume(versions, form, count, paths, identity, make_runner, options)
        elif options.retry_errors and receipt["errors"]:
            raise ValueError(
                f"{output}: --retry-errors needs the ledger, which --keep-ledger would have kept; remove the output to "
                "run the job anew"
            )
        else:
            summary = Summary(count, before=count)
        if not options.keep_ledger:
            remove(paths)
    return summary


def _version(file: Path) -> tuple[int, ...]:
    """Returns what changes with a file; nothing of one that is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _resume(
    versions: Mapping[Path, tuple[int, ...]],
    form: str,
    count: int,
    paths: Paths,
    identity: Mapping[str, str],
    make_runner: Callable[[], Runner],
    options: BatchOptions,
) -> Summary:
    """Runs the lines without a record, then writes the output from the ledger."""
    ledger = Ledger(paths, identity)
    try:
        if options.retry_errors:
            ledger.forget_errors()
        facts = JobFacts(options.model, ledger.created, identity_digest(identity))
        summary = _Job(versions, form, ledger, facts, Summary(count), options).run(make_runner)
        ledger.write_output(count, identity)
    finally:
        ledger.close()
    return summary


@dataclass(frozen=True)
class _Found:
    """A request whose media are files; and for each medium the file and its name in the line."""

    request: Request
    media: list[tuple[Any, str]]


@dataclass(frozen=True)
class _Asked:
    """A line whose request the runner has received, as the `number`-th from 1; `media` as in `_Found`."""

    line: PendingLine
    media: list[tuple[Any, str]]
    number: int


class _Job:
    """One run of a job: passes the pending lines through a runner and commits the results."""

    def __init__(
        self,
        versions: Mapping[Path, tuple[int, ...]],
        form: str,
        ledger: Ledger,
        facts: JobFacts,
        summary: Summary,
        options: BatchOptions,
    ):
        self._versions, self._form, self._ledger, self._facts = versions, form, ledger, facts
        self._summary, self._options = summary, options
        self._done = ledger.done()
        summary.before = len(self._done)
        self._asked: dict[str, _Asked] = {}
        # Two rates, because a runner may receive a thousand lines before its first result, while a line whose media
        # are not found is an error at once.
        self._finding, self._answering, self._given = ErrorRate(), ErrorRate(), 0
        self._media: set[str] = set()
        self._signal: int | None = None
        self._started = 0.0
        self._bar: Any = None

    def run(self, make_runner: Callable[[], Runner]) -> Summary:
        if self._summary.before == self._summary.lines:
            return self._summary
        with self._signals():
            runner = make_runner()
            self._raise_if_stopped()
            self._run(runner)
        return self._summary

    def _run(self, runner: Runner) -> None:
        spool = Spool(self._ledger.paths.media)
        self._resolve = Resolver(
            spool, root=self._options.media_root, fetch=self._options.fetch, max_bytes=self._options.max_bytes
        )
        self._spool = spool
        self._started = time.perf_counter()
        with self._progress():
            results = runner.run(self._requests())
            try:
                for result in results:
                    self._commit_result(result)
                if self._asked:
                    raise RuntimeError(f"{len(self._asked)} requests came back without a result")
            finally:
                if isinstance(results, Generator):
                    results.close()
                self._summary.seconds = time.perf_counter() - self._started
                self._ledger.flush()
                spool.close()

    # ── lines to requests ──

    def _requests(self) -> Iterator[Request]:
        """Yields the pending requests, grouped by media, which threads find some lines ahead."""
        pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="find-media")
        ahead: deque[tuple[PendingLine, Future[_Found]]] = deque()
        lines = grouped_by_media(self._pending())
        try:
            while True:
                for line in itertools.islice(lines, _AHEAD - len(ahead)):
                    ahead.append((line, pool.submit(self._find_media, line)))
                if not ahead:
                    return
                line, future = ahead.popleft()
                try:
                    found = self._wait_for(future)
                except SpoolError as error:  # the disk's fault, and the next run may have another
                    raise LedgerError(self._unstored(error)) from None
                except (ValueError, OSError) as error:
                    self._commit_error(line, error)
                    continue
                self._finding.add(self._finding.lines + 1, line.about, None)
                self._given += 1
                line = dataclasses.replace(line, request=found.request)  # without the content of data: URLs
                self._asked[found.request.id] = _Asked(line, found.media, self._given)
                yield found.request
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _pending(self) -> Iterator[PendingLine]:
        for line in pending_lines(list(self._versions), self._form, self._options.defaults, self._done):
            self._raise_if_stopped()
            self._require_unchanged()
            yield line
        self._require_unchanged()  # a file that was cut has no further line

    def _require_unchanged(self) -> None:
        """Raises a ValueError where the input is not what the job's identity was made of."""
        for file, version in self._versions.items():
            if _version(file) != version:
                raise ValueError(
                    f"{file}: changed while the job read it; the answers so far are kept: run the same command with "
                    "the input as it was, or choose another output"
                )

    def _find_media(self, line: PendingLine) -> _Found:
        """Finds the media of a line, as files, and returns its request with them."""
        if isinstance(line.request, ValueError):
            raise line.request
        held: list[tuple[Any, str]] = []

        def resolve(kind: Any, source: Any) -> Any:
            held.append((self._resolve(kind, source), short_name(str(source))))
            return held[-1][0]

        try:
            return _Found(with_sources(line.request, resolve), held)
        except BaseException:
            for file, _ in held:
                self._spool.release(file)
            raise

    def _unstored(self, error: SpoolError) -> str:
        if error.error.errno in (errno.ENOSPC, errno.EDQUOT):
            return no_space(self._ledger.paths)
        return f"{error}; what was committed is kept: run the same command again"

    def _wait_for(self, future: Future[_Found]) -> _Found:
        while True:
            self._raise_if_stopped()
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                if future.done():
                    raise  # the TimeoutError is the future's result

    # ── results to records ──

    def _commit_result(self, result: Result) -> None:
        """Commits a result and releases the media of its request."""
        if result.id not in self._asked:
            raise RuntimeError(f"a result of {result.id!r}, which was not asked for or has its result already")
        if result.error is not None:
            self._raise_if_stopped()  # it may have failed only because its worker was stopped
        asked = self._asked.pop(result.id)
        for file, name in asked.media:
            self._spool.release(file)
            self._media.add(os.fspath(file))
            if result.error is not None:  # the error names the medium as the line does, not this machine's file
                result = dataclasses.replace(result, error=result.error.replace(os.fspath(file), name))
        self._summary.videos = len(self._media)
        cause = (result.cause or "invalid_request") if result.error is not None else None
        self._answering.add(asked.number, asked.line.about, cause)
        self._commit(self._answering, asked.line, result, cause)
        self._raise_if_stopped()

    def _commit_error(self, line: PendingLine, error: Exception) -> None:
        """Commits the error of a line that never reached the runner."""
        self._raise_if_stopped()
        cause = str(getattr(error, "cause", "invalid_request"))
        result = Result(id=str(line.tag.index), finish_reason="error", error=" ".join(str(error).split()))
        self._finding.add(self._finding.lines + 1, line.about, cause)
        self._commit(self._finding, line, result, cause)

    def _commit(self, rate: ErrorRate, line: PendingLine, result: Result, cause: str | None) -> None:
        self._ledger.add(line.tag.index, record(self._form, line.tag, result, cause, self._facts), cause)
        summary = self._summary
        if cause is None:
            summary.answered += 1
        else:
            summary.errors[cause] += 1
        seconds = max(time.perf_counter() - self._started, 1e-9)
        errors = summary.errors.total()
        self._bar.set_postfix_str(f"{summary.videos / seconds:.2f} media/s, {errors} errors", refresh=False)
        self._bar.update()
        rate.check(self._options.max_error_rate, result.error)

    # ── signals and the bar ──

    def _raise_if_stopped(self) -> None:
        if self._signal is not None:
            self._ledger.flush()
            raise Stopped(self._signal, self._summary)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Makes SIGTERM and SIGINT end the run between two results, as an exception elsewhere could leave a lock held.

        A second signal raises KeyboardInterrupt at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _: Any) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            if self._options.on_stop is not None:
                self._options.on_stop()
            wakeup.put(number)

        # SimpleQueue.put is reentrant: a signal handler may call it even while it interrupts another put.
        wakeup: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        watcher = threading.Thread(target=self._watch, args=[wakeup], name="grace", daemon=True)
        watcher.start()
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            wakeup.put(None)
            watcher.join()

    def _watch(self, wakeup: queue.SimpleQueue[int | None]) -> None:
        """Ends the process if the run does not end within the grace after a signal."""
        number = wakeup.get()
        if number is None or self._options.grace is None:
            return
        try:
            wakeup.get(timeout=self._options.grace)
            return
        except queue.Empty:
            pass
        try:
            self._ledger.flush()
            print(f"videollava: {Stopped(number, self._summary)}", file=sys.stderr, flush=True)
        finally:
            os._exit(128 + number)

    @contextmanager
    def _progress(self) -> Iterator[None]:
        total, initial = self._summary.lines, self._summary.before
        with tqdm(total=total, initial=initial, unit="answer", disable=None, smoothing=0.05) as self._bar:
            yield
