"""Reads the URLs that name media: file: and data:; `remote.py` fetches those of hosts. No JAX."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse


class SourceError(ValueError):
    """A medium is named that is forbidden or cannot be obtained.

    Attributes:
      cause: the kind of error, for programs that count.
    """

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def file_url_path(url: str) -> str:
    """Returns the path in a file: URL.

    Raises:
      SourceError: not a URL, or one of another machine.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise SourceError("forbidden_source", f"{short_name(url)}: not a URL") from None
    if parts.netloc not in ("", "localhost"):
        raise SourceError(
            "forbidden_source",
            f"{short_name(url)}: names a host, {short_name(parts.netloc)}: expected file:///path, or a path",
        )
    return urllib.parse.unquote(parts.path, errors="surrogateescape")


def base64_digits(content: str) -> bytes:
    """Returns what follows the comma of a data: URL, without the white space and escapes that URLs may have."""
    raw = urllib.parse.unquote_to_bytes(content) if "%" in content else content.encode(errors="replace")
    return raw.translate(None, b" \t\r\n\f")


def base64_bytes(digits: bytes) -> bytes:
    """Decodes base64 as browsers do: padding may be left out.

    Raises:
      SourceError: it is damaged.
    """
    digits = digits.removesuffix(b"=").removesuffix(b"=")
    try:
        if digits.endswith(b"="):
            raise binascii.Error("more padding than there can be")
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        raise SourceError("bad_data_url", "a data: URL whose base64 is damaged") from None


def shown_url(url: str) -> str:
    """Returns a URL for messages, short and without what may be secret: user names, passwords, queries, fragments."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        return short_name(url)
    address = re.split("[?#]", rest, maxsplit=1)[0]
    if "/" not in address and "@" in rest[len(address) :]:
        return f"{scheme[:20]}://…"  # a password may hold a ? or # that is not escaped
    return f"{scheme[:20]}://{short_name(address.rpartition('@')[2], plain=True)}"


def short_name(name: str, *, plain: bool = False) -> str:
    """Returns a source's name for messages: on one line, and shortened if it is long.

    Args:
      name: a path or a URL; of the latter only what `shown_url` shows.
      plain: it is no URL.
    """
    if not plain and "://" in name[:40] and not name.startswith("data:"):
        return shown_url(name)
    most = 40 if name.startswith("data:") else 200
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:most])
    return printable if len(name) <= most else f"{printable}… ({len(name)} characters)"
