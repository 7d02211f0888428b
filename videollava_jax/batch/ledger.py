"""Commits each answer of a job once and durably, to an SQLite file next to the output. No JAX.

OUTPUT.partial/
  lock        held by the current run; the kernel releases it when the run dies
  ledger.db   the job's identity, and a row for each line that is done
  media/      files from data: URLs and from hosts
OUTPUT        appears complete, in the input's order, when every line is done
OUTPUT.job.json   the receipt: the job's identity, counts, and the output's SHA-256

In both files the identity is stored as "fingerprint".
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import queue
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Identity = Mapping[str, str]
T = TypeVar("T")

_ATTEMPTS = 100
_INDEX = "sqlite_autoindex_job_1"
_AT_ONCE = 1000
"""The most records in one commit."""
_SYNCS = 3
"""How often a transaction is tried whose sync with the disk fails: a signal may have interrupted it, which SQLite does
not tell from an error. Each time all of it is written anew."""
_SYNC_FAILED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


class LedgerError(OSError):
    """The ledger cannot be written or read: a full disk, a damaged file, another run."""


class JobMismatch(ValueError):
    """The ledger or the output belongs to another job."""


class Paths:
    """The paths of a job's files, as drawn at the top of this module."""

    def __init__(self, output: Path):
        self.output = output
        self.directory = output.with_name(f"{output.name}.partial")
        self.lock = self.directory / "lock"
        self.ledger = self.directory / "ledger.db"
        self.media = self.directory / "media"
        self.receipt = output.with_name(f"{output.name}.job.json")


def no_space(paths: Paths) -> str:
    """Returns what a user reads when the disk of a job is full."""
    return (
        f"{paths.directory}: no space left on the disk; what was committed is kept: make room and run the same command "
        "again"
    )


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """Makes the job's directory and locks it against other runs.

    A directory that is there must be one that a job made: it has a lock, or it is empty.

    Raises:
      LedgerError: another run holds the lock, the directory is somebody else's, or it cannot be made.
    """
    descriptor = _take_lock(paths)
    try:
        yield
    finally:
        with suppress(OSError):  # it would hide the error of the run; the next one tidies up
            if not paths.ledger.exists():  # nothing was begun, or everything is done
                remove(paths)
        with suppress(OSError):  # a disk that fails; the lock is released all the same
            os.close(descriptor)


def _take_lock(paths: Paths) -> int:
    """Locks the job's directory, which is made if it is not there; returns the lock's descriptor."""
    for _ in range(_ATTEMPTS):
        try:
            paths.directory.mkdir(exist_ok=True)
            descriptor = _open_lock(paths)
        except FileNotFoundError:
            if not paths.output.parent.is_dir():
                raise LedgerError(f"{paths.output.parent}: no such directory for the output") from None
            time.sleep(0.01)  # the previous run is just removing its directory
            continue
        except FileExistsError:
            raise _not_ours(paths) from None
        except OSError as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(f"{paths.directory}: cannot be made ({os.strerror(error.errno or 0).lower()})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LedgerError(f"{paths.output}: another run is at work on it; expected one at a time") from None
        except OSError as error:
            os.close(descriptor)
            raise LedgerError(
                f"{paths.lock}: this file system has no locks ({os.strerror(error.errno or 0)}); "
                "write to a local disk and copy the output"
            ) from None
        try:
            if os.stat(paths.lock, follow_symlinks=False).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the previous run removed the file before we locked it
    raise LedgerError(f"{paths.directory}: cannot be made: choose another directory for the output")


def _open_lock(paths: Paths) -> int:
    """Opens the lock of a directory that is ours: neither it nor its lock is a link, and it holds a lock or nothing."""
    try:
        directory = os.open(paths.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise _not_ours(paths) from None
    try:
        if paths.lock.name not in (names := os.listdir(directory)) and names:
            raise _not_ours(paths)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(paths.lock.name, flags, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_ours(paths) from None
        raise
    finally:
        os.close(directory)


def _not_ours(paths: Paths) -> LedgerError:
    return LedgerError(
        f"{paths.directory} is there already and was not made by a job, which keeps its answers there: choose another "
        "output, or move it away"
    )


class Ledger:
    """The records of a job. One thread may create it, and one thread may add to it.

    A separate thread commits: each time all records that came since its last commit, so that nobody else waits for
    the disk. SQLite keeps a write-ahead log and syncs it at each commit.

    Args:
      paths: of a job that is `locked`.
      identity: of the job.

    Raises:
      JobMismatch: the ledger belongs to another job; the message says what differs.
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
        if self.paths.ledger.is_symlink():
            raise self._of_another_program()
        database = sqlite3.connect(self.paths.ledger, check_same_thread=False, isolation_level=None)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # With an exclusive lock the log needs no shared memory, which network file systems lack.
        database.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        if {name for (name,) in database.execute("SELECT name FROM sqlite_master")} - {"job", "answers", _INDEX}:
            raise self._of_another_program()
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE IF NOT EXISTS job (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (line INTEGER PRIMARY KEY, record TEXT NOT NULL, cause TEXT)"
        )
        database.execute("COMMIT")

    def _check(self, identity: Identity) -> int:
        found = dict(self._database.execute("SELECT name, value FROM job"))
        if not found:
            found = {"fingerprint": json.dumps(dict(identity)), "created": str(_now())}
            with self._transaction():
                self._database.executemany("INSERT INTO job VALUES (?, ?)", found.items())
        try:
            then, created = json.loads(found["fingerprint"]), int(found["created"])
            require_same_job(self.paths.directory, then, identity)
        except JobMismatch:
            raise
        except (KeyError, ValueError, TypeError, AttributeError):
            raise self._of_another_program() from None
        return created

    def _of_another_program(self) -> LedgerError:
        return LedgerError(
            f"{self.paths.ledger}: expected the ledger of a job, got a file of another program: choose another output, "
            f"or move {self.paths.directory} away"
        )

    # ── reading ──

    def done(self) -> dict[int, str | None]:
        """Maps every line that has a record to the cause of its error, None for an answer."""
        self.flush()
        return self._safely(lambda: dict(self._database.execute("SELECT line, cause FROM answers")))

    def forget_errors(self) -> None:
        """Deletes the records of errors, so that their lines are tried again."""
        self.flush()

        def forget() -> None:
            with self._transaction():
                self._database.execute("DELETE FROM answers WHERE cause IS NOT NULL")

        self._safely(forget)

    # ── adding ──

    def add(self, line: int, record: str, cause: str | None) -> None:
        """Queues a line's record. It is durable soon, and for certain after `flush`.

        Raises:
          LedgerError: an earlier record could not be committed. Those committed before it are kept.
        """
        self._raise_error()
        self._queue.put((line, record, cause))

    def flush(self) -> None:
        """Waits until all added records are durable.

        Raises:
          LedgerError: a record could not be committed.
        """
        if self._thread.is_alive():
            reached = threading.Event()
            self._queue.put(reached)
            reached.wait()
        self._raise_error()

    def close(self) -> None:
        """Commits what was added and closes the file. It does not raise; `flush` does if a commit failed."""
        self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise LedgerError(str(self._error)) from self._error

    def _commit_all(self) -> None:
        """Runs in the committing thread: waits for a record and commits it with all that are queued behind it."""
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
            # A plain INSERT, so that a second record for a line is an error and never replaces the first.
            self._database.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # when a disk is full, SQLite has already rolled back
                self._database.execute("ROLLBACK")
            raise

    def _safely(self, action: Callable[[], T]) -> T:
        """Runs an action on the database and turns SQLite's errors into LedgerErrors.

        Args:
          action: one transaction, which is done again where its sync with the disk fails.
        """
        first: sqlite3.Error | None = None
        for _ in range(_SYNCS):
            try:
                return action()
            except sqlite3.IntegrityError as error:
                raise LedgerError(f"{self.paths.ledger}: two records of one line ({error})") from None
            except sqlite3.Error as error:
                first = first or error
                if getattr(error, "sqlite_errorcode", 0) not in _SYNC_FAILED:
                    break
        assert first is not None
        raise self._failure(first) from None

    def _failure(self, error: sqlite3.Error) -> LedgerError:
        """Makes the error about a database that cannot be written or read."""
        why, code = str(error), getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            # SQLite does not pass on what the system said; writing a file of our own says it, if the fault lasts.
            try:
                with tempfile.TemporaryFile(dir=self.paths.directory, buffering=0) as file:
                    file.write(bytes(4096))
                    os.fsync(file.fileno())
            except OSError as fault:
                code = sqlite3.SQLITE_FULL if fault.errno in (errno.ENOSPC, errno.EDQUOT) else code
                why = os.strerror(fault.errno or 0).lower()
        if code == sqlite3.SQLITE_FULL:
            return LedgerError(no_space(self.paths))
        return LedgerError(f"{self.paths.ledger}: cannot be used ({why})")

    # ── the output ──

    def write_output(self, lines: int, identity: Identity) -> None:
        """Writes the complete output, in the input's order, and its receipt. An equal output is left untouched.

        Raises:
          LedgerError: a line has no record, or the disk is full. Then nothing has changed.
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
                # The hash of the old output, in case this run is killed before the new output has replaced it.
                **({} if before in (None, digest.hexdigest()) else {"replaces": before}),
            }
            # The receipt comes first, because an output without one counts as somebody else's file.
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
    """Checks that a ledger or output belongs to this job.

    Args:
      where: the file or directory, for the message.
      then: the identity stored with it.
      now: the identity of this job.

    Raises:
      JobMismatch: they differ; the message says where.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        differences = "\n".join(f"  {n}: {then.get(n, 'nothing')} then, {now.get(n, 'nothing')} now" for n in names)
        raise JobMismatch(
            f"{where} is of another job:\n{differences}\n"
            "Run the same command as then, or choose another output, or remove it"
        )


def read_receipt(paths: Paths, identity: Identity) -> Mapping[str, Any] | None:
    """Returns the receipt of a complete output.

    Returns:
      The receipt; None if there is no output yet, or one that a run was about to replace when it was killed.

    Raises:
      JobMismatch: the output belongs to another job, or was not written by a job.
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
            f"{paths.output} is there already, and not as videollava wrote it: choose another output, or remove it"
        )
    require_same_job(paths.output, then, identity)
    return dict(receipt) if whole else None


def remove(paths: Paths) -> None:
    """Removes what a job keeps, the lock last, and its directory unless it holds files of others."""
    paths.ledger.unlink(missing_ok=True)  # first, because a ledger without its log has lost records
    if not paths.media.is_symlink():
        shutil.rmtree(paths.media, ignore_errors=True)
    kept = (f"{paths.ledger.name}-wal", f"{paths.ledger.name}-shm", f"{paths.ledger.name}-journal", "output.new")
    for name in (*kept, f"{paths.receipt.name}.new", paths.lock.name):
        (paths.directory / name).unlink(missing_ok=True)
    with suppress(OSError):
        paths.directory.rmdir()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> int:
    """Returns the seconds since 1970, or SOURCE_DATE_EPOCH, which makes the outputs of equal runs equal."""
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
