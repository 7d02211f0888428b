"""How answers are decoded: every option under transformers' name, with its default and its range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.generation.answers import ANSWER_BUCKET, bucket

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


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
