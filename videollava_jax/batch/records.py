"""Writes results as lines of the output, in the form that matches the input's. No JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videollava_jax.batch.lines import Form

if TYPE_CHECKING:
    from videollava_jax.engine import Result


@dataclass(frozen=True)
class Tag:
    """The parts of an input line that its record repeats.

    Attributes:
      index: position in the output, from 0.
      number: line number in the input, from 1.
      id: the line's id; None if it has none.
      prompt: its question.
    """

    index: int
    number: int
    id: str | int | None
    prompt: str


@dataclass(frozen=True)
class JobFacts:
    """Facts that all records of a job share.

    Attributes:
      model: the model's name.
      created: when the job began, seconds since 1970.
      digest: hash of the job's identity, from which answers get their ids.
    """

    model: str
    created: int
    digest: str


def record(form: Form, tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> str:
    """Returns the line of the output for a result, without a line break.

    Args:
      form: of the input.
      tag: the line that was answered.
      result: its answer or error.
      cause: the kind of error, for programs that count; None for an answer.
      facts: of the job.
    """
    make = {"openai": _openai, "llava": _llava}.get(form, _ours)
    value = make(tag, result, cause, facts)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot encode
        return json.dumps(value)
    return text


def _ours(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    return {
        "id": tag.id,
        **({"line": tag.number} if tag.id is None else {}),
        "text": result.text,
        "finish_reason": result.finish_reason,
        "error": result.error,
        **({"cause": cause} if cause is not None else {}),
        "prompt_tokens": result.prompt_tokens,
        "tokens": len(result.token_ids),
    }


def _openai(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    name = _name(tag, facts)
    error = None
    if result.error is None:
        status, body = 200, _completion(name, result, facts)
    else:
        # Infinite logits are the server's fault, every other error is the line's.
        status = 500 if cause == "not_finite" else 400
        message = result.error if tag.id is not None else f"line {tag.number}: {result.error}"
        kind = "server_error" if status == 500 else "invalid_request_error"
        error = {"code": cause, "message": message}
        body = {"error": {"message": message, "type": kind, "param": None, "code": cause}}
    return {
        "id": f"batch_req_{name}",
        "custom_id": tag.id,
        "response": {"status_code": status, "request_id": name, "body": body},
        "error": error,
    }


def _completion(name: str, result: Result, facts: JobFacts) -> dict[str, Any]:
    message = {"role": "assistant", "content": result.text, "refusal": None}
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": facts.created,
        "model": facts.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": len(result.token_ids),
            "total_tokens": result.prompt_tokens + len(result.token_ids),
        },
    }


def _llava(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    metadata: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": len(result.token_ids),
    }
    if result.error is not None:
        metadata |= {"error": result.error, "cause": cause, "line": tag.number}
    return {
        "question_id": tag.id,
        "prompt": tag.prompt,
        "text": result.text,
        "answer_id": _name(tag, facts),
        "model_id": facts.model,
        "metadata": metadata,
    }


def _name(tag: Tag, facts: JobFacts) -> str:
    """Returns an id for the answer, the same in every run of the job."""
    return hashlib.sha256(f"{facts.digest}/{tag.index}".encode()).hexdigest()[:24]
