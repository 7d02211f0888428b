"""Lines of OpenAI's batch files, with vLLM's media and options: what they ask for, and what they get back."""

import json

import pytest

from tests.batch.test_formats import ANSWER, FACTS, FAILED, parts, request
from videollava_jax.batch.forms.form import Tag
from videollava_jax.batch.forms.openai import NEUTRAL
from videollava_jax.batch.records import record
from videollava_jax.batch.requests import with_sources


def openai_line(*content, **body):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": "q", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "any", "messages": messages, **body},
    }  # fmt: skip


def test_the_example_of_openais_batch_guide():
    line = {
        "custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-3.5-turbo-0125", "max_tokens": 1000,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Hello world!"},
            ],
        },
    }  # fmt: skip
    made = request("openai", **line)
    assert made.max_new_tokens == 1000
    assert made.conversation == line["body"]["messages"]


def test_vllms_media_parts_and_sampling():
    line = openai_line(
        {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,BBBB"}},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        "What happens?",
        max_completion_tokens=7, temperature=0.2, top_p=0.5, top_k=3, seed=4, stop="\n", n=1, stream=False, user="me",
    )  # fmt: skip
    made = request("openai", **line)
    assert (made.max_new_tokens, made.seed) == (7, 4)
    assert made.options == {
        "do_sample": True, "temperature": 0.2, "top_p": 0.5, "top_k": 3, "stop_strings": ("\n",),
    }  # fmt: skip
    resolved = with_sources(made, lambda kind, source: f"{kind}:{source[:5]}")
    assert parts(resolved)[:2] == [
        {"type": "video", "video": "video:data:"},
        {"type": "image", "image": "image:a.png"},
    ]
    assert parts(made)[0]["video_url"]["url"].startswith("data:")  # the line itself is unchanged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "GET"}, "expected 'POST' under 'method'"),
        ({"url": "/v1/embeddings"}, "expected '/v1/chat/completions'"),
        ({"body": None}, "an object under 'body'"),
        ({"body": {"messages": []}}, "a list of messages under 'body.messages'"),
    ],
)
def test_openai_lines_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        request("openai", **{**openai_line("?"), **changes})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n", 2, "expected 1 or no such key, got 2"),
        ("n", True, "expected 1 or no such key, got True"),
        ("stream", True, "expected false or no such key, got True"),
        ("tools", [{}], r"expected \[\] or no such key, got a list"),
        ("tool_choice", "required", 'expected "none", "auto" or no such key, got \'required\''),
        ("top_logprobs", 2, "expected 0 or no such key, got 2"),
        ("ignore_eos", True, "expected false or no such key, got True"),
        ("modalities", ["text", "audio"], r'expected \["text"\] or no such key, got a list'),
        ("guided_json", {}, "expected no such key, got a dict"),
        ("x" * 500, 1, "expected no such key, got 1"),
    ],
)
def test_what_asks_for_more_than_one_text_is_refused_by_name(key, value, message):
    with pytest.raises(ValueError, match=message) as refused:
        request("openai", **openai_line("?", **{key: value}))
    assert str(refused.value).startswith(f"body.{key[:80]}")
    assert len(str(refused.value)) < 200


def test_values_that_ask_for_nothing_are_accepted():
    plain = request("openai", **openai_line("?"))
    for key, values in NEUTRAL.items():
        for value in (*values, None):
            assert request("openai", **openai_line("?", **{key: value})) == plain
    unused = {
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "logprobs": False,
        "ignore_eos": False,
    }
    assert request("openai", **openai_line("?", **unused, metadata={"a": "b"}, user="me")) == plain


def test_of_two_limits_the_newer_name_counts():
    for limits in (
        {"max_tokens": 50, "max_completion_tokens": 1},
        {"max_completion_tokens": 1, "max_tokens": 50},
        {"max_completion_tokens": 1, "max_tokens": None},
        {"max_completion_tokens": None, "max_tokens": 1},
    ):
        assert request("openai", **openai_line("?", **limits)).max_new_tokens == 1


HUGE = 10**400


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "seed",
            2**64 - 1,
            "a whole number from -9223372036854775808 to 9223372036854775807, got 18446744073709551615",
        ),
        ("seed", 2**63, "a whole number from -9223372036854775808 to 9223372036854775807, got 9223372036854775808"),
        ("top_k", 2**32 - 1, "a whole number from 0 to 2147483647, or -1, got 4294967295"),
        ("top_k", -2, "a whole number from 0 to 2147483647, or -1, got -2"),
        ("stop", [5], r"a string that is not empty, or a list of such, got \[5\]"),
        ("stop", "", "a string that is not empty, or a list of such, got ''"),
        ("stop", ["and", ""], r"a string that is not empty, or a list of such, got \['and', ''\]"),
        ("temperature", HUGE, "0 or a number from 1e-06 to 1000000, got 1000000"),
        ("temperature", 1e-40, "0 or a number from 1e-06 to 1000000, got 1e-40"),
        ("repetition_penalty", "1.2", "a number from 1e-06 to 1000000, got '1.2'"),
        ("max_tokens", 0, "a whole number from 1 to 2147483647, got 0"),
    ],
)
def test_values_out_of_range_are_named_with_their_key(key, value, expected):
    with pytest.raises(ValueError, match=f"^{key}: expected {expected}") as refused:
        request("openai", **openai_line("?", **{key: value}))
    assert len(str(refused.value)) < 200


def test_openai_records():
    found = json.loads(record("openai", Tag(0, 1, "q", ""), ANSWER, None, FACTS))
    assert (found["custom_id"], found["error"], found["response"]["status_code"]) == ("q", None, 200)
    body = found["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["usage"] == {"prompt_tokens": 150, "completion_tokens": 3, "total_tokens": 153}
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "up ↑", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    found = json.loads(record("openai", Tag(0, 9, None, ""), FAILED, "not_found", FACTS))
    assert found["response"]["status_code"] == 400
    assert found["error"] == {"code": "not_found", "message": "line 9: a.mp4: no such file"}
    found = json.loads(record("openai", Tag(0, 9, "q", ""), FAILED, "not_finite", FACTS))
    assert (found["response"]["status_code"], found["response"]["body"]["error"]["type"]) == (500, "server_error")
