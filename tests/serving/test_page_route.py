"""The page's files as the server gives them: their headers, and that they load nothing from elsewhere."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from videollava_jax.assets import MEDIA
from videollava_jax.serving.page_route import EXAMPLES, content_security_policy, is_of_page, page_routes


@pytest.fixture(scope="module")
def client():
    return TestClient(Starlette(routes=page_routes(["example.org", "media.example.net:8080"], examples=True)))


PATHS = ["/", "/page/page.js", "/page/style.css", "/page/icon.svg", "/page/examples.json"]
PATHS += [f"/page/examples/{name}" for name in EXAMPLES]


@pytest.mark.parametrize("path", PATHS)
def test_every_file_has_its_type_and_the_policy(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy
    assert "style-src" not in policy
    assert "https://media.example.net:8080" in policy["media-src"].split()
    assert "*" not in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"if-none-match": answer.headers.get("etag", "")})
    assert again.status_code in (200, 304)
    assert is_of_page(path)


def test_other_paths_are_not_the_pages(client):
    for path in (
        "/page/../page_route.py",
        "/page/%2e%2e/page_route.py",
        "/page/examples/../../__init__.py",
        "/page/README.md",
    ):
        assert client.get(path).status_code == 404
    assert not any(map(is_of_page, ("/v1/models", "/pages", "/page", "/page/", "//", "/page/../v1/models", "/page/x")))


def test_the_examples_are_those_of_the_tiny_model_and_offered_for_it_alone(client):
    listed = client.get("/page/examples.json").json()
    assert [each["name"] for each in listed] == sorted(EXAMPLES, key=list(EXAMPLES).index)
    for each in listed:
        assert client.get(f"/page/examples/{each['name']}").content == (MEDIA / each["name"]).read_bytes()
    others = TestClient(Starlette(routes=page_routes()))
    assert others.get("/page/examples.json").json() == []
    assert others.get("/page/examples/rising-triangle.mp4").status_code == 404


def test_the_page_loads_nothing_from_elsewhere_and_has_no_script_or_style_within(client):
    html, script, style = (client.get(path).text for path in PATHS[:3])
    assert re.findall(r"<script(?![^>]* src=)", html) == []
    assert re.findall(r"<style| style=| on\w+=", html) == []
    assert re.findall(r"(?:src|href)=\"(?!page/|#)", html) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script) == []
    assert re.findall(r"^import|\bimport\(", script, re.MULTILINE) == []
    assert re.findall(r"@import|url\(", style) == []


def test_media_of_hosts_may_be_shown_only_if_the_server_fetches_from_them():
    assert "https:" not in content_security_policy()
    assert "https://example.org http://example.org" in content_security_policy(["example.org"])
