"""Where media may come from: paths below a root, data: URLs, and allowed hosts."""

import base64
import errno
import http.server
import io
import os
import pickle
import resource
import shutil
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.loopback import answering
from videollava_jax.batch.media.spool import FrameFile, Resolver, Spool, SpoolError, read_frames
from videollava_jax.engine.digests import content_digest, file_version
from videollava_jax.media import MediaError, MediaLimits, read_image
from videollava_jax.media.remote import Fetcher, is_public
from videollava_jax.media.rooted import RootedFile
from videollava_jax.media.urls import SourceError


def png(value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def data_url(content, mime="image/png"):
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def place(tmp_path):
    """Makes root/in/a.png, a secret outside the root, and links."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "root" / "in" / "a.png").write_bytes(png())
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    (tmp_path / "root" / "link.png").symlink_to("in/a.png")
    os.mkfifo(tmp_path / "root" / "pipe")
    return tmp_path


def resolver(place, root=True, fetch=None, max_bytes=10_000):
    spool = Spool(place / "spool")
    return Resolver(spool, root=place / "root" if root else None, fetch=fetch, max_bytes=max_bytes), spool


# ── paths ──


@pytest.mark.parametrize(
    "name",
    ["in/a.png", "./in/a.png", "link.png", "{place}/root/in/a.png", "{place}/root/link.png", "file:in/a.png",
     "file://{place}/root/in/a.png", "FILE://localhost{place}/root/in/a.png", "file:in/%61%2Epng"],
)  # fmt: skip
def test_paths_within_the_root(place, name):
    resolve, _ = resolver(place)
    assert os.fspath(resolve("image", name.format(place=place))) == str(place / "root" / "in" / "a.png")


@pytest.mark.parametrize(
    "name",
    ["../secret", "in/../../secret", "out", "up/secret", "{place}/secret", "{place}/root/../secret", "{place}/root/out",
     "{place}/rootless/a.png", "file://{place}/secret", "file:///{place}/secret", "file://{place}/root/%2e%2e/secret",
     "file://in/a.png", "file://host{place}/root/in/a.png", "file://[", "file:in/a%00.png", "..", "a\0b", "a\ud800",
     "ftp://host/a.png", "concat://a"],
)  # fmt: skip
def test_paths_that_leave_the_root(place, name):
    resolve, _ = resolver(place)
    with pytest.raises(SourceError) as refused:
        resolve("image", name.format(place=place))
    assert refused.value.cause == "forbidden_source"


@pytest.mark.parametrize("swapped", ["in", "in/deep", "in/deep/a.png"])
def test_a_path_that_becomes_a_link_is_not_followed(place, swapped):
    """A directory on the way, or the file, becomes a link after the path was checked."""
    deep = place / "root" / "in" / "deep"
    deep.mkdir()
    (deep / "a.png").write_bytes(png(1))
    shutil.copytree(place / "root", place / "outside", symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    resolve, _ = resolver(place)
    found = resolve("image", "in/deep/a.png")
    assert read_image(found).max() == 1
    assert content_digest(found) == content_digest(str(deep / "a.png"))
    os.rename(place / "root" / swapped, place / "moved")
    os.symlink(place / "outside" / swapped, place / "root" / swapped)
    with pytest.raises(MediaError):
        read_image(found)
    for look in (content_digest, file_version):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            look(found)
    assert pickle.loads(pickle.dumps(found)) == found  # workers and replicas get it
    with pytest.raises(SourceError, match="a link that leads out of --media-root"):
        resolve("image", "in/deep/a.png")


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a//b", "a/"])
def test_names_below_a_root(tmp_path, name):
    with pytest.raises(ValueError, match="expected a path below a root"):
        RootedFile(str(tmp_path), name).open()


@pytest.mark.parametrize(
    ("name", "cause"),
    [(".", "not_a_file"), ("{place}/root", "not_a_file"),
     ("none.mp4", "not_found"), ("in", "not_a_file"), ("pipe", "not_a_file"), ("in/a.png/b", "not_found"),
     ("x" * 5000, "unreadable")],
)  # fmt: skip
def test_what_is_no_file(place, name, cause):
    resolve, _ = resolver(place)
    with pytest.raises(MediaError) as refused:
        resolve("image", name.format(place=place))
    assert refused.value.cause == cause
    assert len(str(refused.value)) < 400


def test_without_a_root_any_path_goes_and_a_large_file_does_not(place):
    resolve, _ = resolver(place, root=False, max_bytes=6)
    assert resolve("video", str(place / "secret")) == str(place / "secret")
    with pytest.raises(SourceError, match="--limit-bytes"):
        resolve("image", str(place / "root" / "in" / "a.png"))


# ── data: URLs ──


def test_data_urls_are_files_while_somebody_needs_them(place):
    resolve, spool = resolver(place)
    first = resolve("image", data_url(png()))
    assert resolve("image", data_url(png())) == first  # by content
    assert resolve("image", data_url(png(9))) != first
    assert Path(first).read_bytes() == png()
    spool.release(first)
    assert os.path.exists(first)
    spool.release(first)
    assert not os.path.exists(first)
    spool.release(first)  # files that the spool did not make are left alone
    spool.release(str(place / "secret"))
    assert (place / "secret").exists()
    assert resolve("image", data_url(png())) == first
    spool.close()
    assert not (place / "spool").exists()


def test_base64_may_be_broken_into_lines_and_unpadded(place):
    """As browsers take it; many encoders write lines of 76 characters."""
    resolve, _ = resolver(place)
    content = png() + b"!"
    digits = base64.b64encode(content).decode()
    assert digits.endswith("==")
    lines = "\r\n".join(digits[i : i + 76] for i in range(0, len(digits), 76))
    for written in (digits.rstrip("="), lines, f"\n {lines}\t\n", digits.replace("+", "%2B").replace("=", "%3D")):
        for head in ("data:image/png;base64,", "DATA:IMAGE/PNG;charset=utf-8; base64, "):
            assert Path(resolve("image", head + written)).read_bytes() == content
    frames = f"{digits.rstrip('=')},\n{lines}"
    assert len(read_frames(os.fspath(resolve("video", f"data:video/jpeg;base64,{frames}")), MediaLimits())) == 2


def test_frames_one_by_one_are_one_file(place):
    resolve, _ = resolver(place)
    frames = ",".join(base64.b64encode(png(value)).decode() for value in (1, 2, 3))
    file = resolve("video", f"data:video/jpeg;base64,{frames}")
    assert isinstance(file, FrameFile)
    read = read_frames(os.fspath(file), MediaLimits())
    assert [int(frame[0, 0, 0]) for frame in read] == [1, 2, 3]


@pytest.mark.parametrize(
    "url",
    ["data:", "data:image/png,abc", "data:text/html;base64,AAAA", "data:image/png;base64,A", "data:image/png;base64,é",
     "data:image/png;base64", "data:video/jpeg;base64,AAAA,A", "data:image/png;base64,AA=A",
     "data:image/png;base64,A-_A", "data:image/png;base64,AAAA===", "data:image/png;base64,\ud800"],
)  # fmt: skip
def test_bad_data_urls(place, url):
    resolve, _ = resolver(place)
    with pytest.raises(SourceError) as refused:
        resolve("video", url)
    assert refused.value.cause == "bad_data_url"
    assert os.listdir(place / "spool") == []


def test_a_data_url_over_the_limit_is_not_decoded(place):
    resolve, _ = resolver(place)
    with pytest.raises(SourceError) as refused:
        resolve("image", data_url(b"x" * 20_000))
    assert refused.value.cause == "too_large"


# ── hosts ──


WHOLE = png(7)


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    failures = 0

    def do_GET(self):
        name, _, rest = self.path[1:].partition("?")
        if name == "redirect":
            self.answer(302, {"Location": rest})
        elif name == "accents":
            self.answer(302, {"Location": "/é.png?ü".encode().decode("latin-1")})
        elif self.path == "/%C3%A9.png?%C3%BC":
            self.answer(200, {}, png())
        elif name == "loop":
            self.answer(302, {"Location": "/loop"})
        elif name == "flaky" and Server.failures:
            Server.failures -= 1
            self.answer(503)
        elif name == "large":
            self.answer(200, {"Content-Length": "1000000"}, b"")
        elif name == "endless":
            self.answer(200, {"Connection": "close"}, b"x" * 50_000, length=False)
        elif name == "short":
            self.answer(200, {"Content-Length": "100", "Connection": "close"}, b"x" * 50, length=False)
            self.close_connection = True
        elif name == "closed":
            self.answer(200, {"Connection": "close"}, WHOLE[: int(rest)] if rest else WHOLE, length=False)
            self.close_connection = True
        elif name == "chunked":
            self.answer(200, {"Transfer-Encoding": "chunked", "Connection": "close"}, length=False)
            self.wfile.write(
                b"%x\r\n%b\r\n" % (len(WHOLE), WHOLE) + rest.encode().replace(b"end", b"0,,").replace(b",", b"\r\n")
            )
            self.close_connection = True
        elif name == "stalls":
            self.answer(200, {"Connection": "close"}, WHOLE, length=False)
            time.sleep(3)
            self.close_connection = True
        elif name == "slow":
            time.sleep(3)
        elif name == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(100):
                time.sleep(0.1)
                try:
                    self.wfile.write(b"x")
                except OSError:
                    break
            self.close_connection = True
        elif name in ("a.png", "flaky"):
            self.answer(200, {"X-Host": self.headers["Host"]}, png())
        else:
            self.answer(404)

    def answer(self, status, headers={}, body=b"", length=True):  # noqa: B006
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with answering(Server) as made:
        yield f"localhost:{made.server_port}"


def fetched(url, host, *, seconds=20, attempts=1, allowed=lambda address: True, max_bytes=10_000):
    file = io.BytesIO()
    Fetcher([host], seconds=seconds, attempts=attempts, allowed_address=allowed)(url, file, max_bytes)
    return file.getvalue()


def test_a_file_of_an_allowed_host(place, server):
    assert fetched(f"http://{server}/a.png", server) == png()
    assert fetched(f"http://{server}/redirect?/a.png", server) == png()
    fetch = Fetcher([server], allowed_address=lambda address: True)
    resolve, _ = resolver(place, fetch=fetch)
    assert Path(resolve("image", f"http://{server}/a.png")).read_bytes() == png()


def test_passing_failures_are_tried_again(server):
    Server.failures = 2
    assert fetched(f"http://{server}/flaky", server, attempts=3) == png()


def test_a_body_without_a_length_is_whole_when_its_format_says_so(server):
    assert fetched(f"http://{server}/closed", server) == WHOLE
    for cut in (1, 20, len(WHOLE) - 12, len(WHOLE) - 1):
        with pytest.raises(SourceError, match="neither its host nor its format says whether that is all"):
            fetched(f"http://{server}/closed?{cut}", server)


def test_chunks_end_with_the_last_one(server):
    assert fetched(f"http://{server}/chunked?end", server) == WHOLE
    for rest in ("", "5", "5,ab"):
        with pytest.raises(SourceError, match="IncompleteRead"):
            fetched(f"http://{server}/chunked?{rest}", server)


def test_no_secret_of_a_url_is_shown(server, place):
    host, port = server.split(":")
    for url in (
        f"http://{server}/none?X-Amz-Signature=hidden#hidden",
        f"http://user:hidden@{server}/a.png",
        f"http://user:hid?den@{server}/a.png",
        f"http://{server}/redirect?http://{server}/none?sig=hidden",
        f"http://{server}/redirect?http://user:hidden@{server}/a.png",
        f"http://{server}/redirect?http://other.example/?hidden",
        "http://user:hid/den@host.example/?hidden=a@b",
        "ftp://user:hidden@host/a?hidden",
        f"http://{host}:hidden@{port}/",
        "http://[name?hidden",
    ):
        fetch = Fetcher([server], seconds=5, attempts=1, allowed_address=lambda address: True)
        resolve, _ = resolver(place, fetch=fetch)
        with pytest.raises(SourceError) as refused:
            resolve("image", url)
        assert "hid" not in str(refused.value), url


@pytest.mark.parametrize("path", ["é.png?ü", "accents"])
def test_what_is_not_ascii_in_a_url_is_escaped(server, path):
    assert fetched(f"http://{server}/{path}", server) == png()


@pytest.mark.parametrize(
    ("path", "cause", "message"),
    [
        ("stalls", "fetch_failed", "not whole after 1 s"),
        ("none", "fetch_failed", "status 404"),
        ("loop", "fetch_failed", "more than 5 redirects"),
        ("large", "too_large", "over the limit"),
        ("endless", "too_large", "over the limit"),
        ("short", "fetch_failed", "cannot be fetched"),
        ("slow", "fetch_failed", "cannot be fetched"),
        ("drip", "fetch_failed", "cannot be fetched"),
        ("redirect?http://other.example/a", "forbidden_source", "not allowed by --allow-host"),
        ("redirect?file:///etc/passwd", "forbidden_source", "plain http"),
        ("redirect?//[", "forbidden_source", "/redirect: redirects to what is not a URL"),
        ("\ud800", "forbidden_source", "not a URL"),
        ("redirect?http://u:p@{server}/a", "forbidden_source", "plain http"),
        ("redirect?http://{server}\\@other.example/", "forbidden_source", "plain http"),
    ],
)
def test_what_a_host_may_not_do(server, path, cause, message):
    started = time.monotonic()
    with pytest.raises(SourceError, match=message) as refused:
        fetched(f"http://{server}/{path.format(server=server)}", server, seconds=1)
    assert refused.value.cause == cause
    assert time.monotonic() - started < 6


def test_private_addresses_are_refused_after_resolving_and_after_redirects(server):
    with pytest.raises(SourceError, match="private or reserved network") as refused:
        fetched(f"http://{server}/a.png", server, allowed=is_public)
    assert refused.value.cause == "forbidden_source"
    seen = []

    def only_first(address):
        seen.append(address)
        return len(seen) == 1

    with pytest.raises(SourceError, match="private or reserved network"):
        fetched(f"http://{server}/redirect?/a.png", server, allowed=only_first)


def test_nothing_is_fetched_unless_a_host_is_allowed(place, server):
    resolve, _ = resolver(place)
    with pytest.raises(SourceError, match="--allow-host"):
        resolve("image", f"http://{server}/a.png")
    with pytest.raises(SourceError, match="not allowed"):
        fetched(f"http://{server}/a.png", "localhost")  # the port is not the usual one


# ── a disk that is full, or fails ──


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def no_file_may_grow():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("where", ["tempfile.mkstemp", "os.replace", "write"])
def test_a_full_disk_is_neither_the_mediums_fault_nor_the_networks(place, server, monkeypatch, where):
    """A fetch takes an OSError for the network's, tries again, and would say that the medium cannot be fetched."""
    fetch = Fetcher([server.split(":")[0], server], attempts=2, allowed_address=lambda _: True)
    for source in (data_url(png()), f"http://{server}/a.png"):
        resolve, spool = resolver(place, fetch=fetch)
        with monkeypatch.context() as patched:
            if where != "write":
                patched.setattr(f"videollava_jax.batch.media.spool.{where}", full)
            with (
                no_file_may_grow() if where == "write" else nullcontext(),
                pytest.raises(SpoolError, match=r"spool: media cannot be stored \((no space left|file too large)"),
            ):
                resolve("image", source)
        assert list((place / "spool").iterdir()) == []
        spool.release(resolve("image", source))
