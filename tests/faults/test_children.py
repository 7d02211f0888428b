"""Children: what becomes of those that die."""

import os
import signal
import tempfile
import threading
import time

import pytest

from tests.faults import children
from tests.faults.children import Died, Late, run


def test_a_child_that_dies_leaves_its_last_words_and_no_file(tmp_path, monkeypatch):
    assert run(os.getpid) != os.getpid()  # the server of children makes files of its own when it starts
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Died, match=r"status -9: farewell"):
        run(_die)
    assert list(tmp_path.iterdir()) == []


def _die():
    os.write(2, b"farewell")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_answers_and_does_not_end_hangs(monkeypatch):
    monkeypatch.setattr(children, "ENDS", 0.5)
    with pytest.raises(Late, match=r"it answered 7 and did not end within 0\.5 s"):
        run(_leave_a_thread)


def _leave_a_thread():
    threading.Thread(target=time.sleep, args=(60,)).start()
    return 7
