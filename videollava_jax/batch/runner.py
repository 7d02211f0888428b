"""A job from its input to its output: what is not done yet goes to a runner, and each result to the ledger."""

from __future__ import annotations

import dataclasses
import itertools
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from videollava_jax.batch.formats import Defaults, with_sources
from videollava_jax.batch.identity import identity_digest, job_identity
from videollava_jax.batch.ledger import Ledger, Paths, finished, locked, remove
from videollava_jax.batch.lines import Form, count_lines, read_lines, recognise
from videollava_jax.batch.media.spool import Fetch, Resolver, Spool, short_name
from videollava_jax.batch.records import JobFacts, record
from videollava_jax.batch.summary import Step, Summary
from videollava_jax.batch.together import Left, left_lines, together
from videollava_jax.engine import Request, Result

_FETCHERS, _AHEAD = 8, 32
"""Threads that find media, and lines that they are ahead."""


class Runner(Protocol):
    """What answers: an `Engine`, or anything that gives one result for each request."""

    def run(self, requests: Iterable[Request]) -> Iterator[Result]: ...


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a job is run.

    Attributes:
      form: of the input; None for what it looks like.
      defaults: for lines that say nothing of their own.
      media_root: media are under it; None for any path.
      fetch: for http and https (a `remote.Fetcher`); None refuses them.
      max_bytes: of one medium.
      max_error_rate: a run ends when more than this share of its lines have failed, of those whose media were looked
        for or of those that were answered.
      retry_errors: lines whose record is an error are tried again.
      keep_ledger: the job's directory stays when the output is written.
      model: as records name it.
      facts: what else makes it this job and no other: a fingerprint of the model, its dtype.
      on_stop: called when the run is told to end, to end what it waits for.
      grace: seconds after which a run that was told to end, and is busy still (compiling, say), commits what there is
        and ends this process; None waits for as long as it takes.
    """

    form: Form | None = None
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


class Stopped(BaseException):
    """A signal has ended the run. All that was committed is kept.

    Attributes:
      signal: its number.
      summary: of what was done until then.
    """

    def __init__(self, number: int, summary: Summary):
        super().__init__(
            f"stopped by {signal.Signals(number).name}: {summary.done} of {summary.lines} lines are done and kept; "
            "the same command goes on from there"
        )
        self.signal, self.summary = number, summary


def run_batch(source: Path, output: Path, make_runner: Callable[[], Runner], options: BatchOptions) -> Summary:
    """Runs a job, or what is left of it, and writes its output: one record for each line of the input, in its order.

    Args:
      source: the input; see `formats`.
      output: appears when every line has its record. What is done until then lies beside it, see `ledger`.
      make_runner: called once, when there is something to run.

    Raises:
      ValueError: an input that cannot be read, ids that come twice, a ledger or output of another job.
      TooManyErrors: over `max_error_rate`.
      OSError: another run is at work, a full disk.
      Stopped: by SIGTERM or SIGINT.
    """
    form = options.form or recognise(source)
    paths = Paths(output)
    with locked(paths):
        if output.exists() and output.samefile(source):
            raise ValueError(f"{output}: the output would take the place of the input")
        count = count_lines(read_lines(source, form), form)
        identity = {**job_identity(source, form, options.defaults), **options.facts}
        receipt = finished(paths, identity)
        if receipt is None or paths.ledger.exists():  # beside an output, it is perhaps ahead of it
            summary = _go_on(source, form, count, paths, identity, make_runner, options)
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


def _go_on(
    source: Path,
    form: Form,
    count: int,
    paths: Paths,
    identity: Mapping[str, str],
    make_runner: Callable[[], Runner],
    options: BatchOptions,
) -> Summary:
    """Does what a ledger lacks, and brings the output to what it holds."""
    ledger = Ledger(paths, identity)
    try:
        if options.retry_errors:
            ledger.forget_errors()
        facts = JobFacts(options.model, ledger.created, identity_digest(identity))
        summary = _Job(source, form, ledger, facts, Summary(count), options).run(make_runner)
        ledger.write_output(count, identity)
    finally:
        ledger.close()
    return summary


@dataclass(frozen=True)
class _Found:
    """A request whose media are files; for each of them the file and what the line calls it."""

    request: Request
    media: list[tuple[Any, str]]


@dataclass(frozen=True)
class _Asked:
    """A line whose request the runner was given, with the media as of `_Found`; the `number`-th, counted from 1."""

    left: Left
    media: list[tuple[Any, str]]
    number: int


class _Job:
    """The lines that are left, on their way through a runner."""

    def __init__(
        self, source: Path, form: Form, ledger: Ledger, facts: JobFacts, summary: Summary, options: BatchOptions
    ):
        self._source, self._form, self._ledger, self._facts = source, form, ledger, facts
        self._summary, self._options = summary, options
        self._done = ledger.done()
        summary.before = len(self._done)
        self._asked: dict[str, _Asked] = {}
        # A step each: a runner may be given a thousand lines before its first result, and each that is not even
        # given to it is an error at once.
        self._finding, self._answering, self._given = Step(), Step(), 0
        self._media: set[str] = set()
        self._signal: int | None = None
        self._started = 0.0
        self._bar: Any = None

    def run(self, make_runner: Callable[[], Runner]) -> Summary:
        if self._summary.before == self._summary.lines:
            return self._summary
        with self._signals():
            runner = make_runner()
            self._require_going_on()
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
                    self._take(result)
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
        """The requests that are left, by their media; these are looked for by threads, some lines ahead."""
        pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="find-media")
        ahead: deque[tuple[Left, Future[_Found]]] = deque()
        lines = together(self._left())
        try:
            while True:
                for left in itertools.islice(lines, _AHEAD - len(ahead)):
                    ahead.append((left, pool.submit(self._find, left)))
                if not ahead:
                    return
                left, future = ahead.popleft()
                try:
                    found = self._waited_for(future)
                except (ValueError, OSError) as error:
                    self._fail(left, error)
                    continue
                self._finding.add(self._finding.lines + 1, left.about, None)
                self._given += 1
                left = dataclasses.replace(left, request=found.request)  # its own holds whole data: URLs
                self._asked[found.request.id] = _Asked(left, found.media, self._given)
                yield found.request
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _left(self) -> Iterator[Left]:
        for left in left_lines(self._source, self._form, self._options.defaults, self._done):
            self._require_going_on()
            yield left

    def _find(self, left: Left) -> _Found:
        """A line's request with its media found."""
        if isinstance(left.request, ValueError):
            raise left.request
        held: list[tuple[Any, str]] = []

        def resolve(kind: Any, source: Any) -> Any:
            held.append((self._resolve(kind, source), short_name(str(source))))
            return held[-1][0]

        try:
            return _Found(with_sources(left.request, resolve), held)
        except BaseException:
            for file, _ in held:
                self._spool.release(file)
            raise

    def _waited_for(self, future: Future[_Found]) -> _Found:
        while True:
            self._require_going_on()
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                if future.done():
                    raise  # its own

    # ── results to records ──

    def _take(self, result: Result) -> None:
        """Commits a result, and what its request held is given back."""
        if result.id not in self._asked:
            raise RuntimeError(f"a result of {result.id!r}, which was not asked or has its result already")
        if result.error is not None:
            self._require_going_on()  # perhaps it has failed only because its worker was stopped
        asked = self._asked.pop(result.id)
        for file, name in asked.media:
            self._spool.release(file)
            self._media.add(os.fspath(file))
            if result.error is not None:  # of what the line named, wherever it lies on this machine
                result = dataclasses.replace(result, error=result.error.replace(os.fspath(file), name))
        self._summary.videos = len(self._media)
        cause = (result.cause or "invalid_request") if result.error is not None else None
        self._answering.add(asked.number, asked.left.about, cause)
        self._commit(self._answering, asked.left, result, cause)
        self._require_going_on()

    def _fail(self, left: Left, error: Exception) -> None:
        """Commits an error that needed no runner."""
        self._require_going_on()
        cause = str(getattr(error, "cause", "invalid_request"))
        result = Result(id=str(left.tag.index), finish_reason="error", error=" ".join(str(error).split()))
        self._finding.add(self._finding.lines + 1, left.about, cause)
        self._commit(self._finding, left, result, cause)

    def _commit(self, step: Step, left: Left, result: Result, cause: str | None) -> None:
        self._ledger.add(left.tag.index, record(self._form, left.tag, result, cause, self._facts), cause)
        summary = self._summary
        if cause is None:
            summary.answered += 1
        else:
            summary.errors[cause] += 1
        seconds = max(time.perf_counter() - self._started, 1e-9)
        errors = summary.errors.total()
        self._bar.set_postfix_str(f"{summary.videos / seconds:.2f} media/s, {errors} errors", refresh=False)
        self._bar.update()
        step.require_hope(self._options.max_error_rate, result.error)

    # ── signals and the bar ──

    def _require_going_on(self) -> None:
        if self._signal is not None:
            self._ledger.flush()
            raise Stopped(self._signal, self._summary)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run between two results: an exception at any place could leave a lock held.

        A second one raises KeyboardInterrupt at once.
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
            told.put(number)

        # Of all that tells another thread something, this alone may be used while the same is under way beneath us.
        told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        watcher = threading.Thread(target=self._watch, args=[told], name="grace", daemon=True)
        watcher.start()
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            told.put(None)
            watcher.join()

    def _watch(self, told: queue.SimpleQueue[int | None]) -> None:
        """Ends the process when a signal has come and the run has not ended within the grace."""
        number = told.get()
        if number is None or self._options.grace is None:
            return
        try:
            told.get(timeout=self._options.grace)
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
