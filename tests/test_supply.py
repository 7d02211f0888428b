"""What tests run with is locked, and nothing in the package runs what it reads."""

from __future__ import annotations

import ast
import datetime
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"test": ("test", "lint"), "package": (), "reference": ("reference",), "libtpu": None}
"""The extras whose requirements each kind of lock has."""
TODAY = datetime.date(2026, 12, 1)


def locked(lock: Path) -> dict[str, str]:
    """The versions of a lock by name."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def wanted(extras: tuple[str, ...], python: str) -> list[Requirement]:
    """What pyproject.toml asks for on a Python, extras of extras included."""
    found = []
    for text in (
        *PROJECT["dependencies"],
        *(text for extra in extras for text in PROJECT["optional-dependencies"][extra]),
    ):
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        if requirement.name == PROJECT["name"]:
            found += wanted(tuple(requirement.extras), python)
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_has_what_pyproject_asks_for(lock):
    """`make lock` after a change of pyproject.toml; `.ci/lock --no-upgrade` keeps the other versions."""
    kind, _, python = lock.stem.partition("-")
    if (extras := EXTRAS[kind]) is None:
        return
    versions = locked(lock)
    for requirement in wanted(extras, python):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked"
        assert requirement.specifier.contains(version), f"{requirement}: locked is {version}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_version_has_hashes_and_no_place(lock):
    text = lock.read_text()
    for block in re.split(r"\n(?=\S)", text.strip()):
        if not block.startswith("#"):
            first, *hashes = block.split(" \\\n")
            assert re.fullmatch(r"[\w.-]+==[\w.!+]+", first), first
            assert hashes, first
            assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    assert not re.search(r"://|--(extra-)?index|--find-links|@ ", text)


def test_both_pythons_are_locked():
    names = {lock.stem for lock in LOCKS}
    assert {f"{kind}-{python}" for kind in ("test", "package", "libtpu") for python in ("3.11", "3.12")} < names
    for lock in LOCKS:
        kind, _, python = lock.stem.partition("-")
        tested = locked(ROOT / "requirements" / f"test-{python}.txt")
        for name, version in locked(lock).items():
            assert kind == "libtpu" or tested.get(name, version) == version, (lock.stem, name)


# ── the audit ──

AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("package", "excepted", "complaint"),
    [
        ({"vulns": []}, {}, None),
        ({"vulns": [KNOWN]}, {}, "a 1: PYSEC-1, mended in 2"),
        ({"vulns": [KNOWN]}, {"CVE-1": {}}, None),
        ({"vulns": [KNOWN]}, {"CVE-2": {}}, "a 1: PYSEC-1, mended in 2"),
        ({"skip_reason": "nobody answers"}, {"CVE-1": {}}, "a: not looked up: nobody answers"),
    ],
)
def test_an_audit_complains_of_what_is_known_and_what_could_not_be_looked_up(package, excepted, complaint):
    report = {"dependencies": [{"name": "a", "version": "1", **package}]}
    assert AUDIT["complaints"](report, excepted) == ([] if complaint is None else [complaint])


def test_exceptions_expire():
    def expired(**exception):
        return AUDIT["expired"]({"CVE-1": exception}, TODAY)

    assert not expired(until=TODAY, reason="not used")
    assert "has expired on 2026-11-30: not used" in expired(until=TODAY - datetime.timedelta(1), reason="not used")[0]
    for wrong in ({"until": TODAY}, {"reason": "x"}, {"until": "2026-12-01", "reason": "x"}):
        assert "expected `until = YYYY-MM-DD` and a `reason`" in expired(**wrong)[0]


def test_the_exceptions_can_be_read():
    """Whether they have expired is for `make audit` alone, so that no test fails by its date."""
    exceptions = tomllib.loads((ROOT / "requirements" / "exceptions.toml").read_text())
    assert not AUDIT["expired"](exceptions, datetime.date.min)


# ── the package runs nothing that it reads ──

BAD = """
import os, pickle, subprocess, yaml
exec(a)
eval(a)
pickle.loads(a)
yaml.load(a, Loader=yaml.Loader)
subprocess.run(a, shell=True)
os.system(a)
"""


def test_ruff_refuses_what_runs_what_it_reads(tmp_path):
    """The rules are on for the package and for `convert/`, as they stand in pyproject.toml."""
    for place in ("videollava_jax", "convert"):
        ruff = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
        named = ["--stdin-filename", f"{place}/bad.py", "-"]
        done = subprocess.run([*ruff, *named], input=BAD, capture_output=True, text=True, cwd=ROOT)
        found = set(re.findall(r": (S\d+)", done.stdout))
        assert found >= {"S102", "S307", "S301", "S506", "S602", "S605"}, done.stdout + done.stderr


def unsafe_loads(code: str) -> list[int]:
    """Lines that call torch.load without `weights_only=True`, or numpy's load with `allow_pickle`."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            of_torch = ast.unparse(node.func.value) == "torch" and options.get("weights_only") != "True"
            if of_torch or options.get("allow_pickle", "False") != "False":
                found.append(node.lineno)
    return found


def test_checkpoints_are_read_without_running_their_code():
    assert unsafe_loads("torch.load(a)\ntorch.load(a, weights_only=True)\nnp.load(a, allow_pickle=x)\nnp.load(a)") == [
        1,
        3,
    ]
    found = [
        (str(path.relative_to(ROOT)), line)
        for folder in ("videollava_jax", "convert", "train")
        for path in (ROOT / folder).rglob("*.py")
        for line in unsafe_loads(path.read_text())
    ]
    assert not found
