"""Media of hosts that the server may fetch from: fetched, kept for one request, and waited for."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time
from urllib.parse import urlsplit

import openai
import pytest

from tests.loopback import answering
from tests.serving.asking import CLIP, IMAGE, about
from tests.serving.conftest import serving
from tests.serving.fake import FakeSession
from tests.serving.test_scheduling import chat, served_by, until
from videollava_jax.assets import MEDIA

SECRET = "hidden"


class Host(http.server.BaseHTTPRequestHandler):
    """Has the bundled media below /, and what goes wrong with them; the server's `release` lets /slow/ answer."""

    def do_GET(self):
        asked = urlsplit(self.path)
        self.server.asked.append(self.path)
        where, _, name = asked.path[1:].rpartition("/")
        if where == "slow":
            assert self.server.release.wait(60)
        if where == "moved":
            self.answer(302, {"Location": f"/{name}?{asked.query}"})
        elif where == "elsewhere":
            self.answer(302, {"Location": f"http://other.example/{name}?{asked.query}"})
        elif where == "refused":
            self.answer(403)
        elif where == "text":
            self.answer(200, {}, f"no such thing: {self.path}".encode())
        else:
            content = (MEDIA / name).read_bytes()
            self.answer(200, {}, content[: len(content) // 2] if where == "cut" else content)

    def answer(self, status, headers={}, body=b""):  # noqa: B006
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the server may have gone meanwhile
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Warm:
    """A session that another server has warmed up, and closes."""

    def __init__(self, session):
        self._session = session

    def warm_up(self):
        return 0

    def close(self, drain_seconds=None, stop_seconds=None):
        pass

    def __getattr__(self, name):
        return getattr(self._session, name)


@pytest.fixture
def host():
    with answering(Host) as made:
        made.asked, made.release = [], threading.Event()
        yield made
        made.release.set()


def name_of(host):
    return f"localhost:{host.server_port}"


def loopback_too(address):
    return address.is_loopback


@pytest.fixture
def fetching(host, served, settings, tiny_processor, reader):
    """A server of the shared session, which may fetch from the host."""
    own = dataclasses.replace(settings, hosts=(name_of(host),), ping_seconds=0.05)
    with serving(Warm(served.server.session), tiny_processor, own, reader, allowed_address=loopback_too) as made:
        until(lambda: any(record["state"] == "ready" for record in made.said))
        yield made


def ask(client, url, **options):
    kind = "image_url" if IMAGE in url else "video_url"
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "Which way does it move?"}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **options)


def test_media_of_an_allowed_host_are_answered_like_files_and_not_kept(host, fetching, served):
    with fetching.client() as client, served.client() as other:
        for name in (CLIP, IMAGE):
            expected = ask(other, name).choices[0].message.content
            for where in ("", "moved/"):
                answer = ask(client, f"http://{name_of(host)}/{where}{name}?signature={SECRET}")
                assert answer.choices[0].message.content == expected
        assert ask(client, f"http://{name_of(host)}/{CLIP}").videos[0]["total_frames"] == 16
    assert f"/{CLIP}?signature={SECRET}" in host.asked
    until(lambda: not list(fetching.server.media.spool._directory.iterdir()))


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("refused", "fetch_failed"),
        ("elsewhere", "forbidden_source"),
        ("text", "not_media"),
        ("cut", "truncated"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_query_of_a_url_is_in_no_error(host, fetching, where, code, stream):
    with fetching.client() as client, pytest.raises(openai.APIError) as refused:
        list(ask(client, f"http://{name_of(host)}/{where}/{CLIP}?signature={SECRET}#{SECRET}", stream=stream))
    assert refused.value.code == code
    assert SECRET not in str(refused.value.body)
    assert SECRET.encode() not in fetching.server.metrics.text()
    assert host.asked[-1] == f"/{where}/{CLIP}?signature={SECRET}"


def test_a_private_address_is_refused_whatever_hosts_are_allowed(host, tiny_processor):
    with served_by(FakeSession(), tiny_processor, hosts=(name_of(host),)) as served:
        code, _, raw = chat(served, messages=about(f"http://{name_of(host)}/{CLIP}?signature={SECRET}", "what?"))
        assert (code, json.loads(raw)["error"]["code"]) == (400, "forbidden_source")
        assert SECRET.encode() not in raw
    assert not host.asked


def test_a_stream_has_comments_while_its_media_are_fetched(host, fetching):
    """The first comment comes before the host has sent anything; then the answer follows in the same stream."""
    with fetching.client() as client:
        url = f"http://{name_of(host)}/slow/{CLIP}"
        with client.chat.completions.with_streaming_response.create(
            model="tiny", messages=about(url, "Which way does it move?"), stream=True, temperature=0
        ) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": ping"
            host.release.set()
            rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"


def test_what_goes_wrong_after_a_comment_is_an_event_without_the_query(host, fetching):
    url = f"http://{name_of(host)}/slow/{CLIP}?signature={SECRET}"
    with fetching.client() as client:
        stream = ask(client, url, stream=True)  # the client returns: headers have come
        assert not host.release.is_set()
        fetching.server.media._fetch.stop()
        host.release.set()
        with pytest.raises(openai.APIError, match="cannot be fetched") as refused:
            list(stream)
    assert SECRET not in str(refused.value.body)


def test_a_client_that_goes_while_its_media_are_fetched_leaves_nothing(host, tiny_processor):
    session, name = FakeSession(), name_of(host)
    with served_by(session, tiny_processor, hosts=(name,), ping_seconds=0.05, allowed_address=loopback_too) as served:
        with served.client() as client:
            stream = ask(client, f"http://{name}/slow/{CLIP}", stream=True)
            stream.close()
        until(lambda: served.server.lifecycle.open == 0)
        host.release.set()
        until(lambda: not list(served.server.media.spool._directory.iterdir()))
        time.sleep(0.05)
        assert not session.tickets
