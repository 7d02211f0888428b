"""Routes of the page at `/`: its files, examples for the tiny model, and a policy that lets nothing else in. No JAX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from videollava_jax.assets import MEDIA

_FILES = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
EXAMPLES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "rising-triangle.mp4": (
            "video/mp4",
            ("Which way does it move?", "What shape is it?", "Does it change colour?", "How many shapes are there?"),
        ),
        "circle-then-square.mp4": ("video/mp4", ("Which shape comes first?", "Which colour comes last?")),
        "three-triangles.png": ("image/png", ("How many shapes are there?", "What colour are they?")),
    }
)
"""The files that the tiny model knows how to answer about: their types, and questions about them."""
_NAMES = tuple(sorted(path.name for path in _FILES.iterdir() if path.suffix in _TYPES))
_PATHS = frozenset(
    ("/", "/page/examples.json", *(f"/page/{name}" for name in (*_NAMES, *(f"examples/{name}" for name in EXAMPLES))))
)


def is_of_page(path: str) -> bool:
    """Returns whether a path is one of the page's own. Every installation has what is there, so it needs no API key."""
    return path in _PATHS


def content_security_policy(hosts: Iterable[str] = ()) -> str:
    """Returns what a browser may load for the page: its own files, media that users choose, and those of `hosts`.

    Args:
      hosts: which media may come from, "example.org" or "example.org:8080".
    """
    media = " ".join(["blob:", *(f"{scheme}://{host}" for host in hosts for scheme in ("https", "http"))])
    return (
        f"default-src 'self'; img-src 'self' data: {media}; media-src 'self' {media}; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page_routes(hosts: Sequence[str] = (), *, examples: bool = False) -> list[BaseRoute]:
    """Returns the routes of the page.

    Args:
      hosts: which the server fetches media from: the page may then show these media too.
      examples: whether the page offers the bundled clips and picture, which only the tiny model knows.
    """
    headers = {
        "Content-Security-Policy": content_security_policy(hosts),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",  # asked for again each time, and mostly answered with 304
    }
    offered = EXAMPLES if examples else {}
    listed: list[dict[str, Any]] = [
        {"name": name, "type": kind, "questions": list(questions)} for name, (kind, questions) in offered.items()
    ]

    def file(path: str, of: Path, kind: str) -> Route:
        async def answer(request: Request) -> Response:
            return FileResponse(of, media_type=kind, headers=headers)

        return Route(path, answer, methods=["GET"])

    async def list_examples(request: Request) -> Response:
        return JSONResponse(listed, headers=headers)

    return [
        file("/", _FILES / "index.html", _TYPES[".html"]),
        *(file(f"/page/{name}", _FILES / name, _TYPES[Path(name).suffix]) for name in _NAMES),
        Route("/page/examples.json", list_examples, methods=["GET"]),
        *(file(f"/page/examples/{name}", MEDIA / name, kind) for name, (kind, _) in offered.items()),
    ]
