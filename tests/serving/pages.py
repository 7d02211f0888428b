"""A headless Chromium, and pages that fail a test by what they complain about."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Starts a headless Chromium, or skips what needs one."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium is installed: expected one of {', '.join(_NAMES)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def run_page(
    browser: Any,
    address: str,
    *,
    width: int = 1280,
    ready: bool = True,
    before: Callable[[Any], None] = lambda page: None,
    expected: str = "Failed to load resource",
    **options: Any,
) -> Iterator[Any]:
    """Opens the page in a context of its own. An exception, or anything that its policy refuses, fails the test.

    Args:
      width: of the window, pixels.
      ready: whether to wait for the server to be ready.
      expected: a pattern of complaints that are no fault; refusals by the server are such.
      before: called with the page before it is opened.
      options: of the context.
    """
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: said.type == "error" and not re.search(expected, said.text) and complaints.append(said.text),
    )
    before(page)
    page.goto(address)
    if ready:
        page.locator("#server.ready").wait_for()
    yield page
    context.close()
    assert complaints == []


def until(page: Any, expression: str, seconds: float = 10) -> None:
    """Waits until an expression is true on a page. (Playwright's own way compiles a text, which the policy refuses.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds:g} s: {expression}"
        page.wait_for_timeout(20)
