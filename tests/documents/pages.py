"""The documents, as a reader sees them: blocks and commands in the order of the page, with the marks of its source.

A mark is an HTML comment, which is not shown: `<!-- not run: needs a TPU -->`. It stands before a block, and behind a
command in a sentence, a list or a table. `Marks` has them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/**/*.md", "*/README.md", "videollava_jax/assets/*/README.md", "benchmarks/*.md")
"""Where documents are. A new page is found by itself."""

LANGUAGES = ("bash", "console", "python", "json", "yaml", "text")
"""What a block can be: commands; commands after `$` with what they print; code; data; or nothing to type."""

PROGRAMS = (
    "videollava", "python", "pip", "pytest", "make", "pre-commit", "git", "cd", "source", "cat", "cp", "head", "ray",
    "sqlite3", "tensorboard", "hf",
)  # fmt: skip
"""What a command begins with: code in a sentence that begins with one of these is a command too."""


@dataclass(frozen=True)
class Marks:
    """What the source of a page says about a block or a command. "" means: not marked so.

    Attributes:
      not_run: why it cannot be run here; its command lines are parsed all the same.
      slow: why it takes long; run with `-m slow` only, and otherwise parsed.
      needs: a package without which it is only parsed.
      file: the block is the content of this file, which the page names.
      lines: the printed lines stand elsewhere on this page, which the value names.
    """

    not_run: str = ""
    slow: str = ""
    needs: str = ""
    file: str = ""
    lines: str = ""


@dataclass(frozen=True)
class Item:
    """A block, or a command in a sentence.

    Attributes:
      line: of the page, counted from 1.
      language: one of `LANGUAGES`; "inline" for a command in a sentence; anything else is a fault.
      text: without fences and backquotes.
      marks: of its source.
    """

    line: int
    language: str
    text: str
    marks: Marks = field(default_factory=Marks)


@dataclass(frozen=True)
class Page:
    """A document.

    Attributes:
      name: its path in the repository.
      text: its source.
      given: the names that a reader brings: a model, a clip. What stands in for each is in `stand_ins.py`.
      items: in the page's order.
      faults: marks that mark nothing, or are none.
    """

    name: str
    text: str
    given: tuple[str, ...]
    items: tuple[Item, ...]
    faults: tuple[str, ...]


def documents() -> list[Path]:
    """Returns the files of all documents."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not path.relative_to(ROOT).parts[0].startswith("."))


def pages() -> list[Page]:
    """Returns all documents with something to type, by name."""
    read = [read_page(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in documents()]
    return [page for page in read if page.items or page.faults]


def read_page(name: str, text: str) -> Page:
    """Parses the Markdown of a page."""
    given: tuple[str, ...] = ()
    items: list[Item] = []
    faults: list[str] = []
    waiting: dict[str, str] = {}
    for token, line in _flat(MarkdownIt("commonmark").enable("table").parse(text)):
        found = _marks(token.content) if token.type.startswith("html_") else {}
        if "given" in found:
            given += tuple(found.pop("given").split())
        for key in found.keys() - {f.name for f in fields(Marks)}:
            faults.append(f"line {line}: no such mark: {key}")
            del found[key]
        if token.type == "html_block":
            waiting |= found
        elif token.type == "html_inline" and found:
            if items and items[-1].line <= line and items[-1].language == "inline":
                items[-1] = Item(items[-1].line, "inline", items[-1].text, Marks(**found))
            else:
                faults.append(f"line {line}: a mark in a sentence stands behind a command")
        elif token.type == "fence":
            items.append(Item(line, token.info.strip(), token.content, Marks(**waiting)))
            waiting = {}
        elif waiting and token.type not in ("inline", "code_inline", "html_inline", "paragraph_close"):
            faults.append(f"line {line}: the mark before it belongs to no block")
            waiting = {}
        elif token.type == "code_inline" and is_command(token.content):
            items.append(Item(line, "inline", token.content))
    if waiting:
        faults.append("the last mark belongs to no block")
    return Page(name, text, given, tuple(items), tuple(faults))


def is_command(code: str) -> bool:
    """Whether code in a sentence is a command line and not a name."""
    words = code.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return len(words) > 1 and Path(words[0]).name in PROGRAMS


def _flat(tokens: list[Token]) -> Iterator[tuple[Token, int]]:
    """Yields tokens and the parts of lines of text, each with the number of its line."""
    line = 1
    for token in tokens:
        line = token.map[0] + 1 if token.map else line
        yield token, line
        yield from ((child, line) for child in token.children or ())


def _marks(html: str) -> dict[str, str]:
    return {
        name.replace(" ", "_"): value for name, value in re.findall(r"<!--\s*([a-z ]+):\s*(.*?)\s*-->", html, re.DOTALL)
    }
