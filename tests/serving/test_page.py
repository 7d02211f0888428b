"""The page in headless Chromium, on a server with the tiny model: what people do with it, and what may go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.serving.conftest import serving
from tests.serving.fake import FakeSession
from tests.serving.pages import chromium, run_page, until
from tests.serving.test_scheduling import served_by
from videollava_jax.assets import MEDIA
from videollava_jax.engine import Engine
from videollava_jax.serving.settings import Settings

pytestmark = pytest.mark.browser
LONGEST = 300
CLIP, OTHER, PICTURE = (
    MEDIA / name for name in ("rising-triangle.mp4", "circle-then-square.mp4", "three-triangles.png")
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def address(served):
    return f"{served.url}/"


@pytest.fixture
def page(browser, address):
    with run_page(browser, address) as page:
        yield page


def choose(page, path=CLIP, frames=8):
    page.locator("#file").set_input_files(path)
    until(page, f"document.querySelectorAll('.side:first-child .strip img').length === {frames}")


def ask(page, question, number=1):
    """Asks, and returns the answer and the small line under it, once the answer has ended."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    return ended(page, number)


def ended(page, number, side=1):
    answer = page.locator(f".turn:nth-child({number}) .answer:nth-child({side})")
    answer.locator(".facts:not(:empty), .error:visible").first.wait_for()
    return answer.locator(".text").inner_text(), answer.locator(".facts").inner_text()


def of_module(page, expression, argument=None):
    """What an expression gives on the module `m` of the page."""
    return page.evaluate(
        f"async (given) => {{ const m = await import('./page/page.js'); return {expression}; }}", argument
    )


# ── asking ──


def test_a_clip_plays_is_uploaded_once_and_answered_from_the_frames_that_are_shown(page):
    uploads = []
    page.on("request", lambda request: uploads.append(request) if request.url.endswith("/v1/files") else None)
    choose(page)
    until(page, "document.querySelector('#screen video').currentTime > 0.2")  # plays by itself
    assert page.locator("#screen video").evaluate("(video) => video.src.startsWith('blob:') && video.videoWidth") == 112
    assert page.locator(".strip li").all_inner_texts() == [f"{k / 4:.2f} s" for k in range(8)]
    assert page.locator(".strip img").evaluate_all("(images) => images.every((image) => image.naturalWidth === 56)")
    assert "8 frames of 16" in page.locator(".about").inner_text()
    answer, facts = ask(page, "Which way does it move?")
    assert answer == "up"
    assert re.search(r"\d+ tokens? in [\d.]+ s · [\d.]+ tokens/s · ", facts)
    answer, facts = ask(page, "What shape is it?", 2)
    assert answer == "triangle"
    cached, prompt = map(int, re.search(r"(\d+) of (\d+) prompt tokens from the cache", facts).groups())
    assert 8 * 17 <= cached < prompt  # the frames' tokens, of the second question about them
    choose(page, OTHER)
    choose(page)  # the first one again
    assert ask(page, "Does it change colour?", 3)[0] == "yes"
    assert len(uploads) == 2
    assert page.locator("#spoken").inner_text().split()[-1] == "yes"  # a screen reader says it


def test_requests_about_a_medium_name_it_for_balancers(page):
    requests = []
    page.on("request", lambda request: requests.append(request))
    choose(page)
    ask(page, "Which shape is it?")
    about = [request for request in requests if "/v1/files" in request.url or "/chat/" in request.url]
    assert {request.url.rpartition("/")[2].partition("?")[0] for request in about} == {"files", "frames", "completions"}
    assert {request.headers.get("x-media") for request in about} == {hashlib.sha256(CLIP.read_bytes()).hexdigest()}


def test_a_frame_is_shown_in_the_player_and_the_frame_on_display_is_marked(page):
    choose(page)
    page.get_by_role("button", name="Frame 7, 1.50 s").click()
    page.wait_for_selector(".strip li:nth-child(7) .now")
    assert page.locator(".now").count() == 1
    video = page.locator("#screen video")
    assert video.evaluate("(video) => video.paused")
    assert video.evaluate("(video) => video.currentTime") == pytest.approx(1.5, abs=0.01)


def test_a_picture_and_what_is_said_about_it(page):
    choose(page, PICTURE, frames=1)
    assert page.locator("#screen img").evaluate("(image) => image.naturalWidth") == 112
    assert not page.locator(".rule").first.is_visible()
    assert ask(page, "How many shapes are there?")[0] == "three"


@pytest.mark.parametrize("by", ["drop", "paste"])
def test_a_file_is_dropped_or_pasted(page, by):
    page.evaluate(
        """async (by) => {
            const bytes = await (await fetch('page/examples/three-triangles.png')).blob();
            const given = new DataTransfer();
            given.items.add(new File([bytes], 'given.png', { type: 'image/png' }));
            document.body.dispatchEvent(
                by === 'drop' ? new DragEvent('drop', { dataTransfer: given, bubbles: true })
                : new ClipboardEvent('paste', { clipboardData: given, bubbles: true }),
            );
        }""",
        by,
    )
    page.locator("#medium-state", has_text="uploaded").wait_for()
    assert ask(page, "How many shapes are there?")[0] == "three"


def test_a_medium_of_an_allowed_host_is_played_from_there_and_named_by_its_address(browser, tiny_processor):
    host = "media.example"
    with (
        served_by(FakeSession(), tiny_processor, hosts=(host,)) as served,
        run_page(browser, served.url) as page,
    ):
        page.route(f"https://{host}/a/clip.mp4", lambda route: route.fulfill(path=CLIP, content_type="video/mp4"))
        page.route(f"https://{host}/b?id=7", lambda route: route.fulfill(path=PICTURE, content_type="image/png"))
        seen = {"frames": [0, 8], "seconds": [0.0, 1.0], "total_frames": 16}
        chunks = [{"choices": [{"delta": {"content": "yes"}}]}, {"choices": [], "videos": [seen]}]
        stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        page.route("**/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
        media = (("a/clip.mp4", "video", "readyState"), ("b?id=7", "image", "naturalWidth"))
        for number, (path, kind, loaded) in enumerate(media, 1):
            page.get_by_label("or give the address").fill(f"https://{host}/{path}")
            page.keyboard.press("Enter")
            until(page, f"document.querySelector('#screen > *')?.{loaded} > 1")
            with page.expect_request("**/chat/completions") as sent:
                assert ask(page, "Is it red?", number)[0] == "yes"
            part = sent.value.post_data_json["messages"][0]["content"][0]
            assert part == {"type": f"{kind}_url", f"{kind}_url": {"url": f"https://{host}/{path}"}}
            if kind == "video":  # no images of frames are to be had; the answer says which were taken
                assert page.locator(".strip li").all_inner_texts() == ["0.00 s", "1.00 s"]
            page.get_by_role("button", name="Another").click()


def test_a_picture_with_the_name_of_a_clip_is_asked_about_before_it_is_uploaded(page, tmp_path):
    shutil.copy(PICTURE, tmp_path / "no-clip.mp4")
    page.locator("#file").set_input_files(tmp_path / "no-clip.mp4")
    assert ask(page, "How many shapes are there?")[0] == "three"
    assert page.locator(".strip li").count() == 1


def test_the_examples_of_the_tiny_model_have_questions_that_are_asked_by_a_click(page):
    page.get_by_role("button", name="circle then square").click()
    page.get_by_role("button", name="Which shape comes first?").click()
    assert ended(page, 1)[0] == "circle"


def test_two_rules_side_by_side_each_with_its_frames(page):
    choose(page)
    page.get_by_label("Compare two").check()
    second = page.get_by_role("group", name="Frames for B")
    assert not second.get_by_label("Number").is_visible()
    second.get_by_label("Rule").select_option("num_frames")  # 8 of them
    second.get_by_label("Number").fill("4")
    second.get_by_label("Number").press("Tab")
    until(page, "document.querySelectorAll('.side:last-child .strip img').length === 4")
    second.get_by_label("Rule").select_option("fps")  # of 1 a second
    until(page, "document.querySelectorAll('.side:last-child .strip img').length === 2")
    assert second.locator(".strip li").all_inner_texts() == ["0.00 s", "1.00 s"]
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "completions" in request.url else None)
    assert ask(page, "What shape is it?")[0] == "triangle"
    assert ended(page, 1, side=2)[0] == "triangle"
    assert [body.get("media_io_kwargs") for body in bodies] == [None, {"video": {"fps": 1}}]
    assert page.locator(".answer h4").all_inner_texts() == ["Athe server's frames", "B1 a second"]
    assert [page.locator(f".answer:nth-child({side}) .mini img").count() for side in (1, 2)] == [8, 2]


def test_two_questions_side_by_side(page):
    choose(page)
    page.get_by_label("Compare two").check()
    page.get_by_label("Question for B").fill("Which way does it move?")
    assert ask(page, "What shape is it?")[0] == "triangle"
    assert ended(page, 1, side=2)[0] == "up"


def test_an_answer_comes_in_pieces_and_is_stopped(page, served):
    without_end(page)
    choose(page)
    page.evaluate(
        """() => {
            globalThis.lengths = [];
            const watching = new MutationObserver(() => {
                lengths.push(document.querySelector('.text')?.textContent.length ?? 0);
                if (lengths.at(-1) < 60) return;
                watching.disconnect();
                document.querySelector('#stop').click();
            });
            watching.observe(document.querySelector('#turns'), { childList: true, subtree: true, characterData: true });
        }"""
    )
    text, facts = ask(page, "What shape is it?")
    assert len({length for length in page.evaluate("lengths") if length}) > 1
    assert facts.startswith("stopped after")
    assert text
    assert not page.locator("#stop").is_visible()
    served.wait_until_idle()
    page.unroute_all()
    assert ask(page, "What shape is it?", 2)[0] == "triangle"  # the server goes on


def test_questions_need_not_wait_for_each_other(page):
    choose(page)
    asked = {"Which way does it move?": "up", "What shape is it?": "triangle", "Does it change colour?": "yes"}
    for question in asked:
        page.get_by_label("Your question").fill(question)
        page.keyboard.press("Enter")
    assert [ended(page, number)[0] for number in (1, 2, 3)] == list(asked.values())


def test_stopping_has_the_server_stop(browser, tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor) as served, run_page(browser, served.url) as page:
        choose(page)
        page.get_by_label("Your question").fill("What happens?")
        page.keyboard.press("Enter")
        asked = session.wait_for(1)
        asked.write("A shape ")
        page.locator(".text", has_text="A shape").wait_for()
        assert not asked.cancelled
        page.get_by_role("button", name="Stop").first.click()
        until(page, "document.querySelector('.facts').textContent.startsWith('stopped')")
        served.wait_until_idle()
        assert asked.cancelled


def test_the_conversation_so_far_is_sent_if_that_is_wanted(page):
    choose(page)
    assert ask(page, "Which way does it move?")[0] == "up"
    page.get_by_text("Options").click()
    page.get_by_label("Send what was asked").check()
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "What shape is it?", 2)
    messages = sent.value.post_data_json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in messages[0]["content"]] == ["video_url", "text"]
    assert messages[1:] == [{"role": "assistant", "content": "up"}, {"role": "user", "content": "What shape is it?"}]


def without_end(page):
    """Has the server answer for long: the token that ends an answer is never chosen."""

    def endless(route):
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps({**body, "logit_bias": {"2": -100}, "max_tokens": 300}))

    page.route("**/chat/completions", endless)


# ── code to copy ──


def test_what_is_copied_gives_the_same_answer(page, tmp_path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shutil.copy(CLIP, tmp_path / "it's a clip.mp4")
    choose(page, tmp_path / "it's a clip.mp4")
    assert ask(page, "Which way does it move?")[0] == "up"
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_role("button", name="Copied").wait_for()
    program = page.evaluate("navigator.clipboard.readText()")
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("up\n", "")
    if shutil.which("curl"):
        page.get_by_role("button", name="Copy as curl").click()
        until(page, "navigator.clipboard.readText().then((text) => text.includes('curl'))")
        commands = page.evaluate("navigator.clipboard.readText()")
        where = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        ran = subprocess.run(
            ["sh", "-c", commands],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PATH": where},
        )
        assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == "up"


def test_without_a_clipboard_the_code_is_shown_to_be_copied_by_hand(page):
    choose(page)
    ask(page, "What shape is it?")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    page.get_by_role("button", name="Copy as curl").click()
    assert "v1/chat/completions" in page.get_by_role("dialog").get_by_role("textbox").input_value()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


TEXT = 'it\'s "$HOME" `x` \\ \n ü 😀 \u2028 %s {0} \\u0000medium\\u0000'


@pytest.mark.parametrize("keyed", [False, True])
def test_any_question_and_name_stand_in_copied_code_as_they_are(page, tmp_path, keyed):
    request = {
        "model": "tiny",
        "kind": "video",
        "turns": [{"question": "before?", "answer": "yes"}],
        "question": TEXT,
        "rule": {"num_frames": 8},
        "maxTokens": 7,
        "temperature": 0.5,
    }
    source = {"file": "a \"b\" 'c'.mp4"}
    given = {"request": request, "source": source, "keyed": keyed}
    python, curl = (
        of_module(page, f"m.{name}(given.request, given.source, 'http://h/', given.keyed)", given)
        for name in ("asPython", "asCurl")
    )
    (tmp_path / "openai.py").write_text(
        "import json, types\n"
        "class OpenAI:\n"
        "    def __init__(self, **given):\n"
        "        self.key = given['api_key']\n"
        "        self.files = types.SimpleNamespace(create=lambda file, purpose: types.SimpleNamespace(id='file-1'))\n"
        "        self.chat = types.SimpleNamespace(completions=types.SimpleNamespace(create=self.create))\n"
        "    def create(self, **given):\n"
        "        print(json.dumps([self.key, given]))\n"
        "        return []\n"
    )
    (tmp_path / source["file"]).touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "VIDEOLLAVA_API_KEY": "secret"}
    ran = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    key, sent = json.loads(ran.stdout)
    assert key == ("secret" if keyed else "none")
    assert sent["messages"][-1] == {"role": "user", "content": TEXT}
    assert sent["messages"][0]["content"][0] == {"type": "video_url", "video_url": {"url": "vllm-file://file-1"}}
    assert sent["extra_body"] == {"media_io_kwargs": {"video": {"num_frames": 8}}}
    # A curl that shows what it is called with, and answers an upload as the server does.
    (tmp_path / "curl").write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "print(json.dumps({'id': 'file-1'}) if '-F' in sys.argv else json.dumps(sys.argv))\n"
        "print(sys.argv, file=sys.stderr)\n"
    )
    (tmp_path / "curl").chmod(0o755)
    environment["PATH"] = f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    ran = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    arguments = json.loads(ran.stdout)
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert sent.pop("stream")
    assert body == {**sent.pop("extra_body"), **sent}
    assert ("Authorization: Bearer secret" in arguments) is keyed


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
