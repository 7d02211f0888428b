"""The engine answers what `generate` answers, whatever the order, the grouping and the sizes, and whatever fails."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.jobs import QUESTIONS, clip, generated, mixed_job, question
from tests.small_models import random_model
from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli.demo import QUESTIONS as DEMO_QUESTIONS
from videollava_jax.engine import Engine, Request, grid
from videollava_jax.generation import steps as compiled

JOB = mixed_job()


@pytest.fixture(scope="module", params=["tiny", "random", "original"])
def model(request, tiny_model):
    if request.param == "tiny":
        return tiny_model
    if request.param == "random":
        return random_model(tiny_model, kv_heads=4)
    return random_model(tiny_model, variant="original")


@pytest.fixture(scope="module")
def expected(model, tiny_processor):
    return {request.id: generated(model, tiny_processor, request) for request in JOB}


def run(engine, requests):
    """Results by id; one for each request."""
    results = list(engine.run(requests))
    assert collections.Counter(r.id for r in results) == collections.Counter(r.id for r in requests)
    return {result.id: result for result in results}


@settings(max_examples=4, deadline=None, derandomize=True)
@given(order=st.permutations(range(len(JOB))), count=st.sampled_from([len(JOB), 7]), few=st.booleans())
def test_answers_are_those_of_generate(model, expected, tiny_processor, order, count, few):
    """Any order, all at once or by ones: sizes are few, for each is compiled."""
    job = [JOB[i] for i in order[:count]]
    max_rows, window = (1, 2) if few else (16, 100)
    results = run(Engine(model, tiny_processor, max_rows=max_rows, window=window), job)
    for request in job:
        result = results[request.id]
        assert result.error is None
        assert result.token_ids == expected[request.id]
        at_an_end = result.token_ids[-1] in model.model_config.eos_token_ids
        assert result.finish_reason == ("stop" if at_an_end else "length")
        assert at_an_end or len(result.token_ids) == request.max_new_tokens


def test_each_medium_is_read_encoded_and_prefilled_once(tiny_model, tiny_processor, monkeypatch, tmp_path):
    """25 questions about each of 3 files, one of them there under two names, in an order that is worst for that."""
    read, encoded, filled = [], [], []
    processor_read, encode, fill = tiny_processor.read, grid.encode, grid.prefill_slots
    monkeypatch.setattr(
        tiny_processor, "read", lambda medium, *a: read.append(medium.source) or processor_read(medium, *a)
    )
    monkeypatch.setattr(grid, "encode", lambda *a: encoded.append(a[4]) or encode(*a))
    monkeypatch.setattr(grid, "prefill_slots", lambda *a: filled.append(a[2]) or fill(*a))
    from PIL import Image

    for name, seed in (("a", 0), ("b", 1), ("c", 1), ("d", 2)):
        Image.fromarray(clip(seed)[0]).save(tmp_path / f"{name}.png")
    job = [
        question(f"{name}{q}", f"{QUESTIONS[q % 5]} {q}", images=[tmp_path / f"{name}.png"], max_new_tokens=4)
        for q in range(25)
        for name in "abcd"
    ]
    run(Engine(tiny_model, tiny_processor, max_rows=8), job)
    assert len(read) == len(encoded) == len(filled) == 3


def test_a_prefix_that_is_still_there_is_found_again(tiny_model, tiny_processor, monkeypatch):
    filled = []
    fill = grid.prefill_slots
    monkeypatch.setattr(grid, "prefill_slots", lambda *a: filled.append(a[2]) or fill(*a))
    job = [
        question(f"{q}-{v}", text, videos=[clip(v)], max_new_tokens=4)
        for q, text in enumerate(QUESTIONS)
        for v in (0, 1)
    ]
    run(Engine(tiny_model, tiny_processor, max_rows=4, window=2), job)
    assert len(filled) == 2


def test_nothing_is_compiled_after_the_warm_up(tiny_model, tiny_processor):
    """Rows end at different steps and are filled again, and the programs stay as many as they were."""
    programs = (grid.encode, grid.prefill_slots, grid.begin_packed, grid.report, compiled.decode)
    engine = Engine(tiny_model, tiny_processor, max_rows=8)

    def job(seed):
        return [
            question(f"{v}-{q}", text, videos=[clip(seed + v)], max_new_tokens=1 + (5 * v + q) % 9)
            for v in range(4)
            for q, text in enumerate(QUESTIONS)
        ]

    run(engine, job(0))
    sizes = [program._cache_size() for program in programs]
    for seed in (10, 20):
        run(engine, job(seed))
    assert [program._cache_size() for program in programs] == sizes


def test_rows_with_options_of_their_own(tiny_model, tiny_processor):
    """Greedy, drawn, penalised and stopped rows in one grid, each as `generate` alone answers it."""
    model = random_model(tiny_model)
    each = (
        {},
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": True, "top_k": 5, "top_p": 0.9},
        {"repetition_penalty": 1.7},
        {"do_sample": True, "repetition_penalty": 0.7},
    )
    job = [
        question(f"{v}-{q}", text, videos=[clip(v)], max_new_tokens=12, seed=7 * v + q, options=each[(v + q) % 5])
        for v in range(2)
        for q, text in enumerate(QUESTIONS)
    ]
    results = run(Engine(model, tiny_processor, max_rows=10), job)
    for request in job:
        assert results[request.id].token_ids == generated(model, tiny_processor, request)


def test_videos_with_uneven_numbers_of_questions(tiny_model, tiny_processor, monkeypatch):
    """A slot has fewer rows than the most questions; the others begin while some are still answered."""
    model, begun, filled = random_model(tiny_model), [], []
    begin, fill = grid.begin_packed, grid.prefill_slots
    monkeypatch.setattr(grid, "begin_packed", lambda *a: begun.append(a) or begin(*a))
    monkeypatch.setattr(grid, "prefill_slots", lambda *a: filled.append(a) or fill(*a))
    job = [
        question(f"{v}-{q}", f"{QUESTIONS[q % 5]} {q}", videos=[clip(v)], max_new_tokens=3 + 5 * q % 11)
        for v, count in enumerate((8, 2, 1))
        for q in range(count)
    ]
    sizes = []
    results = run(Engine(model, tiny_processor, max_rows=8, on_sizes=sizes.append), job)
    assert sizes[0].startswith("2 prefixes")
    assert " 4 rows " in sizes[0]
    assert len(begun) > len(filled) == 3
    for request in job:
        assert results[request.id].token_ids == generated(model, tiny_processor, request)


def test_stop_strings_end_a_row(tiny_model, tiny_processor):
    plain = question("plain", QUESTIONS[2], videos=[clip(0)], max_new_tokens=20)
    model = random_model(tiny_model)
    whole = generated(model, tiny_processor, plain)
    piece = tiny_processor.tokenizer.decode(whole[5:7]).strip()[:3]
    stopped = question("stopped", QUESTIONS[2], videos=[clip(0)], max_new_tokens=20, options={"stop_strings": piece})
    results = run(Engine(model, tiny_processor, max_rows=4), [plain, stopped])
    assert results["plain"].token_ids == whole
    assert results["stopped"].token_ids == generated(model, tiny_processor, stopped)
    assert len(results["stopped"].token_ids) < len(whole)
    assert results["stopped"].finish_reason == "stop"


def test_a_conversation_is_a_question_about_its_media(tiny_model, tiny_processor):
    """Turns share the prefix of their media; each answers as the whole conversation sent anew."""
    from videollava_jax.generation.chat import Chat

    video = clip(4)
    chat = Chat(tiny_model, tiny_processor, videos=[video])
    turns = [chat.ask(text, max_new_tokens=8) for text in QUESTIONS[:3]]
    conversations = [chat.messages[: 2 * i + 1] for i in range(3)]
    job = [Request(id=str(i), conversation=c, max_new_tokens=8) for i, c in enumerate(conversations)]
    results = run(Engine(tiny_model, tiny_processor), job)
    assert [results[str(i)].token_ids for i in range(3)] == [turn.token_ids for turn in turns]
    assert len({results[str(i)].shared_tokens for i in range(3)}) == 1


def test_a_text_longer_than_rows_are_made_for_is_computed_as_a_prefix(tiny_model, tiny_processor):
    job = [question(f"{n}", " ".join(["shape"] * n), videos=[clip(0)], max_new_tokens=4) for n in (1, 30, 70)]
    results = run(Engine(tiny_model, tiny_processor, longest_question=40), job)
    for request in job:
        assert results[request.id].token_ids == generated(tiny_model, tiny_processor, request)


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"quantization": "w8a8"}], ids=str)
def test_smaller_numbers_answer_as_the_model_was_trained(tiny_model, tiny_processor, options):
    """bfloat16, alone and with int8 weights, on the tiny model's own clips; errors are measured in test_int8.py."""
    small = VideoLlavaForConditionalGeneration.from_pretrained(TINY, dtype="bfloat16", **options)
    job = demo_job()
    exact, got = run(Engine(tiny_model, tiny_processor), job), run(Engine(small, tiny_processor), job)
    assert {i: r.text for i, r in got.items()} == {i: r.text for i, r in exact.items()}


def test_int8_prefixes_answer_as_the_model_was_trained(tiny_model, tiny_processor):
    job = demo_job()
    exact = run(Engine(tiny_model, tiny_processor), job)
    small = run(Engine(tiny_model, tiny_processor, int8_cache=True), job)
    assert {i: r.text for i, r in small.items()} == {i: r.text for i, r in exact.items()}


def demo_job():
    """The demo's questions about the bundled clips."""
    job = [
        question(f"{name}{i}", text, videos=[MEDIA / name], max_new_tokens=8)
        for name, texts in DEMO_QUESTIONS.items()
        if name.endswith(".mp4")
        for i, text in enumerate(texts)
    ]
    assert len(job) == 6
    return job


# ── when it goes wrong ──


def test_what_is_wrong_with_a_request_is_its_result_alone(tiny_model, tiny_processor, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    good = [question(f"good{q}", text, videos=[clip(0)], max_new_tokens=5) for q, text in enumerate(QUESTIONS)]
    bad = {
        "missing": question("missing", "what?", videos=["/no/such/file.mp4"]),
        "broken1": question("broken1", "what?", videos=[tmp_path / "broken.mp4"]),
        "broken2": question("broken2", "which?", videos=[tmp_path / "broken.mp4"]),
        "long": question("long", "shape " * 40, videos=[clip(0)], max_new_tokens=100_000),
        "placeholders": Request(id="placeholders", prompt="USER: <video> what? ASSISTANT:"),
        "nothing": Request(id="nothing"),
        "option": question("option", "what?", videos=[clip(0)], options={"top_p": 3.0}),
        "medium last": Request(id="medium last", prompt="USER: <video>", videos=[clip(0)]),
    }
    job = [*bad.values(), *good]
    results = run(Engine(tiny_model, tiny_processor, max_rows=4), job)
    for name in bad:
        assert results[name].finish_reason == "error"
        assert results[name].text == ""
        assert "\n" not in results[name].error
    assert "broken.mp4" in results["broken1"].error
    assert results["broken1"].error == results["broken2"].error
    assert "positions" in results["long"].error
    assert "top_p" in results["option"].error
    for request in good:
        assert results[request.id].token_ids == generated(tiny_model, tiny_processor, request)


def test_logits_that_are_not_finite_fail_their_row_and_change_no_bit_of_the_others(tiny_model, tiny_processor):
    """The embedding of one token is NaN: the questions that hold it fail, also in rows that are filled again."""
    model = random_model(tiny_model)
    texts = ["what colour is it?", "which shape?", "how many?", "where does it go?"] * 3
    job = [question(f"{q}", f"{text} {'and ' * q}", videos=[clip(0)], max_new_tokens=6) for q, text in enumerate(texts)]
    ids = [set(tiny_processor(text=r.prompt, videos=list(r.videos))["input_ids"][0].tolist()) for r in job]
    answers = {request.id: generated(model, tiny_processor, request) for request in job}
    fed = [tokens.union(answers[request.id][:-1]) for request, tokens in zip(job, ids, strict=True)]
    token = min(ids[1].difference(*(fed[i] for i, text in enumerate(texts) if "shape" not in text)))
    parameters = dict(model.parameters)
    name = "language_model.embed_tokens.weight"
    parameters[name] = parameters[name].at[token].set(jnp.nan)
    ill = VideoLlavaForConditionalGeneration(model.model_config, parameters)
    results = run(Engine(ill, tiny_processor, max_rows=3), job)
    for request, tokens in zip(job, ids, strict=True):
        if token in tokens:
            assert results[request.id].finish_reason == "error"
            assert "not finite" in results[request.id].error
        else:
            assert results[request.id].token_ids == answers[request.id]


def test_a_question_too_long_for_a_prefix_that_is_in_place_fails_alone(tiny_model, tiny_processor):
    """It comes while others about the same clip are answered, from a grid whose rows would take it."""
    positions = tiny_model.model_config.text_config.max_position_embeddings
    room = positions - 160
    video = clip(0)
    job = [question(f"{i}", f"which shape {i}?", videos=[video], max_new_tokens=room) for i in range(4)]
    job.insert(3, question("long", "and " * 20, videos=[video], max_new_tokens=room))
    results = run(Engine(tiny_model, tiny_processor, max_rows=1, window=1, longest_question=64), job)
    assert "positions" in results["long"].error
    assert [results[str(i)].error for i in range(4)] == [None] * 4


def test_two_requests_of_one_id_are_refused(tiny_model, tiny_processor):
    job = [question("a", "what?", videos=[clip(0)])] * 2
    with pytest.raises(ValueError, match="'a' was there before"):
        list(Engine(tiny_model, tiny_processor).run(job))


def test_too_little_memory_for_one_row_is_refused_before_anything_runs(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match="raise memory="):
        list(Engine(tiny_model, tiny_processor, memory=1000).run(JOB[:1]))


def test_a_device_without_memory_says_what_to_lower(tiny_model, tiny_processor, monkeypatch):
    """What had finished before is kept."""
    decode, calls = compiled.decode, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
        return decode(*arguments, **options)

    monkeypatch.setattr(compiled, "decode", full)
    job = [question(str(v), "what?", videos=[clip(v)], max_new_tokens=3) for v in range(8)]
    results = []
    with pytest.raises(MemoryError, match=r"lower memory= .* or max_rows= \(now 2\)"):
        results.extend(Engine(tiny_model, tiny_processor, max_rows=2).run(job))
    assert results


@pytest.mark.parametrize("name", ["max_rows", "memory", "window", "readers"])
def test_options_out_of_range_are_refused(tiny_model, tiny_processor, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1"):
        Engine(tiny_model, tiny_processor, **{name: 0})


def test_the_sizes_that_were_chosen_are_said(tiny_model, tiny_processor):
    said = []
    run(Engine(tiny_model, tiny_processor, max_rows=6, on_sizes=said.append), JOB[:5])
    assert said == [f"{said[0]}"]
    assert "MiB of keys and values in float32" in said[0]


# ── scores ──


def test_scores_are_the_log_probabilities_of_a_forward_pass(tiny_model, tiny_processor):
    model = random_model(tiny_model)
    choices = ["red", "a blue square", "left"]
    job = [question(f"{v}", QUESTIONS[v], videos=[clip(v // 2)], choices=choices) for v in range(3)]
    for request, scored in zip(job, Engine(model, tiny_processor).score(job), strict=True):
        assert scored.error is None
        for choice, likelihood, tokens, greedy in zip(
            choices, scored.log_likelihoods, scored.tokens, scored.greedy, strict=True
        ):
            inputs = tiny_processor(text=f"{request.prompt} {choice}", videos=list(request.videos))
            logits = np.asarray(model(**inputs).logits)[0, :-1]
            ids = inputs["input_ids"][0, 1:]
            each = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(len(ids)), ids][-tokens:]
            np.testing.assert_allclose(likelihood, each.sum(), rtol=1e-4)
            assert greedy == (logits.argmax(-1)[-tokens:] == ids[-tokens:]).all()
        assert scored.best == int(np.argmax(scored.log_likelihoods))


def test_scoring_without_choices_is_an_error(tiny_model, tiny_processor):
    (scored,) = Engine(tiny_model, tiny_processor).score([question("a", "what?", videos=[clip(0)])])
    assert "choices" in scored.error


def test_an_answer_that_may_be_cut_gets_what_the_prompt_leaves_of_the_positions(tiny_model, tiny_processor):
    engine = Engine(tiny_model, tiny_processor, max_rows=2)
    endless = {"logit_bias": {tiny_processor.tokenizer.eos_token_id: -100.0}}
    asked = question("cut", "what?", videos=[clip(0)], max_new_tokens=400, cut_to_fit=True, options=endless)
    short = question("short", "what?", videos=[clip(0)], max_new_tokens=5, cut_to_fit=True, options=endless)
    refused = question("refused", "what?", videos=[clip(0)], max_new_tokens=400, options=endless)
    long = question("long", "what? " * 600, max_new_tokens=400, cut_to_fit=True)
    results = {result.id: result for result in engine.run([asked, short, refused, long])}
    room = 512 - results["cut"].prompt_tokens
    assert 100 < room < 400
    assert results["cut"].finish_reason == "length"
    expected = dataclasses.replace(asked, max_new_tokens=room)
    assert results["cut"].token_ids == generated(tiny_model, tiny_processor, expected)
    assert len(results["cut"].token_ids) == room
    assert len(results["short"].token_ids) == 5
    assert results["refused"].error.startswith(f"a prompt of {512 - room} tokens and an answer of up to 400 do not fit")
    assert results["long"].cause == "too_long"
    assert "512 positions" in results["long"].error or "at most 511 tokens" in results["long"].error
