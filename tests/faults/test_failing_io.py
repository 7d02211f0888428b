"""A little of `python -m tests.faults.failing_io`, and that the calls which it counts do fail."""

import errno
import os
import sqlite3
import time

import pytest

from tests.faults.children import run
from tests.faults.failing_calls import (
    CHANGES,
    FAILURES,
    NO_DIRECTORY,
    READING,
    SHORT,
    WRITES,
    Failure,
    calls,
    shift_clock,
    under,
    why_not,
)
from tests.faults.failing_io import fail_calls, fill_disks
from tests.faults.failing_reads import READ_TRIALS
from tests.faults.failing_trials import TRIALS
from tests.faults.tables import table

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "calls can be made to fail")


# ── the calls ──


def write_and_rename(place):
    """Returns the error number of what fails; the bytes that were written where nothing does."""
    try:
        with open(place / "a", "wb", buffering=0) as file:
            written = file.write(b"four")
            os.fsync(file.fileno())
        os.rename(place / "a", place / "b")
        os.unlink(place / "b")
    except OSError as error:
        return -(error.errno or 0)
    return written


NAMES = ["open", "write", "fsync", "close", "rename", "unlink"]


def test_each_call_fails_in_its_turn(tmp_path):
    broken = Failure("EIO", errno.EIO, CHANGES)
    for nth, name in enumerate(NAMES, 1):
        log = tmp_path / name
        assert run(under, broken, nth, tmp_path, log, write_and_rename, tmp_path) == -errno.EIO
        made = [(failed, call.split()[0].removesuffix("64")) for failed, call in calls(log)]
        assert made[nth - 1] == (True, name)
        assert [failed for failed, _ in made].count(True) == 1
    log = tmp_path / "none"
    assert run(under, broken, len(NAMES) + 1, tmp_path, log, write_and_rename, tmp_path) == 4
    assert len(calls(log)) == len(NAMES)
    assert run(under, broken, 1, tmp_path / "elsewhere", log, write_and_rename, tmp_path) == 4


def test_a_short_write_is_half_of_one(tmp_path):
    assert run(under, Failure("short", SHORT, WRITES), 1, tmp_path, tmp_path / "log", write_and_rename, tmp_path) == 2


def insert(place):
    database = sqlite3.connect(place / "database")
    try:
        with database:
            database.execute("CREATE TABLE a (b)")
    except sqlite3.Error as error:
        return str(error)
    finally:
        database.close()
    return ""


def test_the_calls_of_sqlite_pass_here(tmp_path):
    """They are none of Python's, which an audit hook would see."""
    full = Failure("ENOSPC", errno.ENOSPC, WRITES)
    assert run(under, full, 1, tmp_path, tmp_path / "log", insert, tmp_path) == "database or disk is full"
    assert any(call.startswith("pwrite") for _, call in calls(tmp_path / "log"))


def two_clocks(seconds):
    before = time.time(), time.monotonic()
    shift_clock(seconds)
    return time.time() - before[0], time.monotonic() - before[1]


def test_only_the_wall_clock_jumps():
    wall, monotonic = run(two_clocks, -86400)
    assert -86400 <= wall < -86300
    assert 0 <= monotonic < 60


# ── a little of the program ──


EVERY = {"ledger": 23, "convert to Orbax": 99, "export": 19, "write an adapter": 19, "training saves": 199}
READS = {"read a job file": 3, "read a checkpoint": 23, "read an Orbax checkpoint": 17, "read a model": 23}
READS |= {"read a processor": 5, "read a recipe": 2, "read media": 11, "resume training": 9}
EVERY |= {"save_pretrained": 19}


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_every_few_calls(trial):
    failures = FAILURES if trial.name == "ledger" else [f for f in FAILURES if f.name in ("EIO once", "EINTR")]
    tallies = fail_calls(trial, failures, every=EVERY[trial.name], seed=1)
    violations = [violation for tally in tallies for violation in tally.violations]
    assert not violations, "\n".join([table(tallies), *violations])
    assert len(tallies) == len(failures)
    assert all(tally.outcomes for tally in tallies)


@pytest.mark.parametrize("trial", READ_TRIALS, ids=lambda trial: trial.name)
def test_every_few_reads(trial):
    """A disk that fails is said with the file's name, and is never taken for damage or for the end of a file."""
    (tally,) = fail_calls(trial, READING[:1], every=READS[trial.name], seed=1)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.outcomes["said"]


@pytest.mark.parametrize(("name", "numbers"), [("convert to Orbax", (2, 3)), ("training saves", (4, 5))])
def test_a_directory_of_orbax_that_cannot_be_made(name, numbers):
    """The run ends at once: what writes into the directory does not wait for it, and keeps no process for minutes."""
    (trial,) = (trial for trial in TRIALS if trial.name == name)
    (tally,) = fail_calls(trial, [NO_DIRECTORY], numbers=numbers)
    assert tally.outcomes == {"said": len(numbers)}, "\n".join(tally.violations)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_full_disks(trial):
    tally = fill_disks(trial, 2, seed=2)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.note or tally.outcomes.total() == 2
