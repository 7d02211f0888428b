"""OpenAI's form: the lines of its batch files, each the body of a chat completion, with vLLM's media and options."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from videollava_jax.batch.forms.fields import described, messages, short
from videollava_jax.batch.forms.form import JobFacts, LineForm, RequestParts, Tag, either
from videollava_jax.generation.options import OPENAI_NAMES, from_openai

if TYPE_CHECKING:
    from videollava_jax.engine import Result

CHAT_URL = "/v1/chat/completions"
_UNUSED = frozenset(
    (
        *("model", "messages", "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
        *("request_id", "priority", "cache_salt"),  # vLLM's
    )
)
"""Fields of a body that change no answer of ours, whatever their value."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # vLLM's
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
}
"""Fields that are supported only with the values that ask for nothing."""


def _ask(fields: Mapping[str, Any]) -> RequestParts:
    for key, expected in (("method", "POST"), ("url", CHAT_URL)):
        if fields.get(key, expected) != expected:
            raise ValueError(f"expected {expected!r} under {key!r}, got {described(fields[key])}")
    body = fields.get("body")
    if not isinstance(body, Mapping):
        raise ValueError(f"expected an object under 'body', got {described(body)}")
    refuse_unsupported(body, OPENAI_NAMES, "body.")
    return RequestParts({"conversation": conversation_of(body.get("messages"), "body.messages")}, from_openai(body))


def conversation_of(given: Any, where: str) -> list[Mapping[str, Any]]:
    """Returns the messages of a body; "developer" is OpenAI's newer name for "system".

    Raises:
      ValueError: they are not a list of objects; the message says that they were expected under `where`.
    """
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages(given, where)
    ]


def refuse_unsupported(body: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    """Raises a ValueError if a body asks for what is not supported.

    Args:
      body: of a chat completion.
      known: the fields that the caller reads.
      where: precedes a field's name in messages.
    """
    for key, value in body.items():
        if value is not None and key not in _UNUSED and key not in known:
            _require_neutral(key, value, where)


def _require_neutral(key: str, value: Any, where: str) -> None:
    """Raises a ValueError for a value of a field that asks for something."""
    neutral = NEUTRAL.get(key, ())
    # In Python True is 1, while true and 1 are two values in JSON.
    if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
        allowed = either([*map(json.dumps, neutral), "no such key"])
        raise ValueError(f"{where}{short(key)} is not supported: expected {allowed}, got {described(value)}")


def _record(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    name = facts.answer_id(tag)
    error = None
    if result.error is None:
        status, body = 200, _completion(name, result, facts)
    else:
        # Infinite logits are the server's fault, every other error is the line's.
        status = 500 if cause == "not_finite" else 400
        where = f"{tag.file}, line {tag.number}" if tag.file else f"line {tag.number}"
        message = result.error if tag.id is not None else f"{where}: {result.error}"
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
            "completion_tokens": result.answer_tokens,
            "total_tokens": result.prompt_tokens + result.answer_tokens,
        },
    }


OPENAI = LineForm(name="openai", owner="OpenAI", id_key="custom_id", ask=_ask, record=_record)
