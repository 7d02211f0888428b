"""Temporary directories: removed at the end, or by the next process after a kill."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults.children import Child
from videollava_jax.temporary import TemporaryPlace


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def hold(say, parent):
    """Makes a directory with a file in it, and waits to be killed."""
    tempfile.tempdir = parent
    with TemporaryPlace("ours-") as place:
        (place / "a" / "b").mkdir(parents=True)
        say(str(place))
        time.sleep(600)


def test_it_is_removed_at_the_end(tmp_path):
    with TemporaryPlace("ours-") as place:
        assert place.parent == tmp_path
        (place / "file").write_text("x")
    assert not list(tmp_path.iterdir())
    left = TemporaryPlace("ours-")
    del left
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path):
    Child(os.getpid).result()  # multiprocessing makes a directory of its own at first
    for name in ("theirs-1", "ours-without-a-lock"):
        (tmp_path / name).mkdir()
    (tmp_path / "ours-file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".lock").touch()
    os.symlink(tmp_path / "elsewhere", tmp_path / "ours-link")
    kept = set(tmp_path.iterdir())
    child = Child(hold, str(tmp_path), say=True)
    held = Path(child.receive(60)[1])
    with TemporaryPlace("ours-"):
        assert held.exists()
    child.kill()
    child.close()
    assert held.exists()
    with TemporaryPlace("ours-") as place:
        assert set(tmp_path.iterdir()) == kept | {place}
    assert set(tmp_path.iterdir()) == kept
    assert (tmp_path / "elsewhere" / ".lock").exists()
