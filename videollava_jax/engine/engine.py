"""`Engine`: what users call; options in, a run over requests out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from videollava_jax.engine.preparation import Reader
from videollava_jax.engine.request import Request, Result, Scored
from videollava_jax.engine.run import Run
from videollava_jax.engine.scoring import score_requests
from videollava_jax.engine.sizes import ROWS, free_memory
from videollava_jax.pretrained import VideoLlavaForConditionalGeneration
from videollava_jax.processor import VideoLlavaProcessor


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine works; None for what fits the machine.

    Attributes:
      max_rows: questions answered at a time, at most.
      memory: bytes for the keys and values of all prefixes and questions, on all devices together.
      int8_cache: keep keys and values in int8: half the memory of bfloat16, at a small error.
      window: requests looked at ahead, to bring together those about the same media.
      readers: threads that decode and resize media ahead of the device.
      reader: what they call for a medium and its sampling, for decoding elsewhere; None for the processor's
        `read_medium`.
      longest_question: tokens after the media that rows are made for; longer texts are computed as prefixes.
      pad_token_id, eos_token_id, suppress_tokens: as in `generate`, for all requests.
      on_sizes: called with a line that says how large a grid was made.
    """

    max_rows: int | None = None
    memory: int | None = None
    int8_cache: bool = False
    window: int = 1024
    readers: int = 4
    reader: Reader | None = None
    longest_question: int = 512
    pad_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    suppress_tokens: Sequence[int] = ()
    on_sizes: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "memory", "window", "readers", "longest_question"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


class Engine:
    """Answers many questions about many media with one model.

    Requests are grouped by their media, whatever their order: each medium is decoded, encoded and prefilled once, its
    keys and values are held once, and all its questions attend to them together. Answers are those of `generate`.
    """

    def __init__(self, model: VideoLlavaForConditionalGeneration, processor: VideoLlavaProcessor, **options: Any):
        """
        Args:
          options: the fields of `EngineOptions`.
        """
        self.model = model
        self.processor = processor
        self.options = EngineOptions(**options)
        platform = jax.devices()[0].platform
        self.max_rows = self.options.max_rows or ROWS.get(platform, ROWS["gpu"])
        self.memory = self.options.memory or free_memory(model.placement)

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Results as they finish, one for each request, in no certain order.

        What is wrong with one request (a file that cannot be read, a prompt that is too long, logits that are not
        finite) is the error of its result, and nobody else's. With several processes each gives all the results, from
        the same requests.

        Raises:
          ValueError: two requests of one id, or no room for even one.
          MemoryError: the device has less memory than was reckoned with; the message says what to lower.
        """
        return Run(self.model, self.processor, self.options, self.max_rows, self.memory).results(requests)

    def score(self, requests: Iterable[Request]) -> Iterator[Scored]:
        """The likelihood of each of a request's `choices` as the answer to its prompt.

        The prefix of a medium is computed once for neighbouring requests about it.
        """
        return score_requests(self.model, self.processor, self.options, requests)
