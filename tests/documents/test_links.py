"""Every link of the documents leads to a file, and to a heading of it; every flag in a sentence exists."""

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.documents.pages import ROOT, documents
from tests.documents.parsing import flags_of
from videollava_jax.cli import _COMMANDS
from videollava_jax.training.update.options import Lora

PYTESTS = {"--pdb"}
READER = MarkdownIt("commonmark").enable("table")
PAGES = pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))


def links(text):
    """Yields the targets of links and images."""
    for token in READER.parse(text):
        for part in token.children or ():
            if target := part.attrGet("href") or part.attrGet("src"):
                yield str(target)


def anchors(text):
    """Returns the names that GitHub gives to the headings of a page."""
    tokens = READER.parse(text)
    headings = [b.content for a, b in pairwise(tokens) if a.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flags(text):
    """Yields the flags that stand alone in sentences and tables: `--fps`, `--mesh 1x4`."""
    for token in READER.parse(text):
        for part in token.children or ():
            if part.type == "code_inline" and (found := re.match(r"--[a-z][\w.-]*", part.content)):
                yield found[0]


@pytest.fixture(scope="module")
def known():
    """The flags of all commands, and of the programs around the package, as their sources have them."""
    found = set().union(*(flags_of(("videollava", command.name)) for command in _COMMANDS))
    found |= set().union(*(flags_of(("videollava", "eval", name)) for name in ("answer", "score", "compare", "world")))
    for folder in ("train", "convert", "benchmarks", "tests/faults", "tests/planning"):
        for path in (ROOT / folder).glob("*.py"):
            found |= set(re.findall(r"\"(--[a-z][\w-]*)\"", path.read_text(encoding="utf-8")))
    found |= {f"--lora.{field.name}" for field in dataclasses.fields(Lora)}  # `finetune --help` has `--lora` alone
    return found | {"--help", "--version"}


@PAGES
def test_links_lead_somewhere(page: Path):
    wrong = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    assert not wrong


@PAGES
def test_flags_in_sentences_exist(page: Path, known):
    assert set(flags(page.read_text(encoding="utf-8"))) <= known | PYTESTS


def test_what_is_wrong_is_found():
    assert list(links("[a](b.md#c) and ![d](e.png)")) == ["b.md#c", "e.png"]
    assert anchors("# One: `two`, three\n## 6. Or run with Ray") == {"one-two-three", "6-or-run-with-ray"}
    assert list(flags("| `--a-b 1x4` | `a --c` |\n\n`--d.e`")) == ["--a-b", "--d.e"]
