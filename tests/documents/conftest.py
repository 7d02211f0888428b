"""The directory in which a page is typed."""

import pytest

from tests.compiling import CACHE


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory and a home folder in which nobody has typed anything."""
    home = tmp_path / "home"
    (tmp_path / "here").mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", CACHE)  # for the processes that a page starts
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
