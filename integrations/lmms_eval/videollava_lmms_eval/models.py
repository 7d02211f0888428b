"""The classes that lmms-eval loads: `Chat` for messages, `Simple` for contexts, as likelihoods need it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from videollava_jax.engine.request import Request
from videollava_lmms_eval.answering import Settings, answers_of
from videollava_lmms_eval.requests import (
    Asked,
    Media,
    asked_of,
    conversation_of,
    cut,
    flat,
    frames_of,
    question_of,
    request_of,
)


class _Model(lmms):
    """What both classes share: settings, media and the answers of all requests at once.

    Args:
      model_args: fields of `Settings`, as `--model_args` names them; and those that lmms-eval adds by itself.
    """

    def __init__(self, **model_args: Any):
        super().__init__()
        ours = {field.name for field in dataclasses.fields(Settings)}
        added = {"batch_size", "max_batch_size", "device"}
        if unknown := sorted(model_args.keys() - ours - added):
            raise ValueError(f"{unknown[0]}: unknown; expected some of {', '.join(sorted(ours))}")
        self._settings = Settings(**{name: value for name, value in model_args.items() if name in ours})
        self._answers = answers_of(self._settings)
        self._directory = tempfile.TemporaryDirectory(prefix="videollava-")
        self._media = Media(Path(self._directory.name))
        self._named: set[str] = set()

    def _asked(self, given: dict[str, Any]) -> Asked:
        asked = asked_of(given, self._settings.longest)
        for name in asked.unknown:
            if name not in self._named:
                self._named.add(name)
                logger.warning(f"generation_kwargs: {name} says nothing to videollava_jax and is left out")
        return asked

    def _generate(
        self, asked: Sequence[Asked], conversations: Sequence[Any], frames: Sequence[Any]
    ) -> list[GenerationResult]:
        """Answers all requests together: questions about one medium share its prefix, whatever their order."""
        settings = self._settings
        requests = [
            request_of(str(i), conversation, how, taken, settings.seed + i)
            for i, (how, conversation, taken) in enumerate(zip(asked, conversations, frames, strict=True))
        ]
        found: dict[int, GenerationResult] = {}
        failed = []
        for result in tqdm(self._answers.run(requests), total=len(requests), unit="answer", disable=None):
            number = int(result.id)
            if result.error is not None:
                failed.append(result.error)
                logger.error(f"no answer: {result.error}")
            counts = TokenCounts(input_tokens=result.prompt_tokens, output_tokens=result.answer_tokens)
            found[number] = GenerationResult(cut(result.text, asked[number].until), counts)
        if len(failed) > settings.max_failed * len(requests):
            allowed = f"max_failed={settings.max_failed:g}"
            raise ValueError(
                f"{len(failed)} of {len(requests)} requests have no answer, more than {allowed} allows; the first "
                f"error: {failed[0]}"
            )
        return [found[i] for i in range(len(requests))]

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuses tasks of several rounds."""
        raise NotImplementedError("videollava_jax answers no tasks of several rounds (generate_until_multi_round)")

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Computes the loss of each continuation, and whether greedy decoding would give it.

        The continuations of one context about one document are scored together, after one prefix. As lmms-eval's own
        models do, and against the name, it returns the mean negative log-probability of a token: lmms-eval takes the
        choice with the least. Version 0.7.3 turns pairs into strings before it reads them; inside a `GenerationResult`
        they stay what they are.
        """
        if self._settings.base_url:
            raise NotImplementedError("likelihoods are computed in this process: expected pretrained, without base_url")
        groups: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
        about: dict[tuple[Any, ...], tuple[str, list[Any]]] = {}
        for i, instance in enumerate(requests):
            context, continuation, *where = instance.args
            key: tuple[Any, ...] = (context,)
            visuals: list[Any] = []
            if where:
                to_visual, number, task, split = where
                key = (context, task, split, number)
                if key not in about:
                    visuals = flat(to_visual(self._document(task, split, number)))
                if callable(continuation):
                    continuation = continuation(self._document(task, split, number))
            about.setdefault(key, (context, visuals))
            groups.setdefault(key, []).append((i, str(continuation).lstrip()))
        scored = [
            Request(
                id=str(i),
                conversation=question_of(*about[key], self._media),
                choices=[text for _, text in given],
                frame_sampling=self._settings.frames,
            )
            for i, (key, given) in enumerate(groups.items())
        ]
        found: dict[int, GenerationResult] = {}
        for result, given in zip(self._answers.score(scored), groups.values(), strict=True):
            if result.error is not None:
                raise ValueError(f"no likelihood: {result.error}")
            scores = zip(given, result.log_likelihoods, result.tokens, result.greedy, strict=True)
            for (i, _), likelihood, tokens, greedy in scores:
                found[i] = GenerationResult((-likelihood / max(1, tokens), bool(greedy)))
        return [found[i] for i in range(len(requests))]


class Chat(_Model):
    """Answers tasks through their messages."""

    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers requests, in their order."""
        asked, conversations, frames = [], [], []
        for instance in requests:
            _, to_messages, given, number, task, split = instance.args
            asked.append(self._asked(given))
            messages = to_messages(self._document(task, split, number))
            conversations.append(conversation_of(messages, self._media))
            frames.append(frames_of(messages, self._settings.frames))
        return self._generate(asked, conversations, frames)


class Simple(_Model):
    """Answers tasks through their contexts and media, as `--force_simple` asks for."""

    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers requests, in their order."""
        asked, conversations = [], []
        for instance in requests:
            context, given, to_visual, number, task, split = instance.args
            asked.append(self._asked(given))
            visuals = flat(to_visual(self._document(task, split, number)))
            conversations.append(question_of(context, visuals, self._media))
        return self._generate(asked, conversations, [self._settings.frames] * len(asked))
