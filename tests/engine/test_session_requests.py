"""What requests ask of a session: log-probabilities, penalties, scores, pins; and what their results say."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from tests.engine.jobs import QUESTIONS, clip, generated, question
from tests.small_models import random_model
from videollava_jax.assets import MEDIA
from videollava_jax.engine import Engine
from videollava_jax.engine.compilations import compilations
from videollava_jax.engine.schedule import LIVE_STEPS, WATCHED_STEPS
from videollava_jax.engine.sizes import GridShape, cache_bytes
from videollava_jax.engine.tickets import PinError
from videollava_jax.generation.logprobs import WINDOW
from videollava_jax.media import Fps, Uniform, read_video

SECONDS = 120
CLIP = str(MEDIA / "rising-triangle.mp4")
OTHER = str(MEDIA / "circle-then-square.mp4")


@pytest.fixture(scope="module")
def model(tiny_model):
    return random_model(tiny_model)


@pytest.fixture(scope="module")
def session(model, tiny_processor):
    """A session of a random model, warm, with three slots of four rows."""
    engine = Engine(model, tiny_processor, max_rows=12)
    with engine.session(rows=4, longest_answer=64) as made:
        made.warm_up()
        yield made


OPTIONS = (
    {},
    {"frequency_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"logit_bias": {"5": 4.0, "17": -100, "250": 3.5}},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": 0.4, "logit_bias": {9: 2.0}},
    {"do_sample": True, "temperature": 1.4, "min_p": 0.2},
    {"do_sample": True, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "frequency_penalty": 2.0, "stop_strings": ["e"]},
)


def test_every_option_together_gives_what_generate_gives_and_compiles_nothing(session, model, tiny_processor):
    job = [
        question(
            f"{i}",
            QUESTIONS[i % len(QUESTIONS)],
            videos=[clip(i % 3)],
            max_new_tokens=12 + i,
            seed=i,
            options=options,
            logprobs=[None, 0, 3, 20][i % 4],
        )
        for i, options in enumerate(OPTIONS)
    ]
    scored = question("scored", "what?", videos=[clip(0)], choices=["red", "a blue square"])
    pieces, before = {request.id: [] for request in job}, compilations()
    with session.pin(question("pin", "?", videos=[clip(4)])):
        tickets = [session.submit(request, on_text=pieces[request.id].append) for request in job]
        assert session.score(scored).result(SECONDS).error is None
        results = [ticket.result(SECONDS) for ticket in tickets]
    assert compilations() == before
    assert session.usage.compiled == 0
    for request, result in zip(job, results, strict=True):
        assert result.error is None
        assert "".join(pieces[request.id]) == result.text
        assert result.token_ids == generated(model, tiny_processor, request), request.options
    again = {result.id: result for result in Engine(model, tiny_processor).run(job)}
    for result in results:
        assert result.token_ids == again[result.id].token_ids
        assert len(result.logprobs) == len(again[result.id].logprobs)


def drawn_request(rng, name):
    """About one of four clips or about none, with any options."""

    def maybe(value):
        return value if rng.random() < 0.4 else None

    options = {
        "repetition_penalty": maybe(rng.choice([0.8, 1.3])),
        "frequency_penalty": maybe(rng.uniform(-2, 2)),
        "presence_penalty": maybe(rng.uniform(-2, 2)),
        "logit_bias": maybe({rng.randrange(3, 600): rng.uniform(-9, 9) for _ in range(rng.randrange(1, 300))}),
        "stop_strings": maybe([rng.choice("aeiou")]),
    }
    if rng.random() < 0.6:
        options |= {
            "do_sample": True,
            "temperature": maybe(rng.uniform(0.3, 3)),
            "top_k": maybe(rng.randrange(0, 99)),
            "top_p": maybe(rng.uniform(0.1, 1)),
            "min_p": maybe(rng.uniform(0, 0.3)),
        }
    return question(
        name,
        rng.choice(QUESTIONS),
        videos=[clip(rng.randrange(4))] if rng.random() < 0.8 else [],
        max_new_tokens=rng.randrange(1, 50),
        seed=rng.randrange(2**31),
        options={key: value for key, value in options.items() if value is not None},
        logprobs=maybe(rng.randrange(21)),
    )


def check_drawn_requests(session, model, processor, count, seed):
    """Joined pieces, results and `generate` are the same text, whatever else is asked for and cancelled meanwhile."""
    rng, before = random.Random(seed), compilations()
    job = [drawn_request(rng, str(i)) for i in range(count)]
    pieces, tokens = {request.id: [] for request in job}, {request.id: [] for request in job}
    tickets, pins = {}, []
    for request in job:
        if rng.random() < 0.2:
            session.submit(dataclasses.replace(request, seed=1), timeout=rng.choice([0.01, 60])).cancel()
        if rng.random() < 0.1:
            session.score(dataclasses.replace(request, choices=["red", "blue"]))
        if rng.random() < 0.1:
            pins.append(session.pin(request))
        for pin in [pin for pin in pins if rng.random() < 0.3]:
            pin.release()
        heard = {"on_text": pieces[request.id].append, "on_tokens": tokens[request.id].append}
        tickets[request.id] = session.submit(request, **heard)
    results = {name: ticket.result(SECONDS) for name, ticket in tickets.items()}
    for pin in pins:
        pin.release()
    assert compilations() == before
    for request in job:
        result = results[request.id]
        assert result.error is None
        assert "".join(pieces[request.id]) == result.text
        assert tuple(each for batch in tokens[request.id] for each in batch) == result.logprobs
        assert len(result.logprobs) == (0 if request.logprobs is None else len(result.token_ids))
        assert result.token_ids == generated(model, processor, request), request.options


def test_drawn_requests_are_answered_as_generate_answers_them(session, model, tiny_processor):
    check_drawn_requests(session, model, tiny_processor, 30, seed=0)


@pytest.mark.slow
def test_two_hundred_drawn_requests(session, model, tiny_processor):
    check_drawn_requests(session, model, tiny_processor, 200, seed=1)


@pytest.mark.parametrize("way", ["session", "run"])
def test_log_probabilities_are_those_of_the_models_own_logits(session, model, tiny_processor, way):
    """Of a forward pass over prompt and answer, whatever penalties and temperature choose by."""
    options = {"do_sample": True, "temperature": 3.0, "presence_penalty": 2.0, "logit_bias": {7: 5.0}}
    request = question("a", QUESTIONS[2], videos=[clip(1)], max_new_tokens=40, options=options, logprobs=4, seed=5)
    batches, pieces, calls = [], [], []
    if way == "session":
        ticket = session.submit(
            request,
            on_text=lambda piece: (pieces.append(piece), calls.append("text")),
            on_tokens=lambda new: (batches.append(new), calls.append("tokens")),
        )
        result = ticket.result(SECONDS)
        assert tuple(each for batch in batches for each in batch) == result.logprobs
        assert len(batches) > 2
        assert all(calls[i - 1] == "tokens" for i, call in enumerate(calls) if call == "text")
    else:
        (result,) = Engine(model, tiny_processor).run([request])
    assert tuple(each.token_id for each in result.logprobs) == result.token_ids
    inputs = tiny_processor(text=request.prompt, videos=list(request.videos))
    prompt = inputs["input_ids"].shape[1]
    ids = np.concatenate([inputs["input_ids"], np.array([result.token_ids])], axis=1)
    logits, _ = model.sequence_logits(ids, pixel_values_videos=inputs["pixel_values_videos"])
    log_TV = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)[0, prompt - 1 : -1], axis=-1))
    for place, (log_V, found) in enumerate(zip(log_TV, result.logprobs, strict=True)):
        assert abs(found.logprob - log_V[result.token_ids[place]]) < 1e-4
        likeliest = np.argsort(-log_V, kind="stable")[:4]
        assert [token for token, _ in found.top] == likeliest.tolist()
        np.testing.assert_allclose([value for _, value in found.top], log_V[likeliest], atol=1e-4)


def test_the_host_looks_before_the_device_writes_over_log_probabilities():
    assert 1 + max(WATCHED_STEPS, LIVE_STEPS) < WINDOW, "a row begins with a token, and then these are decoded"


@pytest.mark.parametrize("wrong", [21, -1, True, 1.5, "3"])
def test_a_wrong_number_of_log_probabilities_is_an_error(session, wrong):
    result = session.submit(question("a", "what?", logprobs=wrong)).result(SECONDS)
    assert "logprobs: expected a whole number from 0 to 20" in result.error


def test_scores_are_those_of_the_engine(session, model, tiny_processor):
    """More choices than there are rows, while answers are written."""
    choices = ["red", "a blue square", "left", "right", "up and down", "no"]
    job = [question(f"{v}", QUESTIONS[v], videos=[clip(v // 2)], choices=choices) for v in range(4)]
    writing = session.submit(question("long", "say something", videos=[clip(0)], max_new_tokens=64))
    tickets = [session.score(request) for request in job]
    found = [ticket.result(SECONDS) for ticket in tickets]
    for now in (ticket.moments for ticket in tickets):
        assert now.submitted <= now.begun <= now.ended
    for scored, expected in zip(found, Engine(model, tiny_processor).score(job), strict=True):
        assert (scored.id, scored.tokens, scored.greedy) == (expected.id, expected.tokens, expected.greedy)
        np.testing.assert_allclose(scored.log_likelihoods, expected.log_likelihoods, rtol=1e-4)
        assert scored.prompt_tokens == expected.prompt_tokens
    assert writing.result(SECONDS).error is None
    assert "choices" in session.score(question("none", "what?")).result(SECONDS).error


def test_results_say_which_frames_the_model_saw_also_from_a_cached_prefix(session):
    sampling = Fps(4)
    read = read_video(CLIP, sampling)
    asked = {"videos": [CLIP, OTHER], "frame_sampling": Uniform(4), "max_new_tokens": 2}
    fps = {"videos": [CLIP], "frame_sampling": sampling, "max_new_tokens": 2}
    for again in range(2):
        result = session.submit(question("fps", "what?", **fps)).result(SECONDS)
        (frames,) = result.frames
        assert (frames.indices, frames.total) == (tuple(read.indices), read.total_frames)
        np.testing.assert_allclose(frames.seconds, read.timestamps)
        assert result.cached_tokens == (result.shared_tokens if again else 0)
    result = session.submit(question("two", "what?", **asked)).result(SECONDS)
    assert [len(frames.indices) for frames in result.frames] == [4, 4]
    given = session.submit(question("pixels", "what?", videos=[clip(1)], max_new_tokens=2)).result(SECONDS)
    assert given.frames == (None,)
    assert session.submit(question("text", "hello", max_new_tokens=2)).result(SECONDS).frames == ()


def test_the_engine_says_it_too(model, tiny_processor):
    job = [question(f"{i}", QUESTIONS[i], videos=[CLIP], max_new_tokens=2) for i in range(2)]
    results = list(Engine(model, tiny_processor).run(job))
    indices = tuple(read_video(CLIP, Uniform(8)).indices)
    assert {result.frames[0].indices for result in results} == {indices}
    assert sum(result.cached_tokens for result in results) == 0
    (scored,) = Engine(model, tiny_processor).score([question("s", "what?", videos=[CLIP], choices=["a"])])
    assert scored.frames[0].indices == indices


def test_several_answers_to_one_question_share_one_prefill(session, model, tiny_processor):
    options = {"do_sample": True, "temperature": 2.0}
    before = session.usage
    job = [
        question(f"{seed}", "what is it?", videos=[clip(77)], max_new_tokens=9, seed=seed, options=options)
        for seed in range(5, 11)
    ]
    tickets = [session.submit(request) for request in job]
    results = [ticket.result(SECONDS) for ticket in tickets]
    after = session.usage
    assert after.prefills - before.prefills == 1
    assert after.prefix_queries - before.prefix_queries == 6
    assert after.prefix_hits - before.prefix_hits == 5
    assert len({result.token_ids for result in results}) > 1
    for request, result in zip(job, results, strict=True):
        assert result.token_ids == generated(model, tiny_processor, request)


def test_a_pinned_prefix_stays_and_others_come_and_go(session):
    pin = session.pin(question("p", "?", videos=[clip(50)]))
    pinned = pin.result(SECONDS)
    assert (pinned.id, pinned.cached_tokens) == ("p", 0)
    for seed in range(51, 57):
        session.submit(question(f"{seed}", "?", videos=[clip(seed)], max_new_tokens=2)).result(SECONDS)
    assert session.usage.pinned == 1
    result = session.submit(question("a", "what?", videos=[clip(50)], max_new_tokens=2)).result(SECONDS)
    assert result.cached_tokens == pinned.tokens == result.shared_tokens
    with session.pin(question("q", "?", videos=[clip(51)])), session.pin(question("r", "?", videos=[clip(51)])):
        with pytest.raises(PinError, match="expected at most 2 pinned prefixes") as caught:
            session.pin(question("s", "?", videos=[clip(52)])).result(SECONDS)
        assert caught.value.cause == "too_many_pins"
    pin.release()
    pin.release()
    session.pin(question("s", "?", videos=[clip(52)])).release()
    with pytest.raises(PinError, match="No such file"):
        session.pin(question("t", "?", videos=["nothing.mp4"])).result(SECONDS)
    for seed in range(57, 61):
        session.submit(question(f"{seed}", "?", videos=[clip(seed)], max_new_tokens=2)).result(SECONDS)
    assert session.usage.pinned == 0
    result = session.submit(question("a", "what?", videos=[clip(50)], max_new_tokens=2)).result(SECONDS)
    assert result.cached_tokens == 0


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"max_new_tokens": 65}, "an answer of up to 65: expected at most 128 and 64"),
        ({"videos": [clip(0, frames=64)]}, "tokens"),
        ({"max_new_tokens": 10**6}, "expected at most 511, as the model has 512 positions"),
    ],
    ids=["answer", "prefix", "model"],
)
def test_what_does_not_fit_says_so_with_numbers(session, changes, numbers):
    result = session.submit(question("long", "what?", **{"max_new_tokens": 2, **changes})).result(SECONDS)
    assert result.cause == "too_long"
    assert numbers in result.error


def test_a_budget_of_bytes_gives_the_slots(model, tiny_processor):
    engine = Engine(model, tiny_processor, max_rows=12)
    text = model.model_config.text_config
    one = cache_bytes(GridShape(1, 1, 2, 320, 128, 64), text, model.dtype, int8=False)
    for slots in (1, 3, 6):
        with engine.session(rows=2, longest_answer=64, longest_prefix=320, memory=slots * one + 1) as made:
            assert made.shape.slots == slots
    with pytest.raises(ValueError, match="raise memory="):
        engine.session(rows=1, memory=1000)
    with pytest.raises(ValueError, match="memory: expected at least 1, got 0"):
        engine.session(memory=0)


def test_counts_return_to_nothing(session):
    session.submit(question("a", "what?", videos=[clip(0)], max_new_tokens=7)).result(SECONDS)
    usage = session.usage
    assert (usage.waiting, usage.reading, usage.running, usage.slots_in_use) == (0, 0, 0, 0)
    assert (usage.rows, usage.slots, usage.held) == (12, 3, 3)
    before = usage.generated_tokens, usage.prompt_tokens
    result = session.submit(question("b", "what?", videos=[clip(0)], max_new_tokens=7)).result(SECONDS)
    after = session.usage
    assert after.generated_tokens - before[0] == len(result.token_ids)
    assert after.prompt_tokens - before[1] == result.prompt_tokens
    assert session.error is None
