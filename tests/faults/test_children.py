"""Children: what becomes of those that die."""

import os
import signal
import tempfile

import pytest

from tests.faults.children import Died, run


def test_a_child_that_dies_leaves_its_last_words_and_no_file(tmp_path, monkeypatch):
    assert run(os.getpid) != os.getpid()  # the server of children makes files of its own when it starts
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Died, match=r"status -9: farewell"):
        run(_die)
    assert list(tmp_path.iterdir()) == []


def _die():
    os.write(2, b"farewell")
    os.kill(os.getpid(), signal.SIGKILL)
