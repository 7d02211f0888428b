"""Whatever a line says, it becomes an answer or an error of its own, and the lines next to it are answered."""

import json

import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.lines import IDS, IMAGE, ODD, VIDEO, Validating, run_job, with_ids
from tests.faults.odd_values import Raw, dump
from videollava_jax import Engine
from videollava_jax.assets import MEDIA
from videollava_jax.batch.runner import BatchOptions, run_batch

LINES = 2000


@pytest.fixture(scope="module")
def validating():
    return Validating()


@pytest.mark.parametrize("form", IDS)
def test_no_line_ends_a_job(tmp_path_factory, validating, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet is read with pyarrow (extra `parquet`)")
    place = tmp_path_factory.mktemp(form)

    @settings(
        max_examples=LINES // len(IDS) // (ODD + 2),
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(with_ids(form))
    def check(odd):
        run_job(place, form, odd, validating)

    check()


# ── through the engine ──

IMAGE_PART = {"type": "image_url", "image_url": {"url": IMAGE}}
VIDEO_PART = {"type": "video_url", "video_url": {"url": VIDEO}}
MANY = {"type": "text", "text": "How many shapes are there?"}
FIRST = {"type": "text", "text": "Which shape comes first?"}
GOOD = {"good-1": ([IMAGE_PART, MANY], "three"), "good-2": ([VIDEO_PART, FIRST], "circle")}
# What lines say about the first question, and a part of their error; a list is allowed ends of their answers.
ODD_BODIES = [
    ({"seed": 2**64 - 1, "temperature": 1.0}, "seed: expected a whole number"),
    ({"seed": 2**63}, "seed: expected a whole number"),
    ({"top_k": 2**32 - 1, "temperature": 1.0}, "top_k: expected a whole number"),
    ({"stop": [5]}, "stop: expected a string that is not empty"),
    ({"temperature": 10**400}, "temperature: expected 0 or a number"),
    ({"temperature": 1e-40}, "temperature: expected 0 or a number"),
    ({"temperature": Raw("NaN")}, "temperature: expected 0 or a number"),
    ({"stop": ""}, "stop: expected a string that is not empty"),
    ({"stop": ["and", ""]}, "stop: expected a string that is not empty"),
    ({"repetition_penalty": "1.2"}, "repetition_penalty: expected a number"),
    ({"max_tokens": 100_000}, "max_new_tokens: expected at most 511"),
    ({"max_tokens": -1}, "max_tokens: expected a whole number"),
    ({"n": 2}, "body.n is not supported: expected 1 or no such key, got 2"),
    ({"messages": Raw("[" * 5000 + "]" * 5000)}, ""),
    ({"messages": [{"role": "user", "content": [{"type": {"a": []}}]}]}, "expected type 'text'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "the text is not Unicode"),
    ({"messages": [{"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "a " * 10**6}]}]}, "is too long"),
    ({"messages": [{"role": "user", "content": [VIDEO_PART] * 9}]}, "do not fit"),
    ({"max_completion_tokens": 1, "max_tokens": 50}, ["length"]),
    ({"max_tokens": 50, "max_completion_tokens": 1}, ["length"]),
    ({"top_k": -1}, ["stop"]),
    ({"tool_choice": "none", "parallel_tool_calls": True, "modalities": ["text"], "min_p": 0}, ["stop"]),
    ({"seed": 2**63 - 1, "temperature": 1e6, "top_k": 2**31 - 1, "top_p": 5e-324}, ["stop", "length"]),
    ({"seed": -(2**63), "temperature": 1e-6, "top_k": 0, "repetition_penalty": 1e-6}, ["stop", "length"]),
    ({"repetition_penalty": 1e6, "stop": ["\0", "\ud800", "é" * 999]}, ["stop", "length"]),
    (
        {"messages": [{"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "\0</s><video>é\u2028"}]}]},
        ["stop"],
    ),
]


def test_odd_lines_among_good_ones_through_the_engine(tmp_path, tiny_model, tiny_processor):
    """The lines are of the kinds that once ended jobs, were cut after a token, or were refused."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with open(source, "wb") as file:
        for name, (content, _) in GOOD.items():
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
            file.write(dump({"custom_id": name, "body": body}) + b"\n")
        for number, (said, _) in enumerate(ODD_BODIES):
            body = {"messages": [{"role": "user", "content": [IMAGE_PART, MANY]}], "max_tokens": 8, **said}
            file.write(dump({"custom_id": number, "body": body}) + b"\n")
    engine = Engine(tiny_model, tiny_processor, max_rows=4)
    run_batch(source, output, lambda: engine, BatchOptions(media_root=MEDIA, max_error_rate=1))
    records = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
    assert [record["choices"][0]["message"]["content"] for record in records[:2]] == [text for _, text in GOOD.values()]
    for (said, expected), record in zip(ODD_BODIES, records[2:], strict=True):
        if isinstance(expected, list):
            assert record["choices"][0]["finish_reason"] in expected, said
        else:
            assert expected in record["error"]["message"]
            assert len(record["error"]["message"]) < 300
