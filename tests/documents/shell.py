"""Command lines of a page: taken apart, run in this process where the program is ours, and by bash elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.documents.pages import ROOT

_COMPOUND = re.compile(r"^\s*(for|if|while|until|case|function|\{|\()\b|<<|^#!", re.MULTILINE)
_COMMENT = r"(?:^|\s)#.*$"
_QUOTED_OR_COMMENT = re.compile(rf"'[^']*'|\"[^\"]*\"|{_COMMENT}")
_SINGLE_QUOTED_OR_COMMENT = re.compile(rf"'[^']*'|{_COMMENT}")


_JOBS: list[int] = []
"""Processes that a page's command lines have left in the background; the first is `%1`."""


@dataclass(frozen=True)
class Line:
    """A command line, continued lines joined.

    Attributes:
      text: as it is typed.
      printed: the lines that the page shows below it; None if it shows none.
    """

    text: str
    printed: tuple[str, ...] | None = None

    @property
    def words(self) -> list[str] | None:
        """Its words, without comments; None if it needs a shell: pipes, redirections, patterns, substitutions."""
        bare = _QUOTED_OR_COMMENT.sub("", self.text)
        if re.search(r"[|&;<>()*`]", bare) or re.search(r"\$\(|`", _SINGLE_QUOTED_OR_COMMENT.sub("", self.text)):
            return None
        return shlex.split(self.text, comments=True)


@dataclass(frozen=True)
class Done:
    """What a command did: its exit status, and what it printed."""

    status: int
    out: str
    err: str


def lines_of(text: str, *, console: bool) -> list[Line]:
    """Splits a block into command lines; one with loops or here-documents stays whole.

    Args:
      text: of the block, or of a command in a sentence.
      console: commands stand behind `$ `, and the other lines are what they print.
    """
    if not console and _COMPOUND.search(text):
        return [Line(text)]
    found: list[Line] = []
    for line in text.splitlines():
        if found and found[-1].text.endswith("\\"):
            found[-1] = Line(found[-1].text[:-1].rstrip() + " " + line.strip())
        elif console and not line.startswith("$ "):
            if not found:
                raise ValueError(f"a console block begins with a command behind `$ `, not with {line!r}")
            found[-1] = Line(found[-1].text, (*(found[-1].printed or ()), line.rstrip()))
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(Line(line.removeprefix("$ ").strip()))
    return found


def run(line: Line, place: Path) -> Done:
    """Runs a command line in a directory that is this process's own.

    Variables that it sets (`export A=b`, `A=b`) stay set, and its jobs in the background can be killed by their numbers
    (`kill %1`). Programs of ours run in this process.
    """
    words = line.words
    if words and (job := re.fullmatch(r"kill %(\d+)", " ".join(words))):
        os.kill(_JOBS[int(job[1]) - 1], signal.SIGTERM)
        return Done(0, "", "")
    if words and words[0] == "export":
        words = words[1:]
    if words is not None and all(re.match(r"[A-Za-z_]\w*=", word) for word in words):
        os.environ.update(word.split("=", 1) for word in words)
        return Done(0, "", "")
    if words is None or Path(words[0]).name not in ("videollava", "python"):
        environment = {**os.environ, "PATH": f"{place}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        in_background = line.text.endswith("&")
        text = f"{line.text}\necho $!" if in_background else line.text
        shell = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(shell, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        if in_background and not done.returncode:
            _JOBS.append(int(done.stdout))
            return Done(0, "", done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)
    program, *arguments = (os.path.expandvars(word) for word in words)
    return call(program, arguments)


def end_jobs() -> None:
    """Kills what is left in the background of a page that has been typed."""
    for job in _JOBS:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job, signal.SIGKILL)
    _JOBS.clear()


def call(program: str, arguments: Sequence[str]) -> Done:
    """Runs `videollava` or `python` with arguments in this process."""
    with (
        _own_process(),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = _videollava(arguments) if Path(program).name == "videollava" else _python(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    return Done(status, out.getvalue(), err.getvalue())


def _videollava(arguments: Sequence[str]) -> int:
    from videollava_jax.cli import main

    return main(arguments)


def _python(arguments: Sequence[str]) -> int:
    if arguments[0] == "-c":
        exec(compile(arguments[1], "-c", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        names = (arguments[1], f"{arguments[1]}.__main__")  # a package runs the second
        known = {name: sys.modules.pop(name) for name in names if name in sys.modules}  # earlier: runpy warns of them
        try:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        finally:
            sys.modules.update(known)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


@contextlib.contextmanager
def _own_process() -> Iterator[None]:
    """Puts back what a program changes in its process; it has no standard input."""
    kept = sys.argv[:], sys.path[:], sys.stdin, set(sys.modules), Path.cwd()
    sys.stdin = io.StringIO()
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.stdin = kept[0], kept[1], kept[2]
        os.chdir(kept[4])
        for name in set(sys.modules) - kept[3]:  # the programs' own modules; another folder's may have the same names
            file = getattr(sys.modules[name], "__file__", None) or ""
            if Path(file).parent.name in ("train", "convert", "benchmarks"):
                del sys.modules[name]
