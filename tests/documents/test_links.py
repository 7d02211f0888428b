"""Every link of the documents leads to a file, and to a heading of it."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.documents.pages import ROOT, documents

READER = MarkdownIt("commonmark").enable("table")


def links(text):
    """Yields the targets of links and images."""
    for token in READER.parse(text):
        for part in token.children or ():
            if target := part.attrGet("href") or part.attrGet("src"):
                yield str(target)


def anchors(text):
    """Returns the names that GitHub gives to the headings of a page."""
    tokens = READER.parse(text)
    headings = [b.content for a, b in zip(tokens, tokens[1:], strict=False) if a.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
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


def test_what_is_wrong_is_found():
    assert list(links("[a](b.md#c) and ![d](e.png)")) == ["b.md#c", "e.png"]
    assert anchors("# One: `two`, three\n## 6. Or run with Ray") == {"one-two-three", "6-or-run-with-ray"}
