"""Every promise of SECURITY.md names a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_the_tests_of_promises_exist():
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_\w+))?`", PAGE)
    links = re.findall(r"\[`(tests/[a-z_/]+\.py)(?:::test_\w+)?`\]\((\S+)\)", PAGE)
    assert len(named) == len(links) > 30
    assert [link for link in links if link[0] != link[1]] == []
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{path} has no {name}"


def test_every_promise_has_one():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "promise | test" not in line]
    promises = [row for row in rows if row.count("|") == 3]
    assert len(promises) > 20
    assert [row for row in promises if "`tests/" not in row] == []
