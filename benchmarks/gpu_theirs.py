"""The side of transformers in `gpu.py`: its `generate` with one row, batched, and with a static cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gpu_work import Work
from questions import TEXT_IDS, question_words, random_videos, reference, requests_of
from random_models import shape_of, their_model, torch_device, versions
from sides import MANY, ONE, STATIC, Measured, Section, rate

STATIC_OPTIONS = {"cache_implementation": "static"}


class Theirs:
    """The sections that transformers has too, in the order of `gpu_work.SECTIONS`.

    Raises:
      CannotRun: torch is not installed, or finds no GPU.
    """

    def __init__(self, work: Work):
        self.work = work
        self.device = torch_device(small=work.small)
        import torch

        self.torch = torch
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # for such small products, several threads are slower than one
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self.config, self.processor = shape_of(small=work.small)
        self.model = their_model(self.config, self.device, torch.bfloat16)

        rng = np.random.default_rng(0)
        self.words = question_words(self.processor, rng, work.questions, work.question_tokens)
        self.videos = random_videos(rng, work.batch, self.config.vision_config.image_size)
        (request,) = requests_of(self.videos[:1], self.words[:1], work.answer_tokens)
        inputs = self.processor(text=[request.prompt], videos=[self.videos[0]])
        self.prompt = inputs["input_ids"].shape[1]
        self._of_one: list[Measured] = []
        self.pixels = torch.tensor(inputs["pixel_values_videos"]).to(self.device, self.model.dtype)

    def begun(self) -> tuple[dict[str, Any], Mapping[str, Section]]:
        """Returns facts about the device, and the sections by name."""
        name = self.torch.cuda.get_device_name(0) if self.device.type == "cuda" else "cpu"
        facts = {
            "device": name,
            **versions("torch", "transformers"),
            "attention": self.model.model.language_model.config._attn_implementation,
        }
        sections: dict[str, Section] = {
            "encode": self.encode,
            "decode": self.decode,
            "one": self.one,
            "ten": self.ten,
            "caption": self.caption,
        }
        return facts, sections

    def encode(self) -> Iterator[Measured]:
        """Measures normalised pixels on the device to features."""
        for videos in (1, 8):
            pixels = self.pixels.expand(videos, *self.pixels.shape[1:]).contiguous()

            def calls(pixels: Any = pixels) -> None:
                for _ in range(8):
                    self.model.model.get_video_features(pixel_values_videos=pixels)
                self._wait()

            way = ONE if videos == 1 else MANY
            yield Measured(work=f"encode, {videos} at a time, videos/s", way=way, rates=self._rounds(calls, 8 * videos))

    def decode(self) -> Iterator[Measured]:
        """Measures prefill of a prompt, and the steps of `generate` after it."""
        ids, mask = self._ids(1)

        def prefill() -> None:
            for _ in range(4):
                self.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
            self._wait()

        note = f"{self.prompt} tokens"
        yield Measured(work="prefill, tokens/s", way=ONE, rates=self._rounds(prefill, 4 * self.prompt), note=note)
        steps, work = self.work.steps, "decode, one row, tokens/s"
        yield self._steps(work, ONE, 1, 4 * steps)
        yield self._as_many(self.work.rows, lambda rows: self._steps("decode, many rows, tokens/s", MANY, rows, steps))
        # As many steps as the longest answer of all sections has, because a longer cache would be compiled again.
        yield self._steps(work, STATIC, 1, self.work.caption_tokens, **STATIC_OPTIONS)

    def one(self) -> Iterator[Measured]:
        """Measures one question about each video."""
        for measured in self._job("one question a video, answers/s", self.work.answer_tokens):
            self._of_one.append(measured)
            yield measured

    def ten(self) -> Iterator[Measured]:
        """Returns the rates of `one` for several questions about each video, as each is a separate prompt."""
        name = f"{self.work.questions} questions a video, answers/s"
        for measured in self._of_one or self._job(name, self.work.answer_tokens):
            yield dataclasses.replace(measured, work=name)

    def caption(self) -> Iterator[Measured]:
        """Measures a long answer about each video."""
        yield from self._job("captions, videos/s", self.work.caption_tokens)

    # ── parts ──

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def _rounds(self, run: Callable[[], None], amount: float) -> tuple[float, ...]:
        """Returns the rates of the rounds that count, after one that warms up and may compile."""
        run()
        return tuple(rate(run, amount) for _ in range(self.work.rounds))

    def _ids(self, rows: int) -> tuple[Any, Any]:
        """Draws prompts of text, as long as one with a video, [rows, tokens], and their mask."""
        ids = self.torch.randint(*TEXT_IDS, (rows, self.prompt), device=self.device)
        return ids, self.torch.ones_like(ids)

    def _steps(self, work: str, way: str, rows: int, steps: int, **options: Any) -> Measured:
        """Measures the tokens per second of `generate` after its first token, with options of `generate`."""
        ids, mask = self._ids(rows)

        def once() -> float:
            clock = _Clock()
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=1 + steps,
                do_sample=False,
                suppress_tokens=list(self.config.eos_token_ids),
                pad_token_id=self.processor.tokenizer.pad_token_id,
                streamer=clock,
                **options,
            )
            return rows * steps / (clock.times[-1] - clock.times[0])

        once()
        rates = tuple(once() for _ in range(self.work.rounds))
        return Measured(work=work, way=way, rates=rates, note=f"{rows} rows" if rows > 1 else "")

    def _job(self, work: str, new_tokens: int) -> Iterator[Measured]:
        """Measures videos one at a time, in batches, and one at a time with a static cache."""

        def asked(batch: int, way: str, **options: Any) -> Measured:
            requests = requests_of(self.videos[:batch], self.words[:1], new_tokens)
            eos = self.config.eos_token_ids
            rates = self._rounds(
                lambda: reference(self.model, self.processor, requests, batch, eos, {}, **options), batch
            )
            return Measured(work=work, way=way, rates=rates, note=f"batch {batch}" if batch > 1 else "")

        yield asked(1, ONE)
        yield self._as_many(self.work.batch, lambda batch: asked(batch, MANY))
        yield asked(1, STATIC, **STATIC_OPTIONS)

    def _as_many(self, rows: int, run: Callable[[int], Measured]) -> Measured:
        """Runs with `rows` rows, and with half as many as long as they do not fit into memory."""
        while True:
            try:
                return run(rows)
            except self.torch.OutOfMemoryError:
                if rows == 1:
                    raise
            rows //= 2
            self.torch.cuda.empty_cache()


class _Clock:
    """A streamer for `generate` that notes the time of each token, but not of the prompt, which comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._is_prompt = True

    def put(self, tokens: Any) -> None:
        """Notes the time of a token."""
        if not self._is_prompt:
            self.times.append(time.perf_counter())
        self._is_prompt = False

    def end(self) -> None:
        """Does nothing, as no token is held back."""
