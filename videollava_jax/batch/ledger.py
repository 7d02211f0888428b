"""The answers of a job, each committed once and durably, in SQLite beside the output. No JAX in here.

OUTPUT.partial/
  lock        held by the run at work; the kernel frees it when that run dies
  ledger.db   the job's fingerprint, and a row for each line that is done
  media/      what data: URLs and hosts gave
OUTPUT        appears whole, in the input's order, when every line is done
OUTPUT.job.json   what made it: the fingerprint, counts, and the output's SHA-256
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Identity = Mapping[str, str]
T = TypeVar("T")

_AT_ONCE = 1000
"""Records of one commit, at most."""


class LedgerError(OSError):
    """The ledger cannot be written or read: a full disk, a damaged file, another run."""


class JobMismatch(ValueError):
    """What is there belongs to another job."""


class Paths:
    """Where the parts of a job lie; see the head of this file."""

    def __init__(self, output: Path):
        self.output = output
        self.directory = output.with_name(f"{output.name}.partial")
        self.lock = self.directory / "lock"
        self.ledger = self.directory / "ledger.db"
        self.media = self.directory / "media"
        self.receipt = output.with_name(f"{output.name}.job.json")


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """The job's directory, made and held against other runs.

    Raises:
      LedgerError: another run holds it, or it cannot be made.
    """
    while True:
        try:
            paths.directory.mkdir(exist_ok=True)
            descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if not paths.output.parent.is_dir():
                raise LedgerError(f"{paths.output.parent}: no such directory for the output") from None
            continue  # the run before us is taking its directory away
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LedgerError(f"{paths.output}: another run is at work on it; expected one at a time") from None
        except OSError as error:
            os.close(descriptor)
            raise LedgerError(
                f"{paths.lock}: this file system knows no locks ({os.strerror(error.errno or 0)}); "
                "write to a local disk and copy the output"
            ) from None
        try:
            if os.stat(paths.lock).st_ino == os.fstat(descriptor).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the file was taken away before we locked it
    try:
        yield
    finally:
        if not paths.ledger.exists():  # nothing was begun, or all is over
            remove(paths)
        os.close(descriptor)


class Ledger:
    """The rows of a job; made by one thread, added to by one thread.

    Records are committed by a thread of its own, all that have come since the last commit at once: the disk's wait is
    nobody else's. SQLite does the rest: a write-ahead log, synced at each commit.

    Args:
      paths: of a job that is `locked`.
      fingerprint: of the job.

    Raises:
      JobMismatch: the ledger is of another job; the message says what differs.
      LedgerError: it cannot be opened.
    """

    def __init__(self, paths: Paths, identity: Identity):
        self.paths = paths
        self._queue: queue.SimpleQueue[tuple[int, str, str | None] | threading.Event | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._database = self._safely(self._open)
        try:
            self.created = self._safely(lambda: self._check(identity))
        except BaseException:
            self._database.close()
            raise
        self._thread = threading.Thread(target=self._commit_all, name="commit", daemon=True)
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.paths.ledger, check_same_thread=False, isolation_level=None)
        # With the lock exclusive, the log needs no shared memory, which network file systems have not.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE IF NOT EXISTS job (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (line INTEGER PRIMARY KEY, record TEXT NOT NULL, cause TEXT)"
        )
        database.execute("COMMIT")
        return database

    def _check(self, identity: Identity) -> int:
        found = dict(self._database.execute("SELECT name, value FROM job"))
        if not found:
            found = {"fingerprint": json.dumps(dict(identity)), "created": str(_now())}
            with self._transaction():
                self._database.executemany("INSERT INTO job VALUES (?, ?)", found.items())
        require_same_job(self.paths.directory, json.loads(found["fingerprint"]), identity)
        return int(found["created"])

    # ── what is there ──

    def done(self) -> dict[int, str | None]:
        """Line → the cause of its error, None for answers, of all that is committed."""
        self.flush()
        return self._safely(lambda: dict(self._database.execute("SELECT line, cause FROM answers")))

    def forget_errors(self) -> None:
        """Takes the records of errors away, for another attempt."""
        self.flush()

        def forget() -> None:
            with self._transaction():
                self._database.execute("DELETE FROM answers WHERE cause IS NOT NULL")

        self._safely(forget)

    # ── what comes ──

    def add(self, line: int, record: str, cause: str | None) -> None:
        """Takes a line's record; it is durable after `flush`, and soon without.

        Raises:
          LedgerError: an earlier one could not be committed. All that were are kept.
        """
        self._raise_error()
        self._queue.put((line, record, cause))

    def flush(self) -> None:
        """Waits until all that was added is durable.

        Raises:
          LedgerError: it could not be.
        """
        if self._thread.is_alive():
            reached = threading.Event()
            self._queue.put(reached)
            reached.wait()
        self._raise_error()

    def close(self) -> None:
        """Commits what was added and closes the file. Raises nothing: `flush` tells what went wrong."""
        self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise LedgerError(str(self._error)) from self._error

    def _commit_all(self) -> None:
        """The thread's work: waits for one, and commits it with all that have come behind it."""
        while True:
            items = [self._queue.get()]
            while len(items) < _AT_ONCE and not self._queue.empty():
                items.append(self._queue.get())
            rows = [item for item in items if isinstance(item, tuple)]
            try:
                if rows and self._error is None:
                    self._safely(lambda rows=rows: self._insert(rows))  # type: ignore[misc]
            except BaseException as error:
                self._error = error
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
            if None in items:
                return

    def _insert(self, rows: list[tuple[int, str, str | None]]) -> None:
        with self._transaction():
            # A plain INSERT: a second record for a line is refused, never exchanged.
            self._database.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite has rolled back already where a disk is full
                self._database.execute("ROLLBACK")
            raise

    def _safely(self, action: Callable[[], T]) -> T:
        """Runs an action on the database, its errors as ours."""
        try:
            return action()
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"{self.paths.ledger}: two records of one line ({error})") from None
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerError(
                    f"{self.paths.directory}: no space left on the disk; what was committed is kept: make room and run "
                    "the same command again"
                ) from None
            raise LedgerError(f"{self.paths.ledger}: cannot be used ({error})") from None

    # ── the output ──

    def write_output(self, lines: int, identity: Identity) -> None:
        """Writes the output whole, in the input's order, and the receipt beside it; one that is the same already stays.

        Raises:
          LedgerError: not every line has its record, or the disk is full; then nothing has changed.
        """
        self.flush()
        causes = self.done()
        if len(causes) != lines or (causes and max(causes) >= lines):
            raise LedgerError(f"{self.paths.ledger}: expected a record for each of {lines} lines, found {len(causes)}")
        temporary = self.paths.directory / "output.new"
        try:
            digest = hashlib.sha256()
            with open(temporary, "wb") as file:
                for (text,) in self._database.execute("SELECT record FROM answers ORDER BY line"):
                    raw = f"{text}\n".encode()
                    digest.update(raw)
                    file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            before = _file_digest(self.paths.output) if self.paths.output.exists() else None
            receipt = {
                "fingerprint": dict(identity),
                "lines": lines,
                "errors": dict(Counter(cause for cause in causes.values() if cause is not None)),
                "sha256": digest.hexdigest(),
                # Of an output whose errors were tried again, for a run that is killed before the next is in its place.
                **({} if before in (None, digest.hexdigest()) else {"replaces": before}),
            }
            # The receipt first: an output without one is somebody else's.
            _write_durably(self.paths.receipt, json.dumps(receipt, indent=1) + "\n", self.paths.directory)
            if before == digest.hexdigest():
                temporary.unlink()
            else:
                os.replace(temporary, self.paths.output)
                _sync_directory(self.paths.output.parent)
        except (OSError, sqlite3.Error) as error:
            why = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
            raise LedgerError(
                f"{self.paths.output}: cannot be written ({why}); all answers are kept in {self.paths.directory}: "
                "run the same command again"
            ) from None


def require_same_job(where: Path, then: Identity, now: Identity) -> None:
    """Refuses to go on with another job's answers.

    Raises:
      JobMismatch: with what differs.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        told = "\n".join(f"  {n}: {then.get(n, 'nothing')} then, {now.get(n, 'nothing')} now" for n in names)
        raise JobMismatch(
            f"{where} is of another job:\n{told}\nRun the same command as then, or choose another output, or remove it"
        )


def finished(paths: Paths, identity: Identity) -> Mapping[str, Any] | None:
    """The receipt of an output that is there and whole; None where there is none yet, or one that a run was about to
    replace when it was killed.

    Raises:
      JobMismatch: the output is of another job, or not what a job has written.
    """
    if not paths.output.exists():
        return None
    try:
        receipt = json.loads(paths.receipt.read_text())
        digest, then = _file_digest(paths.output), receipt["fingerprint"]
        whole, replaced = digest == receipt["sha256"], digest == receipt.get("replaces")
    except (OSError, ValueError, KeyError, TypeError):
        whole = replaced = False
    if not whole and not replaced:
        raise JobMismatch(
            f"{paths.output} is there already, and not as a job of ours wrote it: choose another output, or remove it"
        )
    require_same_job(paths.output, then, identity)
    return dict(receipt) if whole else None


def remove(paths: Paths) -> None:
    """Takes the job's directory away, the lock at last; nothing where it is gone."""
    paths.ledger.unlink(missing_ok=True)  # first: what is left of it without its log is not all that it held
    for path in paths.directory.glob("*"):
        if path != paths.lock:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(paths.directory, ignore_errors=True)


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> int:
    """Seconds since 1970; fixed by SOURCE_DATE_EPOCH, where equal runs have to give equal bytes."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def _write_durably(path: Path, text: str, directory: Path) -> None:
    temporary = directory / f"{path.name}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
