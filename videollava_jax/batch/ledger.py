"""Commits each answer of a job once and durably, to an SQLite file next to the output. No JAX.

The identity of the job is stored as "fingerprint". `job_files.py` draws where the file is.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from videollava_jax.batch import output
from videollava_jax.batch.job_files import LedgerError, Paths, no_space
from videollava_jax.batch.output import Identity, JobMismatch, require_same_job

T = TypeVar("T")

_INDEX = "sqlite_autoindex_job_1"
_AT_ONCE = 1000
"""The most records in one commit."""
_SYNCS = 3
"""How often a transaction is tried whose sync with the disk fails: a signal may have interrupted it, which SQLite does
not tell from an error. Each time all of it is written anew."""
_SYNC_FAILED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


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
        causes = self.done()
        if len(causes) != lines or (causes and max(causes) >= lines):
            raise LedgerError(f"{self.paths.ledger}: expected a record for each of {lines} lines, found {len(causes)}")
        records = (text for (text,) in self._database.execute("SELECT record FROM answers ORDER BY line"))
        output.write_output(self.paths, records, causes.values(), identity)


def _now() -> int:
    """Returns the seconds since 1970, or SOURCE_DATE_EPOCH, which makes the outputs of equal runs equal."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
