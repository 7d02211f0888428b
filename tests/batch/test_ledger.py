"""The ledger: each record once, durably; the lock; other jobs; full disks; the output complete or absent."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.children import run
from videollava_jax.batch.job_files import LedgerError, Paths, locked, remove
from videollava_jax.batch.ledger import Ledger
from videollava_jax.batch.output import JobMismatch, read_receipt

IDENTITY = {"input": "abc", "model": "tiny"}


def rows(paths):
    database = sqlite3.connect(paths.ledger)
    try:
        return dict(database.execute("SELECT line, record FROM answers"))
    finally:
        database.close()


def test_records_are_there_after_the_next_opening(tmp_path):
    paths = Paths(tmp_path / "out.jsonl")
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        for i in (2, 0):
            ledger.add(i, f"record {i}", None if i else "not_found")
        assert ledger.done() == {0: "not_found", 2: None}
        ledger.close()
        assert rows(paths) == {0: "record 0", 2: "record 2"}
        ledger = Ledger(paths, IDENTITY)
        assert ledger.done() == {0: "not_found", 2: None}
        with pytest.raises(LedgerError, match="expected a record for each of 3 lines, found 2"):
            ledger.write_output(3, IDENTITY)
        ledger.forget_errors()
        assert ledger.done() == {2: None}
        for i in (1, 0):
            ledger.add(i, f"record {i}", None)
        ledger.write_output(3, IDENTITY)
        ledger.close()
        remove(paths)
    assert (tmp_path / "out.jsonl").read_text() == "record 0\nrecord 1\nrecord 2\n"
    assert read_receipt(paths, IDENTITY)["lines"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]


def test_a_second_record_of_a_line_is_refused(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        ledger.add(0, "first", None)
        ledger.flush()
        ledger.add(0, "second", None)
        with pytest.raises(LedgerError, match="two records of one line"):
            ledger.flush()
        with pytest.raises(LedgerError):
            ledger.add(1, "third", None)
        ledger.close()
        assert rows(paths) == {0: "first"}


def test_another_job_is_refused_with_what_differs(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        Ledger(paths, IDENTITY).close()
        with pytest.raises(JobMismatch, match="model: tiny then, large now") as refused:
            Ledger(paths, {**IDENTITY, "model": "large"})
        assert "abc" not in str(refused.value)
        Ledger(paths, IDENTITY).close()


def test_an_output_that_is_not_ours_is_refused(tmp_path):
    paths = Paths(tmp_path / "out")
    assert read_receipt(paths, IDENTITY) is None
    paths.output.write_text("precious\n")
    with pytest.raises(JobMismatch, match="is there already"):
        read_receipt(paths, IDENTITY)
    paths.receipt.write_text(json.dumps({"sha256": "0", "fingerprint": {}}))
    with pytest.raises(JobMismatch, match="is there already"):
        read_receipt(paths, IDENTITY)


def test_an_output_that_a_killed_run_was_about_to_replace(tmp_path, monkeypatch):
    """After a kill between receipt and output, the output counts neither as a stranger's nor as finished."""
    paths = Paths(tmp_path / "out")
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        ledger.add(0, "an error", "not_found")
        ledger.write_output(1, IDENTITY)
        first = read_receipt(paths, IDENTITY)
        ledger.forget_errors()
        ledger.add(0, "an answer", None)
        with monkeypatch.context() as patched:
            real = os.replace
            patched.setattr(os, "replace", lambda a, b: pytest.fail("killed") if b == paths.output else real(a, b))
            with pytest.raises(pytest.fail.Exception):
                ledger.write_output(1, IDENTITY)
        assert paths.output.read_text() == "an error\n"
        assert read_receipt(paths, IDENTITY) is None
        with pytest.raises(JobMismatch, match="model: tiny then, large now"):
            read_receipt(paths, {**IDENTITY, "model": "large"})
        ledger.write_output(1, IDENTITY)
        ledger.close()
    assert paths.output.read_text() == "an answer\n"
    assert read_receipt(paths, IDENTITY)["replaces"] == first["sha256"]
    paths.output.write_text("precious\n")
    with pytest.raises(JobMismatch, match="is there already"):
        read_receipt(paths, IDENTITY)


def test_two_runs_do_not_meet(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths), pytest.raises(LedgerError, match="another run is at work"), locked(paths):
        pass
    assert not paths.directory.exists()  # because nothing was begun
    with pytest.raises(LedgerError, match="no such directory for the output"), locked(Paths(tmp_path / "no" / "out")):
        pass


@pytest.mark.parametrize("kind", ["files", "a link", "a link to nothing", "a file", "a lock that is a link"])
def test_what_no_job_made_is_left_alone(tmp_path, kind):
    """An existing OUT.partial of somebody else is neither emptied nor written to, nor what a link leads to."""
    paths, other = Paths(tmp_path / "out"), tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    if kind == "files":
        other.rename(paths.directory)
        other = paths.directory
    elif kind == "a file":
        paths.directory.write_text("years")
    elif kind == "a lock that is a link":
        paths.directory.mkdir()
        paths.lock.symlink_to(other / "thesis.txt")
    else:
        paths.directory.symlink_to(other if kind == "a link" else tmp_path / "none")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LedgerError, match="is there already and was not made by a job"), locked(paths):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    if kind != "a file":
        assert (other / "thesis.txt").read_text() == "years"


def test_files_of_others_in_a_jobs_directory_stay(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        (paths.directory / "notes.txt").write_text("mine")
        paths.media.symlink_to(tmp_path)
        ledger.add(0, "record", None)
        ledger.write_output(1, IDENTITY)
        ledger.close()
        remove(paths)
    assert sorted(path.name for path in paths.directory.iterdir()) == ["media", "notes.txt"]
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE songs (name TEXT)"],
        ["CREATE TABLE job (name TEXT, value TEXT)", "INSERT INTO job VALUES ('title', 'x')"],
        ["CREATE TABLE job (name TEXT, value TEXT)", "INSERT INTO job VALUES ('fingerprint', 'x'), ('created', '1')"],
        ["CREATE TABLE job (name TEXT, value TEXT)", "INSERT INTO job VALUES ('fingerprint', '[]'), ('created', '1')"],
        ["CREATE TABLE job (name TEXT, value TEXT)", "INSERT INTO job VALUES ('fingerprint', '{}'), ('created', 'x')"],
    ],
)
def test_a_ledger_of_another_program(tmp_path, statements):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        database = sqlite3.connect(paths.ledger)
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()
        before = paths.ledger.read_bytes()
        with pytest.raises((LedgerError, JobMismatch), match=r"another program|of another job"):
            Ledger(paths, IDENTITY)
        if len(statements) == 1:
            assert paths.ledger.read_bytes() == before


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="there is no /proc here")
def test_a_directory_in_which_nothing_can_be_made():
    started = time.monotonic()
    with pytest.raises(LedgerError, match="cannot be made"), locked(Paths(Path("/proc/answers"))):
        pass
    assert time.monotonic() - started < 10


def test_a_run_that_was_killed_holds_no_lock(tmp_path):
    paths = Paths(tmp_path / "out")
    code = (
        "import sys, time; from pathlib import Path; from videollava_jax.batch.ledger import *\n"
        "from videollava_jax.batch.job_files import *\n"
        "with locked(Paths(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(paths.output)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match="another run"), locked(paths):
            pass
        child.kill()
    with locked(paths):
        pass


def test_a_damaged_ledger_is_told(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        paths.ledger.write_bytes(b"nothing of SQLite's" * 300)
        with pytest.raises(LedgerError, match=r"ledger.db: cannot be used"):
            Ledger(paths, IDENTITY)
        paths.ledger.unlink()


@pytest.mark.parametrize("room", [0, 40_000, 200_000])
def test_files_that_may_not_grow_lose_nothing(tmp_path, room):
    paths = Paths(tmp_path / "out")
    told, flushed = run(_fill, paths.output, room)
    # SQLite says "disk I/O error"; where no file may grow at all, ours hears why.
    assert f"cannot be used ({'disk I/O error' if room else 'file too large'})" in told
    assert (flushed > 0) == (room > 0)
    _check_and_finish(paths, flushed)


def _fill(output, room):
    """Fills a ledger whose files may not exceed `room` bytes: returns the error, and how many records were durable."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    paths = Paths(output)
    with locked(paths):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return _add_until_error(paths)


def _add_until_error(paths):
    flushed = 0
    try:
        ledger = Ledger(paths, IDENTITY)
    except LedgerError as error:
        return str(error), flushed
    try:
        for i in range(1000):
            ledger.add(i, "x" * 1000, None)
            ledger.flush()
            flushed += 1
    except LedgerError as error:
        return str(error), flushed
    finally:
        ledger.close()
    raise AssertionError("no error")


def _check_and_finish(paths, flushed):
    """Durable records are kept, with at most one more, and the job can be finished."""
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        kept = ledger.done().keys()
        assert set(range(flushed)) <= kept <= set(range(flushed + 1))
        for i in set(range(1000)) - kept:
            ledger.add(i, "x" * 1000, None)
        ledger.write_output(1000, IDENTITY)
        ledger.close()
    assert paths.output.read_text() == ("x" * 1000 + "\n") * 1000


def test_a_full_disk_loses_nothing(tmp_path):
    try:
        run(_on_a_small_disk, tmp_path)
    except RuntimeError as error:
        if "PermissionError" not in str(error):
            raise
        pytest.skip("this user may not mount a disk")


def _on_a_small_disk(place):
    from tests.faults.disks import mount

    mount(place, "size=400k")
    paths = Paths(place / "out")
    with locked(paths):
        told, flushed = _add_until_error(paths)
    assert "no space left on the disk" in told, told
    assert "run the same command again" in told
    assert flushed > 50
    mount(place, "remount,size=100m")
    _check_and_finish(paths, flushed)


def test_an_output_that_finds_no_room_leaves_the_answers(tmp_path):
    paths = Paths(tmp_path / "out")
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        for i in range(50):
            ledger.add(i, "x" * 1000, None)
        ledger.close()
    told = run(_write_into_little, paths.output)
    assert "all answers are kept" in told
    assert not paths.output.exists()
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        ledger.write_output(50, IDENTITY)
        ledger.close()
    assert paths.output.stat().st_size == 50 * 1001


def _write_into_little(output):
    import signal

    paths = Paths(output)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with locked(paths):
        ledger = Ledger(paths, IDENTITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            ledger.write_output(50, IDENTITY)
        except LedgerError as error:
            return str(error)
        finally:
            ledger.close()
    return "no error"
