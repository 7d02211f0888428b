"""Errors that a client gets: their status, their JSON, and what is kept out of their text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

TOO_MANY, UNAVAILABLE = 429, 503
"""Statuses that ask a client to come again; they have a Retry-After."""

_SERVER_CAUSES = {
    "not_finite": (500, "the model's scores of this request are not finite"),
    "closed": (UNAVAILABLE, "the server is going down"),
    "stopped": (UNAVAILABLE, "the server is going down"),
}
"""For the cause of a result, its status and message; every other cause is the request's own fault, and a 400."""
_UNSAID = "the request could not be carried out"
_INNER = re.compile(r"0x[0-9a-fA-F]{6,}|(?<![\w.:/])(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+){2,}|\bTraceback\b")
"""Addresses of memory and paths of files."""


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      message: for people; a line.
      param: the field of the body that is at fault.
      code: for programs.
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] = {},
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers)
        if status in (TOO_MANY, UNAVAILABLE):
            self.headers["Retry-After"] = str(max(1, round(retry_after or 1)))

    def body(self) -> dict[str, Any]:
        """Returns the error as OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}.get(self.status, kind)
        kind = "rate_limit_error" if self.status == TOO_MANY else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_request") -> ApiError:
    """Returns the error of a request that the client has to change."""
    return ApiError(400, message, param=param, code=code)


def not_stored(error: OSError) -> ApiError:
    """Returns the error of a request whose media the server's disk does not take: it is full, or fails."""
    why = os.strerror(error.errno or 0).lower()
    return ApiError(UNAVAILABLE, f"the server cannot store media ({why})", code="not_stored", retry_after=10)


def of_cause(cause: str | None, message: str, seconds: float) -> ApiError:
    """Returns the error of a request whose result is an error.

    Args:
      cause: of the result.
      message: its error, with the client's names for media.
      seconds: the time limit of requests.
    """
    if cause == "deadline":
        # The official clients try again after 504, and would wait as long once more.
        return ApiError(
            504,
            f"there was no answer within {seconds:g} s",
            code="deadline",
            headers={"x-should-retry": "false"},
        )
    if cause in _SERVER_CAUSES:
        status, said = _SERVER_CAUSES[cause]
        return ApiError(status, said, code=cause, headers={} if status == UNAVAILABLE else {"x-should-retry": "false"})
    return invalid(harmless(message), code=cause or "invalid_request")


def harmless(message: str) -> str:
    """Returns a message for a client, in one line; one that has a path or an address in it is not passed on."""
    line = " ".join(message.split())
    return _UNSAID if _INNER.search(line) else line
