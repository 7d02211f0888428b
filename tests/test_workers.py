"""`make test` hands out whole modules and groups, the longest first."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import workers

ROOT = Path(__file__).parents[1]


def test_what_takes_longest_is_there():
    """A module that is renamed, or a group that nobody carries, would be begun last without a word."""
    marked = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for unit in workers.LONGEST:
        assert f'xdist_group("{unit[1:]}")' in marked if unit.startswith("@") else (ROOT / unit).is_file(), unit


def test_the_longest_come_first():
    def item(file, group=None):
        mark = group and pytest.mark.xdist_group(group).mark
        return SimpleNamespace(nodeid=f"{file}::test[a]", get_closest_marker=lambda name: mark)

    items = [item("tests/a.py"), item(workers.LONGEST[1]), item("tests/b.py"), item("tests/c.py", "processes")]
    assert [workers.turn(each) for each in items] == [len(workers.LONGEST), 1, len(workers.LONGEST), 0]


def test_a_module_or_a_group_goes_to_one_worker():
    pytest.importorskip("xdist", reason="needs pytest-xdist (extra `test`)")
    values = {"dist": "loadgroup", "tx": ["2*popen"]}
    config = SimpleNamespace(getvalue=values.get, option=SimpleNamespace())
    made = workers.scheduler(config, None)
    names = ["tests/a.py::test_a[x@y]", "tests/a.py::TestA::test_b", "tests/b.py::test_c@processes"]
    assert [made._split_scope(name) for name in names] == ["tests/a.py", "tests/a.py", "processes"]
    assert config.option.loadscopereorder is False
    assert workers.scheduler(SimpleNamespace(getvalue={"dist": "load"}.get), None) is None
