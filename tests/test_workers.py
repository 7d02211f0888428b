"""`make test` hands out whole modules and groups, the longest first."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import workers

ROOT = Path(__file__).parents[1]


def test_the_modules_are_there():
    """One that is renamed would be begun last, or apart from its group."""
    for file in {*workers.LONGEST, *itertools.chain(*workers.GROUPS)}:
        assert (ROOT / file).is_file(), file


def test_the_longest_come_first():
    names = ["tests/a.py::test[a]", f"{workers.LONGEST[1]}::test", "tests/b.py::test", f"{workers.PAIRS[1]}::test"]
    last = len(workers.LONGEST)
    assert [workers.turn(SimpleNamespace(nodeid=name)) for name in names] == [last, 1, last, 0]


def test_a_module_or_a_group_goes_to_one_worker():
    pytest.importorskip("xdist", reason="needs pytest-xdist (extra `test`)")
    values = {"dist": "loadfile", "tx": ["2*popen"]}
    config = SimpleNamespace(getvalue=values.get, option=SimpleNamespace())
    made = workers.scheduler(config, None)
    names = ["tests/a.py::test_a[x::y]", "tests/a.py::TestA::test_b", *(f"{name}::test" for name in workers.DOWNLOADS)]
    assert [made._split_scope(name) for name in names] == ["tests/a.py", "tests/a.py", *workers.DOWNLOADS[:1] * 2]
    assert config.option.loadscopereorder is False
    assert workers.scheduler(SimpleNamespace(getvalue={"dist": "load"}.get), None) is None
