"""Turns tokens into text: whole answers, streams of text, and the texts that end an answer. No JAX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from videollava_jax.generation.options import GenerationOptions

_BYTE = re.compile("<0x[0-9A-F]{2}>")
OnTokens = Callable[[npt.NDArray[np.int64]], None]
"""Called with the new tokens int64 [rows, n] after every chunk of steps."""


class Streamer(Protocol):
    """transformers' streamers, `TextStreamer` and `TextIteratorStreamer` among them, by the methods that are called."""

    def put(self, value: npt.NDArray[Any]) -> None:
        """Takes the prompts [B, T] at first, and then the tokens [B] of each step."""

    def end(self) -> None:
        """Is called when all answers have ended."""


def to_streamer(streamer: Streamer, on_tokens: OnTokens | None = None) -> OnTokens:
    """Returns an `on_tokens` that passes each step's tokens to a streamer, and whole chunks to another `on_tokens`."""

    def hand_on(tokens: npt.NDArray[np.int64]) -> None:
        for step_B in tokens.T:
            streamer.put(step_B)
        if on_tokens is not None:
            on_tokens(tokens)

    return hand_on


class TextStream:
    """An `on_tokens` that turns the tokens of one row into text and passes on each new piece.

    Tokens that are single bytes are held back until another token has come: a run of them is decoded as a whole, and
    one that is no UTF-8 changes all its characters.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._settled = 0
        self._sent = ""

    def __call__(self, tokens: npt.NDArray[np.int64]) -> None:
        """Takes the next tokens, int64 [1, n]."""
        before = len(self._tokens)
        self._tokens += tokens[0].tolist()
        ends = (end for end in range(len(self._tokens), before, -1) if not self._is_open(self._tokens[end - 1]))
        self._settled = next(ends, self._settled)
        text = answer_text(self._tokenizer, self._tokens[: self._settled])
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._send(text)

    def end(self) -> None:
        """Passes on what was held back: no tokens come any more."""
        self._send(answer_text(self._tokenizer, self._tokens))

    def _send(self, text: str) -> None:
        self._on_text(text.removeprefix(self._sent))
        self._sent = text

    def _is_open(self, id: int) -> bool:
        """Returns whether a run of bytes may go on behind a token: a byte, or one that adds nothing to the text."""
        if _BYTE.fullmatch(piece(self._tokenizer, id)):
            return True
        return not self._tokenizer.decode([id], skip_special_tokens=True)


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Returns an answer as text, without special tokens and without the space that Llama puts before its first word."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.lstrip(" ")


def ends_by_text(options: GenerationOptions) -> bool:
    """Returns whether the text of an answer may end it: the host then looks at the answer every few steps."""
    return bool(options.stop_strings)


def _is_end(text: str, options: GenerationOptions) -> bool:
    """Returns whether an answer with this text so far is complete."""
    return any(stop in text for stop in options.stop_strings)


def require_tokenizer(options: GenerationOptions, tokenizer: Any) -> None:
    """Raises a ValueError where the text may end an answer and no tokenizer turns its tokens into text."""
    if ends_by_text(options) and tokenizer is None:
        raise ValueError("stop_strings need tokenizer=, to turn tokens back into text")


def ended(tokens: npt.NDArray[np.int32], checked: int, options: GenerationOptions, tokenizer: Any = None) -> int | None:
    """Returns the number of tokens after which a row has ended, None where it has not.

    Args:
      checked: number of first tokens that are known not to end it.
      tokenizer: needed with stop strings.
    """
    for count in range(checked + 1, len(tokens) + 1):
        if tokens[count - 1] in options.eos_token_id:
            return count
        if ends_by_text(options) and _is_end(_continuation(tokenizer, tokens[:count].tolist()), options):
            return count
    return None


def _continuation(tokenizer: Any, tokens: list[int]) -> str:
    """The text of tokens that follow others. `decode` drops the space before the first word; here it stays."""
    text: str = tokenizer.decode(tokens)
    opens_a_word = piece(tokenizer, tokens[0]).startswith("\N{LOWER ONE EIGHTH BLOCK}")
    return f" {text}" if opens_a_word else text


def piece(tokenizer: Any, id: int) -> str:
    """Returns the token of an id; "" for one of those that only fill up the model's vocabulary, and have no token."""
    token: str | None = tokenizer.convert_ids_to_tokens(id)
    return token or ""
