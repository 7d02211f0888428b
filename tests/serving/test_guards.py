"""Who may ask, and for what: keys, hosts, origins, sizes, and everything that a body may not say."""

import base64
import errno
import json
from urllib.parse import urlsplit

import pytest

from tests.serving.asking import about, data_url
from tests.serving.fake import FakeSession
from tests.serving.test_scheduling import chat, request, served_by, until
from videollava_jax.assets import MEDIA
from videollava_jax.serving.settings import UploadLimits

PATHS = [
    ("GET", "/page/x"),
    ("GET", "/page/../v1/models"),
    ("GET", "/health/"),
    ("GET", "/ping"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/x"),
    ("DELETE", "/v1/files/x"),
    ("GET", "/v1/files/x/frames"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/score"),
    ("POST", "/tokenize"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("POST", "/invocations"),
    ("GET", "//health"),
    ("GET", "/health/../v1/models"),
]


@pytest.fixture(scope="module")
def locked(tiny_processor):
    """A server with a key."""
    with served_by(FakeSession(), tiny_processor, api_key="s3cret") as served:
        yield served


@pytest.fixture(scope="module")
def open_server(tiny_processor):
    """A server without a key, whose session answers at once."""
    session = FakeSession()
    session.answer_at_once = "yes"
    with served_by(session, tiny_processor) as served:
        yield served


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer s3cret2"},
        {"Authorization": "s3cret"},
        {"Authorization": "Bearer \u00e9"},
        {"Authorization": "Basic ####"},
        {"X-Api-Key": "s3cret"},
    ],
    ids=["none", "wrong", "longer", "bare", "latin", "broken", "elsewhere"],
)
def test_every_path_but_health_and_the_page_wants_the_key(locked, method, path, headers):
    code, answered, raw = request(locked, method, path, headers=headers)
    assert code == 401
    assert answered["WWW-Authenticate"]
    assert json.loads(raw)["error"]["code"] == "invalid_api_key"


def test_the_page_opens_and_asks_for_the_key_itself(locked):
    for path in ("/", "/page/page.js"):
        assert request(locked, "GET", path)[0] == 200
        assert request(locked, "GET", path, headers={"Host": "evil@127.0.0.1"})[0] == 403
        assert request(locked, "POST", path)[0] == 405


@pytest.mark.parametrize(
    "authorization", ["Bearer s3cret", "bearer s3cret", "Basic " + base64.b64encode(b"me:s3cret").decode()]
)
def test_the_key_opens(locked, authorization):
    assert request(locked, "GET", "/v1/models", headers={"Authorization": authorization})[0] == 200
    assert request(locked, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LOCALHOST:99", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("evil@127.0.0.1", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_name_that_leads_here_by_rebinding_is_refused(open_server, host, code):
    assert request(open_server, "GET", "/v1/models", headers={"Host": host})[0] == code


def test_a_name_that_was_made_public_is_answered(tiny_processor):
    with served_by(FakeSession(), tiny_processor, public_names=("video.example",)) as served:
        assert request(served, "GET", "/v1/models", headers={"Host": "video.example"})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[", ""])
def test_requests_of_other_pages_are_refused(open_server, origin):
    code, headers, raw = request(open_server, "POST", "/v1/chat/completions", {}, {"Origin": origin})
    assert (code, json.loads(raw)["error"]["code"]) == (403, "other_origin")
    assert headers["Access-Control-Allow-Origin"] is None


def test_requests_of_the_own_page_are_answered(open_server):
    assert request(open_server, "GET", "/v1/models", headers={"Origin": open_server.url})[0] == 200


def test_a_body_that_is_too_large_is_413_at_once_or_while_it_comes(tiny_processor):
    with served_by(FakeSession(), tiny_processor, max_body_bytes=1000) as served:
        assert chat(served, messages=about(None, "x" * 2000))[0] == 413
        pieces = (b"x" * 100 for _ in range(100))  # chunked: no length is said
        assert request(served, "POST", "/v1/chat/completions", pieces)[0] == 413
        until(lambda: served.server.lifecycle.body_bytes == 0)
        assert b'status="413"' in served.server.metrics.text()


def test_headers_have_a_limit(open_server):
    try:
        code = request(open_server, "GET", "/health", headers={"X": "y" * 2_000_000})[0]
    except OSError:  # the connection was closed while the headers were being sent
        code = 400
    assert code == 400
    assert request(open_server, "GET", "/health")[0] == 200


BODIES = {
    "not JSON": (b"{", "JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "UTF-8"),
    "NaN": (b'{"messages": [], "temperature": NaN}', "JSON"),
    "a list": (b"[]", "object"),
    "a number": (b"7", "object"),
    "nothing": (b"", "JSON"),
    "deep": (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", "inside each other"),
    "deeper": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "inside each other"),
    "no messages": ({}, "messages"),
    "messages: text": ({"messages": "hi"}, "messages"),
    "messages: none": ({"messages": []}, "messages"),
    "messages: of texts": ({"messages": ["hi"]}, "messages"),
    "n 0": ({"n": 0}, "n"),
    "n huge": ({"n": 16384}, "at most 16"),
    "n text": ({"n": "2"}, "n"),
    "n true": ({"n": True}, "n"),
    "stop huge": ({"stop": ["x"] * 1000}, "stop"),
    "stop wrong": ({"stop": [1]}, "stop"),
    "bias huge": ({"logit_bias": {str(i): 1 for i in range(600)}}, "logit_bias"),
    "bias wrong": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "bias range": ({"logit_bias": {"5": 1000}}, "logit_bias"),
    "temperature": ({"temperature": -1}, "temperature"),
    "temperature text": ({"temperature": "hot"}, "temperature"),
    "top_p": ({"top_p": 2}, "top_p"),
    "seed": ({"seed": 2**70}, "seed"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "stream text": ({"stream": "yes"}, "stream"),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "stream_options unknown": ({"stream": True, "stream_options": {"colour": 1}}, "colour"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format"),
    "guided": ({"guided_json": {}}, "guided_json"),
    "template": ({"chat_template": "{{ x }}"}, "chat_template"),
    "template kwargs": ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    "embeddings": ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    "unknown": ({"colour": "red"}, "colour"),
    "frames unknown": ({"mm_processor_kwargs": {"max_pixels": 1}}, "num_frames or fps"),
    "frames unknown 2": ({"media_io_kwargs": {"video": {"frames": 1}}}, "num_frames or fps"),
    "frames audio": ({"media_io_kwargs": {"audio": {"sr": 1}}}, "audio"),
    "frames list": ({"media_io_kwargs": {"video": [1]}}, "video"),
    "frames 0": ({"media_io_kwargs": {"video": {"num_frames": 0}}}, "num_frames"),
    "frames half": ({"mm_processor_kwargs": {"num_frames": 1.5}}, "num_frames"),
    "frames many": ({"mm_processor_kwargs": {"num_frames": 9}}, "at most 8"),
    "fps text": ({"mm_processor_kwargs": {"fps": "5"}}, "fps"),
    "frames differ": (
        {"mm_processor_kwargs": {"num_frames": 4}, "media_io_kwargs": {"video": {"num_frames": 2}}},
        "other place",
    ),
    "part unknown": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
    "part without url": ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "url"),
    "url null": (
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": None}}]}]},
        "url",
    ),
    "video null": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "video"),
    "video list": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": ["/etc/passwd", "/etc/group"]}]}]},
        "URL",
    ),
    "two sources": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a", "path": "/etc/passwd"}]}]},
        "one of",
    ),
    "file of nobody": (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-" + "0" * 32}}]}]},
        "no file",
    ),
    "file of none": ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "file_id"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
    "two users": ({"messages": [{"role": "user", "content": "x"}] * 2}, "assistant"),
    "content": ({"messages": [{"role": "user", "content": 7}]}, "content"),
    "half a pair": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_asks_for_what_there_is_not_is_400_by_name(open_server, name):
    body, said = BODIES[name]
    if isinstance(body, dict):
        body = {"messages": about(None, "what?"), **body} if body else body
    before = len(open_server.server.session.tickets)
    code, _, raw = request(open_server, "POST", "/v1/chat/completions", body)
    error = json.loads(raw)["error"]
    assert code == 400, error
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert len(open_server.server.session.tickets) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "stream": False, "logprobs": False, "user": "me", "tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "min_p": 0, "ignore_eos": False},
        {"media_io_kwargs": {}, "mm_processor_kwargs": {}, "stop": None, "seed": None, "temperature": None},
        {"media_io_kwargs": {"image": {}, "video": {}}, "mm_processor_kwargs": {"do_sample_frames": True, "fps": None}},
        {"stream_options": None, "top_logprobs": 0, "max_completion_tokens": 5, "metadata": {"a": "b"}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(open_server, fields):
    assert chat(open_server, **fields)[0] == 200


def test_another_model_is_404(open_server):
    code, _, raw = chat(open_server, model="gpt-4o")
    assert (code, json.loads(raw)["error"]["code"]) == (404, "model_not_found")
    assert "'tiny'" in json.loads(raw)["error"]["message"]


SOURCES = [
    "/etc/passwd",
    "etc/passwd",
    "../x.mp4",
    "file:///etc/passwd",
    "file://evil.example/x.mp4",
    "ftp://example.org/x.mp4",
    "gopher://127.0.0.1/",
    "vllm-file://x",
    "vllm-file://../../etc/passwd",
    "http://127.0.0.1/x.mp4",
    "http://127.0.0.1\\@1.1.1.1/x.mp4",
    "http://1.1.1.1@127.0.0.1/x.mp4",
    "http://localhost./x.mp4",
    "http://2130706433/x.mp4",
    "http://0x7f000001/x.mp4",
    "http://[::ffff:127.0.0.1]/x.mp4",
    "http://[2002:7f00:1::]/x.mp4",
    "http://[64:ff9b::7f00:1]/x.mp4",
    "http://169.254.169.254/latest/meta-data",
    "https://example.org/x.mp4",
    "data:text/html,<script>",
    "data:video/mp4,AAAA",
    "data:video/mp4;base64,%%%",
    "data:video/jpeg;base64," + ",".join(["AAAA"] * 5000),
    "",
    "\u0000",
    "x" * 100_000,
]


@pytest.mark.parametrize("url", SOURCES, ids=[repr(url[:40]) for url in SOURCES])
@pytest.mark.parametrize("part", ["video_url", "image_url", "video"])
def test_no_other_source_is_read(open_server, url, part):
    source = {part: url} if part == "video" else {part: {"url": url}}
    messages = [{"role": "user", "content": [{"type": part, **source}, {"type": "text", "text": "what?"}]}]
    code, _, raw = chat(open_server, messages=messages)
    assert code == 400, raw
    assert len(raw) < 2000
    assert str(MEDIA).encode() not in raw


@pytest.mark.parametrize("url", [url for url in SOURCES if url.startswith("http") and "example" not in url])
def test_hosts_that_are_allowed_by_name_are_still_no_private_ones(tiny_processor, url):
    host = urlsplit(url).hostname or "x"
    with served_by(FakeSession(), tiny_processor, hosts=(host, f"[{host}]", "127.0.0.1", "localhost")) as served:
        code, _, raw = chat(served, messages=about(url, "what?"))
        assert code == 400, raw
        assert json.loads(raw)["error"]["code"] in ("forbidden_source", "fetch_failed")


def upload(served, content=b"x", name="x.mp4", field="file", purpose="user_data"):
    boundary = "b" * 30
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'.encode()]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content
    )
    parts.append(f"\r\n--{boundary}--\r\n".encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return request(served, "POST", "/v1/files", b"".join(parts), headers)


@pytest.fixture(scope="module")
def small_files(tiny_processor, reader):
    """A server with little room for files."""
    limits = UploadLimits(count=2, bytes=20_000, bytes_in_all=30_000, seconds=3600)
    with served_by(FakeSession(), tiny_processor, uploads=limits, reader=reader) as served:
        yield served


def test_uploads_have_limits(small_files):
    clip = (MEDIA / "rising-triangle.mp4").read_bytes()
    assert upload(small_files, b"x" * 25_000)[0] == 413  # one file
    assert request(small_files, "POST", "/v1/files", b"x" * 2**21)[0] == 413
    made = [json.loads(upload(small_files, clip, "a/../b\r\nX: y.mp4")[2]) for _ in range(2)]
    assert {file["kind"] for file in made} == {"video"}
    assert all("/" not in file["filename"] and "\r" not in file["filename"] for file in made)
    code, _, raw = upload(small_files, clip)
    assert (code, json.loads(raw)["error"]["code"]) == (413, "files_full")
    for file in made:
        assert request(small_files, "DELETE", f"/v1/files/{file['id']}")[0] == 200
        assert request(small_files, "GET", f"/v1/files/{file['id']}")[0] == 404
    assert not list(small_files.server.media.spool._directory.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"content": b"#!/bin/sh\n"}, "file"),
        ({"content": b""}, "empty"),
        ({"field": "clip"}, "'file'"),
        ({"purpose": "evil"}, "purpose"),
        ({"content": b"\xff\xd8\xff" + b"\0" * 100}, "file"),
        ({"content": (MEDIA / "rising-triangle.mp4").read_bytes()[:3000]}, "file"),
    ],
    ids=["script", "empty", "field", "purpose", "broken image", "cut clip"],
)
def test_what_is_no_medium_is_not_kept(small_files, changes, said):
    code, _, raw = upload(small_files, **changes)
    assert code == 400, raw
    assert said in json.loads(raw)["error"]["message"]
    assert str(small_files.server.media._directory.path).encode() not in raw
    assert not small_files.server.media.uploads.all()
    assert not list(small_files.server.media.spool._directory.iterdir())


def test_a_full_disk_is_not_the_clients_fault(small_files, monkeypatch):
    """Neither an upload nor a medium in a request is refused as broken; both may be sent again."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    picture = (MEDIA / "three-triangles.png").read_bytes()
    monkeypatch.setattr("videollava_jax.batch.media.spool.tempfile.mkstemp", full)
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    for code, headers, raw in (upload(small_files, picture), chat(small_files, messages=about(url, "what?"))):
        error = json.loads(raw)["error"]
        assert (code, error["code"]) == (503, "not_stored"), raw
        assert "no space left on device" in error["message"]
        assert {name.lower(): value for name, value in headers.items()}["retry-after"] == "10"
    monkeypatch.undo()
    made = json.loads(upload(small_files, picture)[2])
    assert request(small_files, "DELETE", f"/v1/files/{made['id']}")[0] == 200


def test_files_expire(tiny_processor, reader):
    limits = UploadLimits(seconds=0.3)
    with served_by(FakeSession(), tiny_processor, uploads=limits, reader=reader) as served:
        made = json.loads(upload(served, (MEDIA / "three-triangles.png").read_bytes())[2])
        assert made["kind"] == "image"
        until(lambda: request(served, "GET", f"/v1/files/{made['id']}")[0] == 404)
        assert not list(served.server.media.spool._directory.iterdir())
        code, _, raw = chat(served, messages=about(f"vllm-file://{made['id']}", "what?"))
        assert (code, json.loads(raw)["error"]["code"]) == (400, "no_such_file")


@pytest.mark.parametrize("query", ["frames=0", "frames=x", "frames=100", "colour=1", "fps=-1", "fps=nan"])
def test_frames_have_limits_too(small_files, query):
    made = json.loads(upload(small_files, (MEDIA / "rising-triangle.mp4").read_bytes())[2])
    try:
        code, _, raw = request(small_files, "GET", f"/v1/files/{made['id']}/frames?{query}")
        assert code == 400, raw
    finally:
        request(small_files, "DELETE", f"/v1/files/{made['id']}")


def test_a_request_about_an_image_does_not_take_a_video(small_files):
    made = json.loads(upload(small_files, (MEDIA / "three-triangles.png").read_bytes())[2])
    part = {"type": "video_url", "video_url": {"url": f"vllm-file://{made['id']}"}}
    content = [part, {"type": "text", "text": "?"}]
    code, _, raw = chat(small_files, messages=[{"role": "user", "content": content}])
    assert (code, json.loads(raw)["error"]["code"]) == (400, "not_media")
    request(small_files, "DELETE", f"/v1/files/{made['id']}")


def test_choices_to_score_have_limits(open_server):
    def score(**body):
        return request(open_server, "POST", "/v1/score", {"messages": about(None, "?"), **body})

    assert score(choices=["yes", "no"])[0] == 200
    for choices in ([], ["x"] * 65, "yes", [1]):
        assert score(choices=choices)[0] == 400
    assert score(choices=["x"], colour=1)[0] == 400
    assert score(choices=["x"], model="other")[0] == 404


def test_data_urls_in_bodies_are_gone_when_the_request_is(open_server):
    assert chat(open_server, messages=about(data_url("three-triangles.png"), "what?"))[0] == 200
    until(lambda: not list(open_server.server.media.spool._directory.iterdir()))
