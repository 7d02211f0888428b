"""Chat completions over a real socket by the official client: whole, streamed, about media in every form."""

import contextlib
import re
import threading
import time
import urllib.request

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.asking import CLIP, IMAGE, OTHER, about, data_url
from videollava_jax.assets import MEDIA
from videollava_jax.engine import Engine, Request


def ask(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def streamed(client, messages, **options):
    """The pieces of a streamed answer, and its last chunk that has a choice."""
    pieces, last = [], None
    for chunk in ask(client, messages, stream=True, **options):
        if chunk.choices:
            last = chunk
            pieces.append(chunk.choices[0].delta.content or "")
    return pieces, last


def test_an_answer_about_a_video(client):
    answer = ask(client, about(CLIP, "Which way does it move?"), temperature=0)
    assert answer.choices[0].message.content == "up"
    assert (answer.choices[0].finish_reason, answer.object, answer.model) == ("stop", "chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens > 8 * 17
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_one(client):
    messages = about(IMAGE, "How many shapes are there?")
    pieces, last = streamed(client, messages)
    assert "".join(pieces) == ask(client, messages).choices[0].message.content == "three"
    assert last.choices[0].finish_reason == "stop"


def data_url_bytes(name):
    return (MEDIA / name).read_bytes()


@pytest.mark.parametrize(
    "form", ["path", "file: URL", "data: URL", "uploaded, by URL", "uploaded, OpenAI's part", "file_data"]
)
def test_a_video_is_named_in_every_form(client, form):
    question = {"type": "text", "text": "Which shape comes first?"}
    if form.startswith("uploaded"):
        file = client.files.create(file=(OTHER, data_url_bytes(OTHER)), purpose="user_data")
        assert (file.status, file.bytes) == ("processed", len(data_url_bytes(OTHER)))
        by_url = {"type": "video_url", "video_url": {"url": f"vllm-file://{file.id}"}}
        medium = by_url if form == "uploaded, by URL" else {"type": "file", "file": {"file_id": file.id}}
    elif form == "file_data":
        medium = {"type": "file", "file": {"file_data": data_url(OTHER), "filename": OTHER}}
    else:
        url = {"path": OTHER, "file: URL": f"file://{MEDIA / OTHER}", "data: URL": data_url(OTHER)}[form]
        medium = {"type": "video_url", "video_url": {"url": url}}
    answer = ask(client, [{"role": "user", "content": [medium, question]}])
    assert answer.choices[0].message.content == "circle"
    assert answer.usage.prompt_tokens > 8 * 17
    if form.startswith("uploaded"):
        assert client.files.delete(file.id).deleted


def test_text_alone_is_a_string(client):
    assert ask(client, [{"role": "user", "content": "What shape is it?"}]).usage.prompt_tokens < 40


def test_uploads_are_listed_and_their_frames_shown(client):
    file = client.files.create(file=(CLIP, data_url_bytes(CLIP)), purpose="user_data")
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.retrieve(file.id).filename == CLIP
    shown = client.get(f"/files/{file.id}/frames?frames=4", cast_to=object)
    assert len(shown["data"]) == 4
    assert all(frame["image"].startswith("data:image/jpeg;base64,/9j/") for frame in shown["data"])
    client.files.delete(file.id)


# ── what is asked for ──


def test_the_last_chunk_has_the_usage_and_the_prefix_is_counted_as_cached(client):
    messages = about(CLIP, "Does it change colour?")
    ask(client, messages)
    stream = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    assert [len(chunk.choices) for chunk in stream[-2:]] == [1, 0]
    assert all(chunk.usage is None for chunk in stream[:-1])
    usage = stream[-1].usage
    whole = ask(client, messages).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert 8 * 17 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in stream}) == 1


@pytest.mark.parametrize(
    ("asked", "frames"),
    [
        ({}, [0, 2, 4, 6, 8, 10, 12, 14]),
        ({"media_io_kwargs": {"video": {"num_frames": 4}}}, [0, 4, 8, 12]),
        ({"mm_processor_kwargs": {"num_frames": 4}}, [0, 4, 8, 12]),
        ({"mm_processor_kwargs": {"fps": 2}}, [0, 4, 8, 12]),
        ({"media_io_kwargs": {"video": {"fps": 2, "num_frames": 2}}}, [0, 12]),
    ],
)
def test_frames_are_chosen_in_both_spellings_and_told(client, asked, frames):
    whole = ask(client, about(CLIP, "Which way does it move?"), extra_body=asked)
    assert whole.videos == [{"frames": frames, "seconds": [frame / 8 for frame in frames], "total_frames": 16}]
    *_, last = ask(client, about(CLIP, "Which way does it move?"), extra_body=asked, stream=True)
    assert last.videos == whole.videos


def test_the_frames_of_an_upload_are_those_of_an_answer(client):
    file = client.files.create(file=(CLIP, data_url_bytes(CLIP)), purpose="user_data")
    shown = client.get(f"/files/{file.id}/frames?frames=4", cast_to=object)
    assert [frame["index"] for frame in shown["data"]] == [0, 4, 8, 12]
    assert [frame["seconds"] for frame in shown["data"]] == [0, 0.5, 1, 1.5]
    assert (shown["kind"], shown["total_frames"]) == ("video", 16)
    client.files.delete(file.id)


def test_an_upload_is_computed_before_the_first_question(client, served):
    """The prefix is pinned while the file is there."""
    file = client.files.create(file=(OTHER, data_url_bytes(OTHER)), purpose="user_data")
    ends = time.monotonic() + 30
    while served.server.session.usage.pinned == 0 and time.monotonic() < ends:
        time.sleep(0.01)
    for asked in ({}, {"media_io_kwargs": {"video": {"num_frames": 8}}}):
        usage = ask(client, about(f"vllm-file://{file.id}", "Which colour comes last?"), extra_body=asked).usage
        assert usage.prompt_tokens_details.cached_tokens > 8 * 17
    client.files.delete(file.id)
    while served.server.session.usage.pinned and time.monotonic() < ends:
        time.sleep(0.01)
    assert served.server.session.usage.pinned == 0


def test_log_probabilities(client):
    messages = about(CLIP, "What shape is it?")
    choice = ask(client, messages, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode().lstrip(" ") == choice.message.content
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.logprob - 1e-6
    streamed = []
    for chunk in ask(client, messages, logprobs=True, top_logprobs=3, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [token.token for token in streamed] == [token.token for token in content]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in content], abs=1e-5)


def test_several_answers_have_seeds_one_after_the_other(client):
    messages = about(IMAGE, "What colour are they?")
    drawn = {"temperature": 5.0, "max_tokens": 8}
    together = ask(client, messages, n=3, seed=11, **drawn)
    alone = [ask(client, messages, seed=11 + i, **drawn).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in together.choices] == alone
    assert len(set(alone)) > 1
    assert together.usage.completion_tokens > 3


def test_without_a_seed_draws_differ(client):
    messages = about(None, "What shape is it?")
    found = {ask(client, messages, temperature=50.0, max_tokens=16).choices[0].message.content for _ in range(3)}
    assert len(found) > 1


def test_stop_strings_end_an_answer(client):
    choice = ask(client, about(IMAGE, "How many shapes are there?"), stop=["th"]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "")
    pieces, last = streamed(client, about(IMAGE, "How many shapes are there?"), stop=["ee", "x"])
    assert ("".join(pieces), last.choices[0].finish_reason) == ("thr", "stop")


def test_an_answer_is_cut_at_max_tokens(client):
    answer = ask(client, about(IMAGE, "How many shapes are there?"), max_completion_tokens=1)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 1)


def test_a_bias_is_obeyed(client):
    messages = about(IMAGE, "How many shapes are there?")
    (token,) = client.post("../tokenize", cast_to=object, body={"prompt": "x", "add_special_tokens": False})["tokens"][
        -1:
    ]
    biased = ask(client, messages, logit_bias={str(token): 100}, max_tokens=4, frequency_penalty=0).choices[0]
    assert biased.message.content.count("x") >= 3


# ── scores, tokens, models, metrics ──


def test_tokens_are_those_of_the_prompt(client):
    messages = about(CLIP, "Which way does it move?")
    found = client.post("../tokenize", cast_to=object, body={"messages": messages, "return_token_strs": True})
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["count"] == ask(client, messages).usage.prompt_tokens
    assert found["max_model_len"] == 512
    text = client.post("../tokenize", cast_to=object, body={"prompt": "Which way?"})
    assert text["tokens"][0] == 1


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics_are_what_prometheus_reads(client, served):
    ask(client, about(CLIP, "Which way does it move?"))
    list(ask(client, about(CLIP, "Which way does it move?"), stream=True))
    served.wait_until_idle()
    text = served.server.metrics.text().decode()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.keys() <= {"model_name"}
    }
    assert found["videollava:num_requests_running"] == 0
    assert found["videollava:generation_tokens_total"] > 0
    assert found["videollava:prefix_cache_hits_total"] > 0
    answers = found["videollava:e2e_request_latency_seconds_count"]
    assert answers >= 2
    assert found["videollava:time_to_first_token_seconds_count"] == answers
    for part in ("queue", "prefill", "decode", "inference"):
        assert found[f"videollava:request_{part}_time_seconds_count"] == answers
    whole = found["videollava:request_prefill_time_seconds_sum"] + found["videollava:request_decode_time_seconds_sum"]
    assert found["videollava:request_inference_time_seconds_sum"] == pytest.approx(whole)
    assert found["videollava:num_preemptions_total"] == 0
    assert 'videollava:cache_config_info{answer="32",model_name="tiny"' in text
    assert found["videollava:media_decode_seconds_count"] > 0
    assert found["videollava:compiled_programs_total"] == 0
    assert "rising-triangle" not in text


def test_the_time_of_scores_is_measured_too(client, served):
    names = ("e2e_request_latency", "request_queue_time", "request_inference_time", "media_fetch")
    before = served.server.metrics.text().decode()
    body = {"model": "tiny", "messages": about(CLIP, "Which way does it move?"), "choices": ["up", "down"]}
    client.post("/score", cast_to=object, body=body)
    after = served.server.metrics.text().decode()
    for name in names:
        counts = [re.search(rf"videollava:{name}_seconds_count\S* (\S+)", text)[1] for text in (before, after)]
        assert float(counts[1]) == float(counts[0]) + 1, name
    first = [re.search(r"time_to_first_token_seconds_count.*", text)[0] for text in (before, after)]
    assert first[0] == first[1]


def test_choices_are_scored_as_the_engine_does(client, tiny_model, tiny_processor):
    # Behind the test of metrics: this engine compiles programs.
    choices = ["up", "down", "left"]
    messages = about(CLIP, "Which way does it move?")
    body = {"model": "tiny", "messages": messages, "choices": choices}
    found = client.post("/score", cast_to=object, body=body)
    assert choices[found["best"]] == "up"
    assert [row["choice"] for row in found["data"]] == choices
    assert found["videos"][0]["total_frames"] == 16
    question = {"type": "text", "text": "Which way does it move?"}
    conversation = [{"role": "user", "content": [{"type": "video", "video": str(MEDIA / CLIP)}, question]}]
    request = Request(id="1", conversation=conversation, choices=choices)
    (scored,) = Engine(tiny_model, tiny_processor).score([request])
    assert [row["log_likelihood"] for row in found["data"]] == pytest.approx(scored.log_likelihoods, abs=1e-4)


# ── errors, and clients that go ──


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (data_url(CLIP)[:4000], "truncated"),
        ("data:video/mp4;base64,AAAAGGZ0eXBtcDQyAAAAAG1wNDE=", None),
        ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==", None),
        ("nothing.mp4", "not_found"),
    ],
)
def test_broken_media_are_400_and_the_next_request_is_answered(served, url, code):
    tries = []
    with served.client(max_retries=3) as client:
        client._client.event_hooks["request"].append(tries.append)
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, about(url, "what?"))
        assert len(tries) == 1
        assert raised.value.code == code or code is None
        assert str(MEDIA) not in str(raised.value)
        assert "/tmp" not in str(raised.value)
        assert ask(client, about(CLIP, "Which way does it move?")).choices[0].message.content == "up"


def test_what_is_too_long_is_400_with_numbers(client):
    with pytest.raises(openai.BadRequestError, match=r"33.*32") as raised:
        ask(client, about(CLIP, "what?"), max_tokens=33)
    assert raised.value.code == "too_long"
    with pytest.raises(openai.BadRequestError, match="positions"):
        ask(client, about(None, "what? " * 600))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_row(served, stream):
    """Four rows of one prefix are taken by clients that go; others are answered at once."""
    with served.client(timeout=0.3) as hasty:
        for _ in range(6):
            with contextlib.suppress(openai.APITimeoutError):
                given = ask(hasty, about(IMAGE, "what?"), logit_bias={"2": -100}, max_tokens=32, stream=stream)
                if stream:
                    next(iter(given))
                    given.close()
    served.wait_until_idle()
    ends = time.monotonic() + 30
    while served.server.session.usage.running and time.monotonic() < ends:
        time.sleep(0.01)
    assert served.server.session.usage.running == 0
    assert not list(served.server.media.spool._directory.iterdir())


def test_health_is_quick_while_requests_run(served, client):
    done = threading.Event()

    def work():
        while not done.is_set():
            ask(client, about(data_url(CLIP), "what?"), logit_bias={"2": -100}, max_tokens=32)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(20):
        began = time.monotonic()
        assert urllib.request.urlopen(f"{served.url}/health", timeout=5).status == 200
        times.append(time.monotonic() - began)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(times)[10] < 0.5
