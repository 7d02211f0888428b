"""A job through servers: what is sent, what comes back, and servers that are full, restarted, gone or wrong."""

import base64
import contextlib
import http.server
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.loopback import answering
from videollava_jax.assets import MEDIA
from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.batch.servers import ServerOptions, ServersGone, ServersRunner
from videollava_jax.engine.request import Request
from videollava_jax.media import Fps, Linspace, Uniform

CLIP, OTHER = str(MEDIA / "rising-triangle.mp4"), str(MEDIA / "circle-then-square.mp4")


@dataclass
class Fake:
    """A server that answers with the text of the question, after `plan`, a list of statuses to answer with first."""

    url: str = ""
    plan: list[int] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    takes_files: bool = True
    model: str = "fake"
    key: str | None = None
    chat: str | None = None
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def serve():
    """Starts fakes on loopback, which end with the test."""
    running = []

    def start(**options):
        fake = Fake(**options)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status, body, **headers):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(raw), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(raw)

            def error(self, status, code, message="no"):
                self.reply(status, {"error": {"message": message, "code": code}}, Retry_After="0.01")

            def do_GET(self):
                if fake.key and self.headers["Authorization"] != f"Bearer {fake.key}":
                    return self.error(401, "invalid_api_key", "expected a key")
                return self.reply(200, {"data": [{"id": fake.model}]})

            def do_DELETE(self):
                fake.files.pop(self.path.rpartition("/")[2], None)
                self.reply(200, {})

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/files":
                    if not fake.takes_files:
                        return self.error(404, None)
                    boundary = re.search("boundary=(.*)", self.headers["Content-Type"])[1].encode()
                    content = raw.split(b"octet-stream\r\n\r\n")[1].removesuffix(b"\r\n--" + boundary + b"--\r\n")
                    with fake.lock:
                        fake.uploads += 1
                        name = f"file-{fake.uploads}"
                    fake.files[name] = content
                    return self.reply(200, {"id": name})
                with fake.lock:
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    return self.answer(json.loads(raw))
                finally:
                    with fake.lock:
                        fake.at_once -= 1

            def answer(self, body):
                with fake.lock:
                    status = fake.plan.pop(0) if fake.plan else 200
                if status == 0:
                    self.close_connection = True
                    return None
                if status != 200:
                    return self.error(status, "broken_media" if status == 400 else None, f"status {status}")
                for name in re.findall("vllm-file://([a-z0-9-]+)", json.dumps(body)):
                    if name not in fake.files:
                        return self.error(404, "no_such_file")
                with fake.lock:
                    fake.bodies.append(body)
                if fake.chat is not None:
                    return self.reply(200, fake.chat.encode())
                text = body["messages"][-1]["content"]
                text = text if isinstance(text, str) else text[-1]["text"]
                usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
                return self.reply(200, {"choices": [choice], "usage": usage})

            def log_message(self, *_):
                pass

        end = contextlib.ExitStack()
        running.append(end)
        fake.url = f"http://127.0.0.1:{end.enter_context(answering(Handler)).server_port}"
        fake.stop = end.close
        return fake

    yield start
    for end in running:
        end.close()


def asked(name, source=CLIP, kind="video", **options):
    content = [{"type": kind, kind: source}, {"type": "text", "text": f"question {name}"}]
    return Request(id=name, conversation=[{"role": "user", "content": content}], **options)


def answers(urls, requests, **options):
    runner = ServersRunner(urls, ServerOptions(**{"at_once": 4, "patience": 5.0} | options))
    return {result.id: result for result in runner.run(requests)}


def test_requests_are_said_in_openais_words(serve):
    fake = serve()
    requests = [
        asked("plain", max_new_tokens=7, seed=3, options={"do_sample": False}),
        asked("drawn", options={"do_sample": True, "temperature": 0.5, "top_p": 0.9, "stop_strings": ("x",)}),
        asked("frames", frame_sampling=Uniform(16), options={"presence_penalty": 0.5}),
        asked("rate", frame_sampling=Fps(2.0, max_frames=24)),
        Request(id="text", conversation=[{"role": "user", "content": "question text"}]),
    ]
    found = answers([fake.url], requests)
    assert {name: result.text for name, result in found.items()} == {r.id: f"question {r.id}" for r in requests}
    result = found["plain"]
    assert (result.finish_reason, result.prompt_tokens, result.answer_tokens, result.cached_tokens) == (
        "length",
        9,
        3,
        5,
    )
    sent = {str(body["messages"][0]["content"]).rpartition("question ")[2].strip("'}]"): body for body in fake.bodies}
    video = {"type": "video_url", "video_url": {"url": "vllm-file://file-1"}}
    assert sent["plain"] == {
        "model": "fake", "max_tokens": 7, "seed": 3, "temperature": 0,
        "messages": [{"role": "user", "content": [video, {"type": "text", "text": "question plain"}]}],
    }  # fmt: skip
    assert {key: sent["drawn"][key] for key in ("temperature", "top_p", "stop")} == {
        "temperature": 0.5, "top_p": 0.9, "stop": ["x"],
    }  # fmt: skip
    assert sent["frames"]["media_io_kwargs"] == {"video": {"num_frames": 16}}
    assert sent["frames"]["presence_penalty"] == 0.5
    assert sent["rate"]["media_io_kwargs"] == {"video": {"fps": 2.0, "num_frames": 24}}
    assert fake.uploads == 1  # for all questions about one clip
    assert fake.files == {}  # deleted at the end
    assert fake.most_at_once <= 4


def test_what_the_protocol_has_no_words_for_is_the_lines_error(serve, tmp_path):
    fake = serve()
    requests = [
        Request(id="prompt", prompt="USER: <video>\nwhat? ASSISTANT:", videos=[CLIP]),
        asked("pool", video_pooling=2),
        asked("rule", frame_sampling=Linspace(8)),
        asked("option", options={"no_repeat_ngram_size": 2}),
        asked("missing", str(tmp_path / "none.mp4")),
        asked("good"),
    ]
    found = answers([fake.url], requests)
    assert {name for name, result in found.items() if result.error is None} == {"good"}
    assert "a question without <image>" in found["prompt"].error
    assert "--pool" in found["pool"].error
    assert "Linspace" in found["rule"].error
    assert "no_repeat_ngram_size" in found["option"].error
    assert found["missing"].cause == "unreadable"


def test_media_of_servers_without_uploads(serve, tmp_path):
    fake = serve(takes_files=False)
    frames = tmp_path / "frames"
    frames.write_bytes(json.dumps([3, 2]).encode() + b"\nabcde")
    found = answers([fake.url], [asked("a"), asked("b"), asked("frames", FrameFile(str(frames)))])
    assert all(result.error is None for result in found.values())
    urls = {body["messages"][0]["content"][0]["video_url"]["url"] for body in fake.bodies}
    with open(CLIP, "rb") as file:
        whole = "data:video/mp4;base64," + base64.b64encode(file.read()).decode()
    assert urls == {whole, "data:video/jpeg;base64,YWJj,ZGU="}


@pytest.mark.parametrize("status", [429, 503, 408, 0, 500])
def test_a_server_that_is_full_or_stumbles_is_asked_again(serve, status):
    fake = serve(plan=[status] * 2)
    found = answers([fake.url], [asked(str(i)) for i in range(6)])
    assert all(result.error is None for result in found.values())
    assert len(fake.bodies) == 6


def test_what_a_server_refuses_is_the_lines_error_and_is_not_sent_again(serve):
    fake = serve(plan=[400, 200, 422])
    found = answers([fake.url], [asked(str(i)) for i in range(4)], at_once=1)
    assert Counter(result.cause for result in found.values()) == {None: 2, "broken_media": 1, "http_422": 1}
    assert {result.error for result in found.values()} == {None, "status 400", "status 422"}


def test_a_fault_of_the_server_is_tried_some_times(serve):
    fake = serve(plan=[500] * 3)
    found = answers([fake.url], [asked("a"), asked("b")], at_once=1)
    assert {name: result.cause for name, result in found.items()} == {"a": "http_500", "b": None}


@pytest.mark.parametrize("chat", ['{"choices": []}', '{"choices": [{"message": 5}], "usage": 1}'])
def test_an_answer_that_is_no_completion_is_the_lines_error(serve, chat):
    fake = serve(chat=chat)
    assert answers([fake.url], [asked("a")])["a"].cause == "bad_answer"


@pytest.mark.parametrize("chat", ["{}", "[]", "not JSON"])
def test_a_server_that_sends_something_else_is_asked_again_for_a_while(serve, chat):
    fake = serve(chat=chat)
    with pytest.raises(ServersGone, match=r"no server has answered for 0\.2 s"):
        answers([fake.url], [asked("a")], patience=0.2)


def test_media_go_where_they_went_and_a_lost_server_moves_its_own_only(serve):
    fakes = [serve() for _ in range(3)]
    clips = [f"{CLIP}", f"{OTHER}", str(MEDIA / "three-triangles.png")]
    requests = [asked(f"{clip}-{i}", source) for i in range(5) for clip, source in enumerate(clips)]

    def places():
        found = {}
        for at, fake in enumerate(fakes):
            for body in fake.bodies:
                name = body["messages"][0]["content"][1]["text"].split()[1].split("-")[0]
                found.setdefault(name, set()).add(at)
            fake.bodies.clear()
        return found

    urls = [fake.url for fake in fakes]
    assert all(result.error is None for result in answers(urls, requests).values())
    before = places()
    assert all(len(servers) == 1 for servers in before.values())
    lost = next(iter(before["0"]))
    fakes[lost].stop()
    started = time.monotonic()
    assert all(result.error is None for result in answers(urls, requests).values())
    assert time.monotonic() - started < 30
    after = places()
    assert all(after[name] == before[name] for name in before if before[name] != {lost})
    assert all(lost not in servers for servers in after.values())


def test_uploads_that_a_server_has_lost_are_sent_again(serve):
    fake = serve()
    requests = iter([asked("a"), asked("b"), asked("c")])

    def slowly():
        yield next(requests)
        while not fake.bodies:
            time.sleep(0.01)
        fake.files.clear()
        yield from requests

    found = answers([fake.url], slowly())
    assert all(result.error is None for result in found.values())
    assert fake.uploads >= 2


def test_a_job_goes_on_after_its_servers_have_gone(serve, tmp_path):
    lines = [{"id": f"{i}", "video": CLIP, "prompt": f"question {i}"} for i in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fake = serve(plan=[200] * 5 + [503] * 1000)
    facts = {"model": "fake"}
    with pytest.raises(ServersGone, match="the same command goes on from there"):
        run_batch(
            tmp_path / "in.jsonl", tmp_path / "out.jsonl",
            lambda: ServersRunner([fake.url], ServerOptions(at_once=2, patience=0.5)), BatchOptions(facts=facts),
        )  # fmt: skip
    assert not (tmp_path / "out.jsonl").exists()
    fake.plan.clear()
    summary = run_batch(
        tmp_path / "in.jsonl", tmp_path / "out.jsonl", lambda: ServersRunner([fake.url]), BatchOptions(facts=facts)
    )
    assert (summary.before, summary.answered) == (5, 7)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["id"], record["text"], record["tokens"]) for record in records] == [
        (f"{i}", f"question {i}", 3) for i in range(12)
    ]


def test_stop_ends_requests_that_wait(serve):
    fake = serve(plan=[503] * 10_000)
    runner = ServersRunner([fake.url], ServerOptions(at_once=2, patience=600))
    threading.Timer(0.3, runner.stop).start()
    started = time.monotonic()
    assert {result.cause for result in runner.run([asked(str(i)) for i in range(4)])} == {"stopped"}
    assert time.monotonic() - started < 20


def test_servers_that_cannot_be_used(serve):
    fake, other, locked = serve(), serve(model="another"), serve(key="secret")
    for urls, message in (
        ([fake.url, other.url], "servers of one model"),
        ([locked.url], "expected a key"),
        (["ftp://host"], "expected the URL of a server"),
        (["http://user:hidden@host"], "http://host: expected the URL"),
        (["http://"], "expected the URL of a server"),
        (["http://["], "expected the URL of a server"),
        (["http://host:port"], "expected the URL of a server"),
        ([], "expected the URL of a server, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            ServersRunner(urls).model()
    assert ServersRunner([locked.url], ServerOptions(key="secret")).model() == "fake"
    assert ServersRunner([f"{fake.url}/v1/", fake.url.removeprefix("http://")]).model() == "fake"
    with pytest.raises(ServersGone, match="videollava serve"):
        ServersRunner(["http://127.0.0.1:9"]).model()
