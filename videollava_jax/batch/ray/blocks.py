"""Groups requests into blocks that can be sent to another machine, with the files that only this machine has."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.batch.requests import with_sources
from videollava_jax.engine import Request, Result
from videollava_jax.media.rooted import RootedFile
from videollava_jax.temporary import TemporaryPlace

MOST_BYTES = 64 * 2**20
"""The bytes of files after which a block ends; the last request's files may exceed it."""


@dataclass(frozen=True)
class Block:
    """Requests that one replica answers.

    Attributes:
      requests: with media as paths and `FrameFile`s.
      directory: where relative paths start; every machine must be able to read it.
      files: contents of media that are only on the driver's disk, by their path there.
    """

    requests: tuple[Request, ...]
    directory: str
    files: Mapping[str, bytes]


def blocks(requests: Iterable[Request], size: int, spool: Path) -> Iterator[Block]:
    """Cuts requests into blocks, in their order, where the media change.

    Consecutive questions about the same media stay in one block, which may grow to twice the size for that.

    Args:
      requests: in the order of the job.
      size: the least requests in a block; the last block may have fewer.
      spool: files below this directory are sent along with the block.
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
      requests: with media as absolute paths on this machine.
      local_paths: paths on this machine, by the driver's paths.
    """

    requests: list[Request]
    local_paths: Mapping[str, str]

    def with_driver_paths(self, result: Result) -> Result:
        """Returns a result whose error names files by the driver's paths."""
        if result.error is None:
            return result
        error = result.error
        for there, here in self.local_paths.items():
            error = error.replace(here, there)
        return dataclasses.replace(result, error=error)


@contextmanager
def unpacked(block: Block) -> Iterator[Unpacked]:
    """Writes a block's files to a temporary directory, removed at the end; yields requests that use them."""
    with TemporaryPlace("videollava-block-") as directory:
        local_paths = {path: os.path.join(directory, os.path.basename(path)) for path in block.files}
        for path, content in block.files.items():
            Path(local_paths[path]).write_bytes(content)

        def local(_: Any, source: Any) -> Any:
            path = os.fspath(source)
            here = local_paths.setdefault(path, os.path.join(block.directory, path))
            if isinstance(source, RootedFile):
                return source  # the same file on every machine, below the same root
            return FrameFile(here) if isinstance(source, FrameFile) else here

        yield Unpacked([with_sources(request, local) for request in block.requests], local_paths)
