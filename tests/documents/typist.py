"""Types a page: each block and each command, in order, in a directory of its own, as its reader would."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.documents import parsing, shell
from tests.documents.pages import LANGUAGES, ROOT, Item, Page
from tests.documents.stand_ins import CHECKOUT, STAND_INS, WORDS


class Fault(Exception):
    """A block or a command is not what its reader expects."""


@dataclass
class Report:
    """What became of a page.

    Attributes:
      counts: blocks and commands that ran, whose command lines were parsed, that are only marked, and drawings.
      faults: what did not do what the page says, each with its line.
      not_run: the blocks and commands that did not run, each with its reason.
      seconds: of CPU time, child processes included, by the line of the block or command.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)


def type_page(page: Page, place: Path, *, slow: bool = False) -> Report:
    """Types a page in a directory, which must be the current one and empty.

    Args:
      page: the document.
      place: the directory.
      slow: whether what is marked as slow is typed too.
    """
    report, names = Report(faults=list(page.faults)), {"__name__": "__main__"}
    for name in CHECKOUT:
        (place / name).symlink_to(ROOT / name)
    (place / ".venv").symlink_to(sys.prefix)
    for name in page.given:
        make = STAND_INS.get(name) or STAND_INS.get(name.partition("/")[2])  # shared/media is media in a directory
        if make is None:
            report.faults.append(f"nothing stands in for the given {name}: add a row to STAND_INS")
            continue
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        with _silent(), contextlib.suppress(ImportError):  # without torch nothing can be done with its files
            make(place / name)
    for item in page.items:
        began = _cpu_seconds()
        try:
            what = _type(item, page, place, names, slow)
        except Exception as error:
            told = str(error) if isinstance(error, (Fault, parsing.Wrong)) else traceback.format_exc(limit=-3)
            report.faults.append(f"line {item.line}: {told}\n{_indented(item.text)}")
            what = "failed"
        report.counts[what] += 1
        report.seconds[item.line] = report.seconds.get(item.line, 0) + _cpu_seconds() - began
        if what in ("parsed", "marked"):
            why = item.marks.not_run or item.marks.slow or item.marks.needs or "a name, or never run by a test"
            report.not_run.append(f"line {item.line}: {why}")
    shell.end_jobs()
    return report


def _type(item: Item, page: Page, place: Path, names: dict[str, Any], slow: bool) -> str:
    """Types a block or a command; returns what was done: "ran", "parsed", "marked" or "drawing"."""
    language = item.language
    if language not in (*LANGUAGES, "inline"):
        raise Fault(f"the block is {language or 'of no language'!r}, not one of {', '.join(LANGUAGES)}")
    if item.marks.file and item.marks.file not in page.text.replace(f"file: {item.marks.file}", ""):
        raise Fault(f"the page does not name {item.marks.file}, which the block is")
    runs = not item.marks.not_run and (slow or not item.marks.slow) and _there(item.marks.needs)
    if item.marks.file:
        (place / item.marks.file).parent.mkdir(parents=True, exist_ok=True)
        (place / item.marks.file).write_text(_replaced(item.text), encoding="utf-8")
    done = READERS[language](item, page, place, names, runs)
    return done if runs or done != "ran" else "parsed"


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _there(name: str) -> bool:
    """Whether a package or a program is installed."""
    return not name or importlib.util.find_spec(name) is not None or shutil.which(name) is not None


def _commands(item: Item, page: Page, place: Path, names: dict[str, Any], runs: bool) -> str:
    """Runs command lines, and compares what the page shows below them; or parses those that cannot run."""
    if item.language != "inline":
        _bash_accepts(item)
    lines = shell.lines_of(_replaced(item.text), console=item.language == "console")
    done = [_command(line, item, page, place, runs) for line in lines]
    return next(what for what in ("ran", "parsed", "marked") if what in done)


def _command(line: shell.Line, item: Item, page: Page, place: Path, runs: bool) -> str:
    words = line.words
    named = parsing.ELIDED in line.text or (item.language == "inline" and _is_name(line.text.split()))
    if words is not None and (not runs or named or parsing.never_run(words)):
        return "parsed" if parsing.check(words) else "marked"
    if not runs:
        found = [parsing.check(words) for words in _ours(line.text)]
        return "parsed" if found else "marked"
    result = shell.run(line, place)
    if result.status:
        raise Fault(f"`{line.text}` ends with status {result.status}:\n{result.out[-1500:]}{result.err[-1500:]}")
    if line.printed is not None:
        _compare(line.printed, result.out)
    if item.marks.lines:
        there = {_cell(text) for text in page.text.splitlines()}
        missing = [text for text in result.out.splitlines() if text.strip() and _cell(text) not in there]
        if missing:
            raise Fault(f"`{line.text}` prints lines that are not on the page: {missing[:3]}")
    return "ran"


def _is_name(words: Sequence[str]) -> bool:
    """Whether a sentence names a program, as in `videollava ask`, and does not ask to run it."""
    return len(words) == 2 or (len(words) == 3 and list(words[:2]) == ["python", "-m"])


def _ours(text: str) -> Iterator[list[str]]:
    """Yields the command lines of our programs in a script."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.search(r"\b(videollava [a-z].*|python \S.*)", line):
            yield [word for word in re.split(r"\s+", found[1].split(" #")[0].split(" |")[0]) if word]


def _compare(shown: Sequence[str], printed: str) -> None:
    """Compares lines of a page with what was printed; `…` stands for the rest of a line, or of the output."""
    pattern = "\n".join(".*".join(map(re.escape, line.split("…"))) for line in shown)
    pattern = pattern.removesuffix("\n.*") + r"(\n.*)*" if shown[-1] == "…" else pattern
    if not re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.rstrip().splitlines())):
        raise Fault("the page shows\n" + _indented("\n".join(shown)) + "\nbut printed is\n" + _indented(printed))


def _cell(line: str) -> str:
    return re.sub(r"\s+", " ", line.strip())


def _bash_accepts(item: Item) -> None:
    lines = [line.text for line in shell.lines_of(item.text, console=item.language == "console")]
    done = subprocess.run(["bash", "-n"], input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"bash cannot parse it: {done.stderr}")


def _python(item: Item, page: Page, place: Path, names: dict[str, Any], runs: bool) -> str:
    """Runs a block with the names that the page's earlier blocks have defined; or compiles it."""
    code = compile(_replaced(item.text), f"{page.name}:{item.line}", "exec")
    if runs and not item.marks.file:
        with _silent():
            exec(code, names)
    return "ran"


def _json(item: Item, page: Page, place: Path, names: dict[str, Any], runs: bool) -> str:
    """Parses a block that is a file: one JSON value, or one on each line."""
    if not item.marks.file:
        raise Fault("a block of data is a file that some command reads: <!-- file: NAME -->")
    try:
        json.loads(item.text)
    except ValueError:
        for line in item.text.splitlines():
            json.loads(line)
    return "ran"


def _yaml(item: Item, page: Page, place: Path, names: dict[str, Any], runs: bool) -> str:
    """Parses a block, and the command lines of ours in it."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)

    if not item.marks.not_run:
        raise Fault("a manifest is not run: <!-- not run: REASON -->")
    for words in (words for text in texts(yaml.safe_load(item.text)) for words in _ours(text)):
        parsing.check(words)
    return "parsed"


def _text(item: Item, page: Page, place: Path, names: dict[str, Any], runs: bool) -> str:
    """Refuses commands in a block that is not typed."""
    if re.search(r"^(\$ |videollava \w|python |pip )", item.text, re.MULTILINE):
        raise Fault("a text block has nothing to type: commands belong into a bash or a console block")
    return "drawing"


READERS: dict[str, Callable[[Item, Page, Path, dict[str, Any], bool], str]] = {
    "bash": _commands,
    "console": _commands,
    "inline": _commands,
    "python": _python,
    "json": _json,
    "yaml": _yaml,
    "text": _text,
}


def _replaced(text: str) -> str:
    for words, instead in WORDS.items():
        text = text.replace(words, instead.format(here=Path.cwd()))
    return text


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
