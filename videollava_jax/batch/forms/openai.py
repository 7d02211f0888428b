"""OpenAI's form: the lines of its batch files, each the body of a chat completion, with vLLM's media and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from videollava_jax.batch.forms.fields import described, messages
from videollava_jax.batch.forms.form import JobFacts, LineForm, RequestParts, Tag
from videollava_jax.generation.options import OPENAI_NAMES, from_openai

if TYPE_CHECKING:
    from videollava_jax.engine import Result

CHAT_URL = "/v1/chat/completions"
# Fields of a body that never change our answers, and fields that are supported only with these values.
_NEUTRAL = frozenset(
    ("model", "messages", "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier")
)
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}


def _ask(fields: Mapping[str, Any]) -> RequestParts:
    for key, expected in (("method", "POST"), ("url", CHAT_URL)):
        if fields.get(key, expected) != expected:
            raise ValueError(f"expected {expected!r} under {key!r}, got {described(fields[key])}")
    body = fields.get("body")
    if not isinstance(body, Mapping):
        raise ValueError(f"expected an object under 'body', got {described(body)}")
    for key, value in body.items():
        neutral = value is None or key in _NEUTRAL or value in _NEUTRAL_VALUES.get(key, ())
        if not neutral and key not in OPENAI_NAMES:
            raise ValueError(f"body.{key} is not supported: expected it to be left out")
    conversation = [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages(body.get("messages"), "body.messages")
    ]
    return RequestParts({"conversation": conversation}, from_openai(body))


def _record(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    name = facts.answer_id(tag)
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


OPENAI = LineForm(name="openai", owner="OpenAI", id_key="custom_id", ask=_ask, record=_record)
