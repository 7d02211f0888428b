"""A Hugging Face hub on this machine: the few calls that `snapshot_download` makes, answered from directories."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.loopback import answering

_CALL = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class FakeHub:
    """A hub that serves directories as models.

    Attributes:
      models: directories by name on the hub; each has one revision, "main".
      tokens: of private models, by name; without it they are not found.
      gated: names of models whose terms nobody has accepted.
      sent: what was sent so far, as "owner/name/path".
      environment: for a process whose `huggingface_hub` shall use it: constants are read when that is imported.
    """

    def __init__(self, models: Mapping[str, Path], cache: Path, endpoint: str):
        self.models, self.sent = dict(models), list[str]()
        self.tokens, self.gated = dict[str, str](), set[str]()
        self.environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def process_environment(self, **more: str) -> dict[str, str]:
        """This process's environment with the hub's in it."""
        dropped = ("HF_HUB_CACHE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return {**kept, **self.environment, **more}

    def use_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets this process use the hub, although `huggingface_hub` has been imported."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        endpoint, cache = self.environment["HF_ENDPOINT"], self.environment["HF_HOME"]
        for name, value in {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": f"{cache}/hub",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def go_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sets HF_HUB_OFFLINE for this process."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def commit(self, name: str) -> str:
        """The one commit of a model, 40 hexadecimal digits."""
        return hashlib.sha1(name.encode()).hexdigest()

    def files(self, name: str) -> dict[str, Path]:
        """The files of a model by their paths in it."""
        directory = self.models[name]
        return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}


@contextmanager
def fake_hub(models: Mapping[str, Path], cache: Path) -> Iterator[FakeHub]:
    """Serves directories as models of a hub until the block ends.

    Args:
      models: directories by names such as "owner/name".
      cache: where the client keeps what it fetches.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if call := _CALL.fullmatch(path):
                self._tell(call["name"], call["what"], call["revision"] or "main")
            elif (file := _FILE.fullmatch(path)) and self._knows(file["name"], file["revision"]):
                self._send_file(file["name"], file["path"])
            elif not file:
                self._refuse("EntryNotFound")

        def _knows(self, name: str, revision: str) -> bool:
            token = hub.tokens.get(name)
            if name not in hub.models or (token and self.headers["Authorization"] != f"Bearer {token}"):
                self._refuse("RepoNotFound")
            elif name in hub.gated:
                self._refuse("GatedRepo", 403)
            elif revision not in ("main", hub.commit(name)):
                self._refuse("RevisionNotFound")
            else:
                return True
            return False

        def _tell(self, name: str, what: str | None, revision: str) -> None:
            if not self._knows(name, revision):
                return
            files = hub.files(name)
            if what == "tree":
                tree = [{"type": "file", "path": p, "size": f.stat().st_size, "oid": _oid(f)} for p, f in files.items()]
                self._send(json.dumps(tree).encode())
                return
            siblings = [{"rfilename": path} for path in files]
            told = {"id": name, "modelId": name, "sha": hub.commit(name), "siblings": siblings, "private": False}
            self._send(json.dumps(told).encode())

        def _send_file(self, name: str, path: str) -> None:
            file = hub.files(name).get(path)
            if file is None:
                self._refuse("EntryNotFound")
                return
            if self.command == "GET":
                hub.sent.append(f"{name}/{path}")
            content = file.read_bytes()
            self._send(content, {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": hub.commit(name)})

        def _send(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def _refuse(self, code: str, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with answering(Handler) as server:
        hub = FakeHub(models, cache, f"http://127.0.0.1:{server.server_port}")
        yield hub


def _oid(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
