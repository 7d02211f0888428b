"""Opens files of text that may be compressed: gzip or Zstandard, recognised by their first bytes."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from videollava_jax.extras import installs
from videollava_jax.named_errors import named_errors

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SUFFIXES = (".gz", ".zst", ".zstd")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading in binary mode, decompressed if it is compressed.

    Raises:
      ValueError: the content is damaged or cut short, also where this shows while the file is read; or nothing that is
        installed decompresses it.
      OSError: the file cannot be opened, or read later on.
    """
    with named_errors(path), open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start.startswith(_GZIP):
            with _sound(path, EOFError, zlib.error, gzip.BadGzipFile), gzip.open(raw) as file:
                yield file  # type: ignore[misc]  # typeshed: GzipFile is no BinaryIO
        elif start == _ZSTD:
            zstd = _zstd(path)
            with _sound(path, EOFError, zstd.ZstdError), zstd.open(raw) as file:
                yield file
        else:
            yield raw


def own_suffix(path: Path) -> str:
    """Returns the suffix of a file's name in lower case, that of a compression left out: ".csv" for `a.CSV.gz`."""
    name = path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path
    return name.suffix.lower()


@contextmanager
def _sound(path: Path, *damage: type[Exception]) -> Iterator[None]:
    try:
        yield
    except damage as error:
        raise ValueError(f"{path}: compressed, and damaged or cut short ({error})") from None


def _zstd(path: Path) -> Any:
    """The standard library's module, which has a backport for Python before 3.14."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise ValueError(
            f"{path}: compressed with Zstandard, which this Python reads with a package: {installs('zstd')}"
        ) from None
    return zstd
