"""The host's side of decoding: options and their defaults, chunks of steps, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.next_token import Sampling
from videollava_jax.generation.steps import ANSWER_BUCKET, Answers, Graph, Vocabulary, bucket
from videollava_jax.model.cache import Cache

STREAM_CHUNK = 8  # steps between two looks at the answers, while streaming or watching for stop strings
OnTokens = Callable[[npt.NDArray[np.int64]], None]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How answers are decoded; every field under transformers' name, checked.

    Attributes:
      eos_token_ids: ids that end a row.
      pad_token_id: written behind the end of a row.
      stop_strings: a row ends with the token that completes one; needs `tokenizer`.
      on_tokens: called with the new tokens int64 [rows, n] after every chunk of steps.
    """

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    suppress_tokens: tuple[int, ...]
    stop_strings: tuple[str, ...]
    tokenizer: Any
    on_tokens: OnTokens | None

    def __post_init__(self) -> None:
        for name, good in (
            ("max_new_tokens", self.max_new_tokens >= 1),
            ("temperature", self.temperature > 0 or not self.do_sample),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("repetition_penalty", self.repetition_penalty > 0),
        ):
            if not good:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range (for greedy answers, do_sample=False)")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings need tokenizer=, to turn tokens back into text")

    @classmethod
    def resolve(
        cls,
        defaults: Mapping[str, Any],
        config: VideoLlavaConfig,
        *,
        max_new_tokens: int,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        suppress_tokens: Sequence[int] = (),
        stop_strings: str | Sequence[str] = (),
        tokenizer: Any = None,
        on_tokens: OnTokens | None = None,
    ) -> DecodeOptions:
        """Fills what is None from `generation_config.json`, then from transformers' own defaults."""
        eos = _first(eos_token_id, defaults.get("eos_token_id"), config.eos_token_ids)
        eos_ids = (eos,) if isinstance(eos, int) else tuple(eos)
        pad = _first(pad_token_id, defaults.get("pad_token_id"), config.text_config.pad_token_id, *eos_ids, 0)
        return cls(
            max_new_tokens=max_new_tokens,
            do_sample=bool(_first(do_sample, defaults.get("do_sample"), False)),
            temperature=_first(temperature, defaults.get("temperature"), 1.0),
            top_k=_first(top_k, defaults.get("top_k"), 50),
            top_p=_first(top_p, defaults.get("top_p"), 1.0),
            repetition_penalty=_first(repetition_penalty, defaults.get("repetition_penalty"), 1.0),
            eos_token_ids=eos_ids,
            pad_token_id=pad,
            suppress_tokens=tuple(suppress_tokens),
            stop_strings=(stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings),
            tokenizer=tokenizer,
            on_tokens=on_tokens,
        )

    @property
    def room(self) -> int:
        """Slots of the cache that the answer may take: a bucket, so that lengths share what was compiled."""
        return bucket(self.max_new_tokens, ANSWER_BUCKET)


def decode(
    graph: Graph,
    state: Any,
    logits_BV: jax.Array,
    cache: Cache,
    keys_B: jax.Array,
    seen: Sequence[npt.NDArray[np.int32]],
    options: DecodeOptions,
) -> tuple[npt.NDArray[np.int64], Cache]:
    """Decodes answers after what the cache holds.

    Args:
      logits_BV: of the first new token.
      cache: with at least `options.room` free slots; its tail is donated.
      keys_B: a key for the draws of each row.
      seen: the tokens of each row's prompt, for the repetition penalty.

    Returns:
      The new tokens int64 [B, n], padded behind the end of each row, and the cache that holds all but the last of the
      longest answer.

    Raises:
      FloatingPointError: logits that are not finite, naming the rows.
    """
    rows, V = logits_BV.shape
    vocabulary = Vocabulary(
        eos_E=jnp.asarray(options.eos_token_ids, jnp.int32),
        suppressed_V=_marks([np.array(options.suppress_tokens, np.int32)], V)[0],
        pad=jnp.asarray(options.pad_token_id, jnp.int32),
    )
    limit = options.max_new_tokens
    chunk = STREAM_CHUNK if options.stop_strings or options.on_tokens else limit
    answers = compiled.choose(logits_BV, _unwritten(rows, V, keys_B, seen, options), vocabulary)
    tail, never = cache.tail, jnp.asarray(rows + 1, jnp.int32)
    ends = np.full(rows, limit)
    written = 0
    while True:
        before, written = written, int(answers.count_B.max())
        tokens = np.asarray(answers.tokens_BN)[:, :written]
        for row in np.flatnonzero(ends == limit):
            end = ended(tokens[row], before, options)
            ends[row] = limit if end is None else end
        tokens = np.where(np.arange(written) < ends[:, None], tokens, options.pad_token_id)[:, : ends.max()]
        if options.on_tokens and tokens.shape[1] > before:
            options.on_tokens(tokens[:, before:].astype(np.int64))
        if (ends <= written).all() or bool(answers.done_B.all()):
            break
        steps = jnp.asarray(chunk - 1 if written == 1 else chunk, jnp.int32)
        tail, answers = compiled.decode(graph, state, cache.prefix, tail, answers, vocabulary, steps, never)
    finite = np.asarray(answers.finite_B)
    if not finite.all():
        raise FloatingPointError(
            f"logits of rows {np.flatnonzero(~finite).tolist()} are not finite: the weights or pixels hold NaN or "
            "infinity, or overflow in this dtype"
        )
    return tokens.astype(np.int64), Cache(cache.prefix, tail)


def _unwritten(
    rows: int, V: int, keys_B: jax.Array, seen: Sequence[npt.NDArray[np.int32]], options: DecodeOptions
) -> Answers:
    penalise = options.repetition_penalty != 1.0
    sampling = Sampling(
        keys_B=keys_B,
        draw_B=jnp.full((rows,), options.do_sample),
        temperature_B=jnp.full((rows,), options.temperature, jnp.float32),
        top_k_B=jnp.full((rows,), options.top_k, jnp.int32),
        top_p_B=jnp.full((rows,), options.top_p, jnp.float32),
        repetition_penalty_B=jnp.full((rows,), options.repetition_penalty, jnp.float32),
        draw=options.do_sample,
        penalise=penalise,
    )
    return Answers(
        token_B=jnp.full((rows,), options.pad_token_id, jnp.int32),
        tokens_BN=jnp.full((rows, options.room), options.pad_token_id, jnp.int32),
        count_B=jnp.zeros((rows,), jnp.int32),
        limit_B=jnp.full((rows,), options.max_new_tokens, jnp.int32),
        done_B=jnp.zeros((rows,), bool),
        finite_B=jnp.ones((rows,), bool),
        seen_BV=_marks(seen, V) if penalise else None,
        sampling=sampling,
    )


class Streamer(Protocol):
    """What transformers calls a streamer: `TextStreamer`, `TextIteratorStreamer` and what is made like them."""

    def put(self, value: npt.NDArray[Any]) -> None:
        """Takes a prompt [B, T], then the tokens [B] of one step after the other."""

    def end(self) -> None:
        """The answers are whole."""


def to_streamer(streamer: Streamer, on_tokens: OnTokens | None = None) -> OnTokens:
    """An `on_tokens` that hands each step's tokens to a streamer, and whole chunks to another `on_tokens`."""

    def hand_on(tokens: npt.NDArray[np.int64]) -> None:
        for step_B in tokens.T:
            streamer.put(step_B)
        if on_tokens is not None:
            on_tokens(tokens)

    return hand_on


class TextStream:
    """Turns the tokens of one row into text as they come: an `on_tokens` that hands on each new piece.

    A character whose bytes are spread over several tokens is held back until it is whole.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._sent = ""

    def __call__(self, tokens: npt.NDArray[np.int64]) -> None:
        self._tokens += tokens[0].tolist()
        text = answer_text(self._tokenizer, self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._on_text(text.removeprefix(self._sent))
            self._sent = text


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """An answer as text: without special tokens, and without the space that Llama puts before its first word."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.lstrip(" ")


def row_keys(seed: int | Sequence[int], rows: int, copies: int = 1) -> jax.Array:
    """A key for each row and each of its copies: from the row's seed and the copy's number, nothing else."""
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"seed: expected one number or one for each of {rows} rows, got {len(seeds)}")
    return jnp.stack([jax.random.fold_in(jax.random.key(s), copy) for s in seeds for copy in range(copies)])


def _marks(rows: Sequence[npt.NDArray[np.int32]], V: int) -> jax.Array:
    marks = np.zeros((len(rows), V), bool)
    for row, ids in enumerate(rows):
        marks[row, ids] = True
    return jnp.asarray(marks)


def ended(tokens: npt.NDArray[np.int32], checked: int, options: DecodeOptions) -> int | None:
    """How many tokens it takes to end a row, None where it has not ended; none of the first `checked` ends it."""
    for count in range(checked + 1, len(tokens) + 1):
        if tokens[count - 1] in options.eos_token_ids:
            return count
        if options.stop_strings:
            text = _continuation(options.tokenizer, tokens[:count].tolist())
            if any(stop in text for stop in options.stop_strings):
                return count
    return None


def _continuation(tokenizer: Any, tokens: list[int]) -> str:
    """The text of tokens that follow others: with the space before a first word, which `decode` takes for a prefix."""
    text: str = tokenizer.decode(tokens)
    opens_a_word = tokenizer.convert_ids_to_tokens(tokens[0]).startswith("\N{LOWER ONE EIGHTH BLOCK}")
    return f" {text}" if opens_a_word else text


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
