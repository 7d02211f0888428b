"""A headless Chromium, pages that fail a test by what they complain about, and what is done on them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from videollava_jax.assets import MEDIA

LONGEST = 300
"""Tokens that an answer of the server may have."""
CLIP, OTHER, PICTURE = (
    MEDIA / name for name in ("rising-triangle.mp4", "circle-then-square.mp4", "three-triangles.png")
)
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


def choose(page: Any, path: Any = CLIP, frames: int = 8) -> None:
    """Chooses a file, and waits until its frames are shown."""
    page.locator("#file").set_input_files(path)
    until(page, f"document.querySelectorAll('.side:first-child .strip img').length === {frames}")


def ask(page: Any, question: str, number: int = 1) -> tuple[str, str]:
    """Asks, and returns the answer and the small line under it, once the answer has ended."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    return ended(page, number)


def ended(page: Any, number: int, side: int = 1) -> tuple[str, str]:
    """Waits until an answer has ended; returns it and the small line under it."""
    answer = page.locator(f".turn:nth-child({number}) .answer:nth-child({side})")
    answer.locator(".facts:not(:empty), .error:visible").first.wait_for()
    return answer.locator(".text").inner_text(), answer.locator(".facts").inner_text()


def of_module(page: Any, expression: str, argument: Any = None) -> Any:
    """What an expression gives on the module `m` of the page."""
    return page.evaluate(
        f"async (given) => {{ const m = await import('./page/page.js'); return {expression}; }}", argument
    )


def without_end(page: Any) -> None:
    """Has the server answer for long: the token that ends an answer is never chosen."""

    def endless(route: Any) -> None:
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps({**body, "logit_bias": {"2": -100}, "max_tokens": 300}))

    page.route("**/chat/completions", endless)
