"""The page in headless Chromium, on a server with the tiny model: what people do with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.serving.fake import FakeSession
from tests.serving.page.pages import CLIP, OTHER, PICTURE, ask, choose, ended, of_module, run_page, until, without_end
from tests.serving.test_scheduling import served_by

pytestmark = pytest.mark.browser


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
