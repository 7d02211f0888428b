"""Whether a command line could be run: its program, its files and its flags are there. Nothing of it is run."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.documents.pages import ROOT
from tests.documents.shell import call

ELIDED = "…"
"""Stands in a sentence for arguments that are left out."""


class Wrong(Exception):
    """A command line that cannot be right."""


def check(words: Sequence[str]) -> bool:
    """Checks a command line with the parser of its program; returns whether there is one to ask.

    Raises:
      Wrong: the program refuses it.
    """
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    program = Path(words[0]).name
    if program in CHECKS:
        CHECKS[program](words[1:])
    return program in CHECKS


def _videollava(arguments: Sequence[str]) -> None:
    name, *given = arguments
    if ELIDED in given or not given:
        _flags(("videollava", name), given)
    elif name == "finetune":  # its parser is another library's
        from videollava_jax.training.run.recipe import read_recipe

        _parsed(functools.partial(read_recipe, description="", prog="videollava finetune"), given)
    else:
        from videollava_jax.cli import parse

        _parsed(parse, arguments)


def _parsed(parse: Callable[..., object], *arguments: object) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            parse(*arguments)
        except SystemExit as end:
            if end.code not in (0, None):
                raise Wrong(said.getvalue().strip()[-500:]) from None


def _python(arguments: Sequence[str]) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif list(arguments[:2]) == ["-m", "pytest"]:
        _pytest(arguments[2:])
    elif arguments[0] == "-m":
        if importlib.util.find_spec(arguments[1]) is None:
            raise Wrong(f"there is no module {arguments[1]}")
        _flags(("python", "-m", arguments[1]), arguments[2:])
    else:
        if not Path(arguments[0]).is_file():
            raise Wrong(f"there is no {arguments[0]}")
        _flags(("python", arguments[0]), arguments[1:])


def _flags(program: tuple[str, ...], given: Sequence[str]) -> None:
    """Looks the flags up in what `--help` prints; a command of ours is looked up itself."""
    flags = {word.split("=")[0] for word in given if word.startswith("--")} - {"--help"}
    if (flags or program[0] == "videollava") and (unknown := flags - flags_of(program)):
        raise Wrong(f"{' '.join(program)} --help does not know {', '.join(unknown)}")


@functools.cache
def flags_of(program: tuple[str, ...]) -> frozenset[str]:
    """Returns the flags that the help of a program names."""
    done = call(program[0], [*program[1:], "--help"])
    if done.status:
        raise Wrong(f"{' '.join(program)} --help ended with status {done.status}: {done.err[-300:]}")
    return frozenset(re.findall(r"--[A-Za-z][\w.-]*\w", done.out))


def _pip(arguments: Sequence[str]) -> None:
    """Extras are those of pyproject.toml, and this project is installed from its directory: it is on no index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments[1:]:
        if project["name"] in word:
            raise Wrong(f"{word} is published nowhere: pip install -e '.[…]'")
        if word.startswith("."):
            unknown = set(re.findall(r"\w+", word)) - project["optional-dependencies"].keys()
            if unknown:
                raise Wrong(f"pyproject.toml has no extra {unknown}")


def _pytest(arguments: Sequence[str]) -> None:
    for word in arguments:
        if word.startswith("tests") and not (ROOT / word.split("::")[0]).exists():
            raise Wrong(f"there is no {word}")


def _make(arguments: Sequence[str]) -> None:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(done.stderr)


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "videollava": _videollava,
    "python": _python,
    "pip": _pip,
    "pytest": _pytest,
    "make": _make,
}
"""The programs whose command lines can be checked."""

NEVER_RUN = {
    "pip": "it would change the environment of the tests",
    "pytest": "`make test` runs the tests",
    "make": "it would make an environment, and run the tests in it",
    "pre-commit": "it would change what git does in this checkout",
}
"""The programs that are only checked, wherever a page has them."""


def never_run(words: Sequence[str]) -> bool:
    """Whether a command line is only checked: of `NEVER_RUN`, or a call of pytest by another name."""
    program = Path(words[0]).name
    return program in NEVER_RUN or (program == "python" and list(words[1:3]) == ["-m", "pytest"])
