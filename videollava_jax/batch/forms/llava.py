"""LLaVA's form: the lines of its question files in, the lines of its answer files out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from videollava_jax.batch.forms.fields import described, images_and_videos, question
from videollava_jax.batch.forms.form import JobFacts, LineForm, RequestParts, Tag
from videollava_jax.processing.segments import MEDIA_TOKENS

if TYPE_CHECKING:
    from videollava_jax.engine import Result


def _ask(fields: Mapping[str, Any]) -> RequestParts:
    text = fields.get("text")
    if not isinstance(text, str):
        raise ValueError(f"expected a string under 'text', got {described(text)}")
    for token in MEDIA_TOKENS.values():  # some files include them, but the template decides where media go
        text = text.replace(f"{token}\n", "").replace(token, "")
    return RequestParts(question(text, images_and_videos(fields)), {})


def _record(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    metadata: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.answer_tokens,
    }
    if result.error is not None:
        metadata |= {"error": result.error, "cause": cause, **tag.place}
    return {
        "question_id": tag.id,
        "prompt": tag.prompt,
        "text": result.text,
        "answer_id": facts.answer_id(tag),
        "model_id": facts.model,
        "metadata": metadata,
    }


LLAVA = LineForm(name="llava", owner="LLaVA", id_key="question_id", prompt_key="text", ask=_ask, record=_record)
