"""How a server works: names, limits, times. No JAX."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SWITCH_SECONDS = 0.0005
"""For which a thread runs Python while another wants to, a tenth of Python's default. The engine's thread wants to each
time that the device has something for it, and the device has nothing to do until then."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Limits on uploaded files.

    Attributes:
      count: files at a time.
      bytes: of one file.
      bytes_in_all: of all files.
      seconds: after which a file is deleted.
      at_once: uploads at the same time.
    """

    count: int = 1000
    bytes: int = 512 * 2**20
    bytes_in_all: int = 5 * 2**30
    seconds: float = 3600.0
    at_once: int = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes:
      model: the name by which clients call the model.
      api_key: which clients have to send; None for none.
      public_names: names of hosts by which clients may call the server, besides addresses and localhost.
      media_root: where paths in requests begin; None refuses paths.
      hosts: which media may be fetched from.
      max_queue: answers that may be asked for and not given at a time.
      request_timeout: seconds that a request may take, its media included.
      stuck_seconds: beyond `request_timeout` for which the engine may do nothing while requests are open.
      drain_seconds: that requests have to end after SIGTERM.
      ping_seconds: after which a stream without text has a comment, so that proxies keep it.
      retry_seconds: of Retry-After.
      max_body_bytes: of a request's JSON.
      max_bodies_bytes: of the bodies of all open requests.
      max_medium_bytes: of one image or video.
      max_answers, max_stops, max_logit_bias, max_choices: of one request.
      max_frames: that the longest prefix has room for.
      frame_window: frames that the model takes together.
      max_tokens: positions of the model.
      longest_answer: tokens of an answer, and how many there are at most where a request does not say.
      frame_sampling: which frames are taken where a request does not say; None for 8, by the preset's rule.
      examples: whether the page offers the bundled clips, which the tiny model alone knows.
      uploads: limits of files.
    """

    model: str
    api_key: str | None = None
    public_names: tuple[str, ...] = ()
    media_root: Path | None = None
    hosts: tuple[str, ...] = ()
    max_queue: int = 256
    request_timeout: float = 600.0
    stuck_seconds: float = 60.0
    drain_seconds: float = 30.0
    ping_seconds: float = 15.0
    retry_seconds: float = 1.0
    max_body_bytes: int = 256 * 2**20
    max_bodies_bytes: int = 2**30
    max_medium_bytes: int = 2**30
    max_answers: int = 16
    max_stops: int = 16
    max_logit_bias: int = 300
    max_choices: int = 64
    max_frames: int = 8
    frame_window: int = 1
    max_tokens: int = 4096
    longest_answer: int = 512
    frame_sampling: Any = None
    examples: bool = False
    uploads: UploadLimits = field(default_factory=UploadLimits)
