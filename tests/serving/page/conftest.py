"""A server of the tiny model for the tests of the page, and a browser: programs are compiled once for all of them."""

import time

import pytest

from tests.serving.conftest import serving
from tests.serving.page.pages import LONGEST, chromium, run_page
from videollava_jax.engine import Engine
from videollava_jax.serving.settings import Settings


@pytest.fixture(scope="package")
def browser():
    """Of all these tests: each has pages of its own."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def served(browser, tiny_model, tiny_processor, reader):
    """A server whose answers may be long enough to be stopped, and that no other module asks."""
    session = Engine(tiny_model, tiny_processor, max_rows=8, reader=reader).session(rows=4, longest_answer=LONGEST)
    settings = Settings(model="tiny", max_frames=8, longest_answer=LONGEST, max_tokens=512, examples=True)
    with serving(session, tiny_processor, settings, reader) as made:
        ends = time.monotonic() + 300
        while not any(record["state"] == "ready" for record in made.said):
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield made


@pytest.fixture(scope="package")
def address(served):
    """Of the page."""
    return f"{served.url}/"


@pytest.fixture
def page(browser, address):
    """The page, open."""
    with run_page(browser, address) as page:
        yield page
