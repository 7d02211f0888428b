"""Requests in blocks, with what they need of this machine's disk: what another machine is sent at once."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.batch.formats import with_sources
from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.engine import Request, Result

MOST_BYTES = 64 * 2**20
"""Of files that a block carries; it ends with the request that goes beyond."""


@dataclass(frozen=True)
class Block:
    """Requests that one replica answers.

    Attributes:
      requests: their media are paths and `FrameFile`s.
      directory: that relative paths start from, which every machine has to see.
      files: contents of those media that only the driver's disk holds, by their path there.
    """

    requests: tuple[Request, ...]
    directory: str
    files: Mapping[str, bytes]


def blocks(requests: Iterable[Request], size: int, spool: Path) -> Iterator[Block]:
    """Requests in their order, cut where the media change.

    Questions about the same media that follow each other stay in one block, which may have twice the size for that.

    Args:
      size: requests of a block, at least; the last one may have fewer.
      spool: media under it are carried along.
    """
    taken: list[Request] = []
    files: dict[str, bytes] = {}
    before: list[str] = []
    for request in requests:
        media = _media(request)
        full = len(taken) >= size or sum(map(len, files.values())) > MOST_BYTES
        if taken and full and (not media or media != before or len(taken) >= 2 * size):
            yield Block(tuple(taken), os.getcwd(), files)
            taken, files = [], {}
        for path in media:
            if path not in files and Path(path).is_relative_to(spool):
                files[path] = Path(path).read_bytes()
        taken.append(request)
        before = media
    if taken:
        yield Block(tuple(taken), os.getcwd(), files)


def _media(request: Request) -> list[str]:
    found: list[str] = []

    def look(_: Any, source: Any) -> Any:
        found.append(os.fspath(source))
        return source

    with_sources(request, look)
    return found


@dataclass(frozen=True)
class Unpacked:
    """A block on the machine that answers it.

    Attributes:
      requests: their media are absolute paths of this machine.
      places: paths of this machine, by those of the driver.
    """

    requests: list[Request]
    places: Mapping[str, str]

    def as_on_the_driver(self, result: Result) -> Result:
        """A result whose error names files as the driver does."""
        if result.error is None:
            return result
        error = result.error
        for there, here in self.places.items():
            error = error.replace(here, there)
        return dataclasses.replace(result, error=error)


@contextmanager
def unpacked(block: Block) -> Iterator[Unpacked]:
    """A block's requests with the files that it carries written to a directory, which is there until the end."""
    with tempfile.TemporaryDirectory(prefix="videollava-") as place:
        places = {path: os.path.join(place, os.path.basename(path)) for path in block.files}
        for path, content in block.files.items():
            Path(places[path]).write_bytes(content)

        def local(_: Any, source: Any) -> Any:
            path = os.fspath(source)
            here = places.setdefault(path, os.path.join(block.directory, path))
            return FrameFile(here) if isinstance(source, FrameFile) else here

        yield Unpacked([with_sources(request, local) for request in block.requests], places)
