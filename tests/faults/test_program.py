"""The program `python -m tests.faults`: its parts are there, and what goes wrong in one is in the table."""

import pytest

from tests.faults import attacks
from tests.faults.__main__ import run_all
from tests.faults.children import Child
from tests.faults.parts import PARTS, Part
from tests.faults.report import COLUMNS, Finding, into_page, markdown
from tests.faults.tables import BAD, Tally


def trouble(seed, scale):
    """A part with an outcome of every bad kind."""
    tally = Tally("trouble")
    for kind in (*BAD, "all is well"):
        tally.add(kind, f"case 1 of seed {seed}", seconds=scale, memory=2**20)
    return [tally]


def dies(seed, scale):
    raise SystemExit(3)


def hangs(seed, scale):
    while True:
        pass


def test_every_part_is_a_function_that_says_what_it_does():
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert part.load().__doc__, part.name


@pytest.fixture(scope="module")
def findings():
    module = "test_program"
    parts = [
        Part("trouble", "every bad kind", module, "trouble"),
        Part("dies", "an exit", module, "dies"),
        Part("hangs", "no end", module, "hangs", minutes=1 / 30),
    ]
    said = []
    found = run_all(parts, 5, 2.0, 2, said.append)
    assert [line for line in said if "begun" in line] == [f"{part.name}: {part.tries}: begun" for part in parts]
    return {finding.name: finding for finding in found}


def test_bad_outcomes_have_their_columns(findings):
    cells = findings["trouble"].cells()
    assert cells[2] == str(len(BAD) + 1)
    assert cells[3 : 4 + len(COLUMNS)] == ["1"] * len(BAD)
    assert cells[-3:] == ["2.0 s", "1 MiB", "1 all is well"]
    assert len(findings["trouble"].violations) == len(BAD)
    assert "trouble: trouble: silent: case 1 of seed 5" in findings["trouble"].violations


def test_a_part_that_dies_or_hangs_is_in_the_table(findings):
    assert findings["dies"].tallies[0].outcomes == {"crash": 1}
    assert findings["hangs"].tallies[0].outcomes == {"hang": 1}
    assert "4 s" in findings["hangs"].violations[0]
    total = markdown(list(findings.values())).splitlines()[-1].split("|")
    assert [int(cell) for cell in total[3:6]] == [len(BAD) + 3, 2, 2]


def test_attacks_on_every_path():
    """A small file that would take gigabytes is refused or read within the limits; `--only attacks` tries them all."""
    with attacks.written(2) as (_, file):
        for path in attacks.PATHS:
            tally = Tally(path)
            attacks._count(tally, file.name, Child(attacks._measured, path, str(file)).result(300))
            assert tally.violations == [], path
            assert tally.outcomes == {"refused": 1}, path


def test_the_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    into_page(page, "x", markdown([Finding("a", "b | c", 0, [Tally("d")], 1.0, 2**20)]))
    text = page.read_text()
    assert text.startswith("before\n<!-- x -->\n| part |")
    assert "| a | b / c | 0 |" in text
    assert text.endswith("<!-- end of x -->\nafter\n")
    with pytest.raises(ValueError, match="expected the marks"):
        into_page(page, "y", "")
