"""The directory in which a page is typed."""

import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory and a home folder in which nobody has typed anything."""
    home = tmp_path / "home"
    (tmp_path / "here").mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
