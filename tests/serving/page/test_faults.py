"""The page in headless Chromium: streams cut anywhere, what goes wrong, and people with other screens and hands."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.serving.fake import FakeSession
from tests.serving.page.pages import CLIP, ask, choose, ended, of_module, run_page, until, without_end
from tests.serving.test_scheduling import served_by

pytestmark = pytest.mark.browser


# ── streams and words ──


def test_events_are_read_whatever_pieces_they_come_in(page):
    stream = ': ping\n\ndata: {"a": "ü😀"}\r\n\r\ndata:one\r\ndata: two\r\n\nevent: x\nid: 7\n\ndata\n\n'
    stream += "data: [DONE]\n\ndata: cut"
    expected = ['{"a": "ü😀"}', "one\ntwo", "", "[DONE]"]
    found = of_module(
        page,
        """[1, 2, 3, 7, 1000].map((size) => {
            const parser = new m.EventParser();
            const events = [];
            for (let at = 0; at < given.length; at += size) events.push(...parser.push(given.slice(at, at + size)));
            return events;
        })""",
        stream,
    )
    assert found == [expected] * 5


def test_characters_cut_in_two_by_the_network_come_out_whole(page):
    found = of_module(
        page,
        """await (async () => {
            const bytes = new TextEncoder().encode('data: {"text": "ü😀é"}\\n\\ndata: [DONE]\\n\\n');
            const body = new ReadableStream({
                start(it) { for (const b of bytes) it.enqueue(Uint8Array.of(b)); it.close(); },
            });
            const chunks = [];
            for await (const chunk of m.completionChunks(body)) chunks.push(chunk);
            return chunks;
        })()""",
    )
    assert found == [{"text": "ü😀é"}]


def test_a_screen_reader_gets_whole_sentences(page):
    texts = ["A b. C", "A b.", "3.5 m", "a! b? c\nd", "はい。い"]
    assert of_module(page, "given.map((text) => m.wholeSentences(text))", texts) == [4, 0, 0, 8, 3]


# ── what goes wrong ──


def test_what_the_model_says_is_never_taken_for_html(page):
    choose(page)
    said = "<img src=x onerror='document.title=1'><script>document.title=2</script>**b**"
    chunks = [{"choices": [{"delta": {"content": said}}]}, {"choices": [], "usage": None}]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    assert ask(page, "<b>bold</b>")[0] == said
    assert page.locator(".question").inner_text().startswith("<b>bold</b>")
    assert page.locator(".text *, .question b").count() == 0
    assert page.title() == "videollava: ask a video"


def test_a_refusal_of_the_server_is_shown_in_words(page, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    page.locator("#file").set_input_files(tmp_path / "notes.mp4")
    page.get_by_role("alert").filter(has_text=re.compile("video")).wait_for()
    assert page.locator("#drop").is_visible()
    choose(page)
    page.get_by_label("Rule").select_option("num_frames")
    page.get_by_label("Number").fill("10000")
    page.get_by_label("Number").press("Tab")
    page.locator(".about", has_text="expected at most").wait_for()
    ask(page, "What shape is it?")
    assert "expected at most" in page.locator(".answer .error").inner_text()
    page.get_by_label("Number").fill("8")
    assert ask(page, "What shape is it?", 2)[0] == "triangle"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {"status": 429, "headers": {"Retry-After": "2"}, "body": '{"error": {"message": "the queue is full"}}'},
            "The queue is full. Try again in 2 seconds.",
        ),
        ({"status": 502, "body": "<html>Bad Gateway</html>"}, "The server answered with status 502."),
        ({"status": 200, "body": 'data: {"choices": []}\n\n'}, "The connection ended before the answer did."),
        (
            {
                "status": 200,
                "body": 'data: {"error": {"message": "there was no answer within 5 s", "code": "deadline"}}\n\n',
            },
            "There was no answer within 5 s.",
        ),
        (None, "The server cannot be reached. Is it still running?"),
    ],
)
def test_other_errors_are_shown_in_words_and_asked_again(page, answer, words):
    choose(page)
    page.route("**/chat/completions", lambda route: route.fulfill(**answer) if answer else route.abort())
    ask(page, "What shape is it?")
    assert page.locator(".answer .error").inner_text() == words
    page.unroute_all()
    page.get_by_role("button", name="Ask again").click()
    page.locator(".facts:not(:empty)").wait_for()
    assert page.locator(".text").inner_text() == "triangle"
    assert not page.locator(".answer .error").is_visible()


def test_a_file_that_the_server_has_dropped_is_uploaded_again(page, address):
    choose(page)
    page.evaluate(
        """async () => {
            const files = (await (await fetch('v1/files')).json()).data;
            for (const { id } of files) await fetch(`v1/files/${id}`, { method: 'DELETE' });
        }"""
    )
    assert ask(page, "What shape is it?")[0] == "triangle"


def test_a_key_is_asked_for_and_sent(browser, tiny_processor):
    session = FakeSession()
    session.answer_at_once = "yes"
    with (
        served_by(session, tiny_processor, api_key="right") as served,
        run_page(browser, served.url, ready=False) as page,
    ):
        key = page.get_by_label("This server asks for an API key")
        for given in ("wrong", "right"):
            key.fill(given)
            page.keyboard.press("Enter")
        page.locator("#server.ready").wait_for()
        assert not key.is_visible()
        choose(page)
        assert ask(page, "Is it red?")[0] == "yes"
        page.reload()
        page.locator("#server.ready").wait_for()  # kept for the tab


def test_a_medium_that_is_given_while_the_server_starts_waits_for_it(browser, tiny_processor):
    session = FakeSession(warm=False)
    session.answer_at_once = "yes"
    with (
        served_by(session, tiny_processor, ready=False) as served,
        run_page(browser, served.url, ready=False) as page,
    ):
        page.get_by_text("starting", exact=True).wait_for()
        page.locator("#file").set_input_files(CLIP)
        page.get_by_text("waiting for the server").wait_for()
        session.warm.set()
        page.locator("#server.ready").wait_for()
        assert ask(page, "Is it red?")[0] == "yes"


def test_what_a_page_has_uploaded_is_deleted_when_it_is_left(page, address):
    choose(page)
    count = "fetch('v1/files').then((answer) => answer.json()).then(({ data }) => data.length)"
    before = page.evaluate(count)
    page.goto("about:blank")
    page.goto(address)
    until(page, f"{count}.then((now) => now === {before - 1})")


def test_a_question_without_a_medium_and_a_medium_without_a_question(page):
    page.get_by_label("Your question").fill("What shape is it?")
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "Choose a video or a picture first."
    choose(page)
    page.get_by_label("Your question").fill(" ")
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "Write a question first."


def test_an_address_of_a_host_that_is_not_allowed(browser, address):
    with run_page(browser, address, expected="Failed to load resource|https://example.org/clip.mp4' violates") as page:
        page.get_by_label("or give the address").fill("https://example.org/clip.mp4")
        page.keyboard.press("Enter")
        page.get_by_text("This browser cannot show it").wait_for()
        ask(page, "What shape is it?")
        assert "example.org" in page.locator(".answer .error").inner_text()


# ── for everyone ──


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_screen(browser, address, tmp_path, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    with run_page(browser, address, width=width, color_scheme=scheme) as page:
        check(page, Axe())
        clip = tmp_path / f"{'long' * 40}.mp4"
        shutil.copy(CLIP, clip)
        choose(page, clip)
        page.get_by_label("Compare two").check()
        until(page, "document.querySelectorAll('.side:last-child .strip img').length === 8")
        page.get_by_text("Options").click()
        ask(page, "word" * 60)
        page.get_by_label("Rule").first.select_option("num_frames")
        page.get_by_label("Number").first.fill("9999")
        ask(page, "What shape is it?", 2)
        page.locator(".answer .error:visible").first.wait_for()
        check(page, Axe())


def check(page, axe):
    violations = axe.run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_alone_is_enough(page):
    without_end(page)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the question"
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("id") == "file"
    outline = "getComputedStyle(document.querySelector('#file + .button')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    with page.expect_file_chooser() as chooser:
        page.wait_for_timeout(200)  # playwright does not wait until the browser has been asked for choosers
        page.keyboard.press("Enter")
    chooser.value.set_files(CLIP)
    page.wait_for_selector(".strip img")
    until(page, "document.activeElement.id === 'question-a'")  # ready to be asked
    page.keyboard.type("What shape")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("is it?")
    assert page.locator("#question-a").input_value() == "What shape\nis it?"
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.text').textContent.length > 0")
    page.keyboard.press("Escape")
    assert ended(page, 1)[1].startswith("stopped")
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.locator(":focus").get_attribute("aria-label") == "Frame 3, 0.50 s: show it in the player":
            break
    assert page.locator(":focus").evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(".strip li:nth-child(3) .now")


def test_with_reduced_motion_nothing_moves_by_itself(browser, address):
    with run_page(browser, address, reduced_motion="reduce") as page:
        choose(page)
        page.wait_for_timeout(300)
        assert page.locator("#screen video").evaluate("(video) => video.paused && video.currentTime === 0")
