"""Answers end before a stop string, as OpenAI's do; the engine's have it as their last characters. No JAX."""

from __future__ import annotations

from collections.abc import Sequence


def before(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of some strings in it: up to the one that is complete first."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


class TextBefore:
    """Passes on a text that comes in pieces, up to the first of some strings.

    The end of what has come is held back while it may be the start of such a string.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self._over = False

    def __call__(self, piece: str, *, last: bool = False) -> str:
        """Takes the next piece, and returns what can be passed on; with `last` nothing follows."""
        if self._over or not self._stops:
            return "" if self._over else piece
        text = self._held + piece
        self._held = ""
        cut = before(text, self._stops)
        if len(cut) < len(text):
            self._over = True
        elif not last:
            keep = max(_start_of(text, stop) for stop in self._stops)
            cut, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return cut


def _start_of(text: str, stop: str) -> int:
    """The length of the longest end of a text that `stop` starts with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
