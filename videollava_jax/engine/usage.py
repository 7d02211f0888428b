"""What an engine has done and is doing, in numbers. No JAX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counts of a session, for metrics. Requests whose choices are scored and pins count as requests.

    Attributes:
      waiting: requests that wait: to be looked at, for a slot, or for a row.
      reading: requests whose media are being read.
      running: requests that are being answered: rows in use.
      rows, slots: of the grid, in all.
      slots_in_use: slots whose prefix somebody needs now.
      held: slots that hold a prefix, needed or not.
      pinned: prefixes that have to stay.
      prefix_queries: requests so far whose prefix was looked for.
      prefix_hits: those of them for which no prefix had to be computed: the device held it, or it was being read for
        an earlier request.
      prefills: prefixes computed so far.
      prompt_tokens: of the requests so far that were begun, media included.
      generated_tokens: written so far.
      compiled: programs that the process has compiled since `warm_up`, or since the session began without it.
    """

    waiting: int = 0
    reading: int = 0
    running: int = 0
    rows: int = 0
    slots: int = 0
    slots_in_use: int = 0
    held: int = 0
    pinned: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefills: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    compiled: int = 0
