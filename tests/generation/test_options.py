"""Generation options are the same whoever asks: keywords, JSON, OpenAI's names, flags, a checkpoint's file."""

import argparse
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videollava_jax import Request, VideoLlavaForConditionalGeneration
from videollava_jax.batch.forms.form import Line
from videollava_jax.batch.identity import job_identity
from videollava_jax.batch.requests import Defaults, to_request
from videollava_jax.config import ModelConfig, TextConfig
from videollava_jax.engine.preparation import Preparer
from videollava_jax.generation.chat import Chat
from videollava_jax.generation.decoding import Decoded, row_keys
from videollava_jax.generation.options import (
    KINDS,
    OPENAI_NAMES,
    SHARED,
    GenerationOptions,
    add_option_flags,
    for_command,
    from_arguments,
)

TO_OPENAI = {ours: theirs for theirs, ours in OPENAI_NAMES.items()}
DRAWN = {"max_new_tokens": 128, "do_sample": True, "temperature": 0.5}
GREEDY = {"max_new_tokens": 128, "do_sample": False}
# A value of each option in JSON's types, and what else is said with it.
SAID = {
    "max_new_tokens": (7, GREEDY),
    "do_sample": (True, GREEDY),
    "temperature": (0.7, DRAWN),
    "top_k": (9, DRAWN),
    "top_p": (0.25, DRAWN),
    "min_p": (0.125, DRAWN),
    "repetition_penalty": (1.5, DRAWN),
    "frequency_penalty": (-0.5, GREEDY),
    "presence_penalty": (1.25, GREEDY),
    "logit_bias": ({"9": -100.0, "4": 2.5}, GREEDY),
    "seed": (2**40 + 5, DRAWN),
    "eos_token_id": ([5, 7], GREEDY),
    "pad_token_id": (3, GREEDY),
    "suppress_tokens": ([4, 6], GREEDY),
    "stop_strings": (["red", "a b"], GREEDY),
}
HUGE = 2**70
NO_WHOLE = ["hot", 3.5, True, math.nan, HUGE, [1], {}]
NO_NUMBER = ["hot", "0.5", True, math.nan, math.inf, -1, 10**400, [0.5]]
WRONG = {
    "max_new_tokens": [0, -1, *NO_WHOLE],
    "do_sample": ["yes", 1, 0.0, []],
    "temperature": [1e-40, *NO_NUMBER],
    "top_k": [-2, *NO_WHOLE],
    "top_p": [0, 1.5, *NO_NUMBER],
    "min_p": [1.5, *NO_NUMBER],
    "repetition_penalty": [0, 1e-40, *NO_NUMBER],
    "frequency_penalty": [2.5, -2.5, *(value for value in NO_NUMBER if value != -1)],
    "presence_penalty": [2.5, -2.5, *(value for value in NO_NUMBER if value != -1)],
    "logit_bias": [3, "5", {"5": 101}, {"-5": 1}, {"a": 1}, {"5": "1"}, {"5": math.nan}, [5], [[5, 1, 2]], b"5"],
    "seed": [-HUGE, *NO_WHOLE],
    "eos_token_id": ["2", 2.0, True, [2, "3"], [HUGE], {"2": 3}],
    "pad_token_id": NO_WHOLE,
    "suppress_tokens": ["2", 2.5, [-1], [True], [HUGE]],
    "stop_strings": ["", 3, ["a", None], [""], {"a": 1}, b"ab"],
}


@pytest.fixture(scope="module")
def model(tiny_model):
    """A model of its own, whose methods may be replaced."""
    return VideoLlavaForConditionalGeneration(tiny_model.model_config, tiny_model.parameters)


@pytest.fixture
def seen(model, monkeypatch):
    """A model that computes nothing, and the options that its `decode` is given."""
    found = []

    def decode(logits, cache, keys, prompts, options, **apart):
        assert apart["tokenizer"] is not None
        assert (jax.random.key_data(keys) == jax.random.key_data(row_keys(options.seed, 1))).all()
        found.append(options)
        return Decoded(np.zeros((1, 1), np.int64), None, None, 0)

    monkeypatch.setattr(model, "prefill", lambda *a, **k: (None, None))
    monkeypatch.setattr(model, "decode", decode)
    return model, found


# ── the faces ──


def by_generate(model, found, processor, said):
    model.generate(np.array([[1, 5]]), tokenizer=processor.tokenizer, **said)
    return found.pop()


def by_chat(model, found, processor, said):
    Chat(model, processor).ask("?", **said)
    return found.pop()


def by_request(model, found, processor, said):
    said = dict(said)
    own = {name: said.pop(name) for name in ("max_new_tokens", "seed") if name in said}
    request = Request(id="0", prompt="?", **own, options={n: v for n, v in said.items() if n not in SHARED})
    return prepared(model, processor, request, {name: said[name] for name in SHARED if name in said})


def by_json(model, found, processor, said):
    line = json.loads(json.dumps({"id": "a", "prompt": "?", "options": said}))
    return prepared(model, processor, to_request(Line(0, 1, line), "jsonl"), {})


def by_openai(model, found, processor, said):
    messages = [{"role": "user", "content": "?"}]
    body = {"messages": messages, **{TO_OPENAI[n]: value for n, value in said.items() if n != "do_sample"}}
    line = json.loads(json.dumps({"custom_id": "a", "body": body}))
    return prepared(model, processor, to_request(Line(0, 1, line), "openai"), {})


def by_flags(model, found, processor, said):
    return model.resolve_options(from_arguments(parsed_flags(said)))


def by_a_jobs_flags(model, found, processor, said):
    options = from_arguments(parsed_flags(said))
    defaults = Defaults(options={name: value for name, value in options.items() if name not in SHARED})
    request = to_request(Line(0, 1, {"id": "a", "prompt": "?"}), "jsonl", defaults)
    return prepared(model, processor, request, {name: options[name] for name in SHARED if name in options})


def by_the_checkpoint(model, found, processor, said):
    written = {
        **json.loads(json.dumps(said)),
        "transformers_version": "4.52",
        "num_beams": None,
        "top_k": said.get("top_k"),
    }
    return GenerationOptions.resolve({}, written, model.model_config)


PYTHON = (by_generate, by_chat, by_request)
FACES = (by_generate, by_chat, by_request, by_json, by_openai, by_flags, by_a_jobs_flags, by_the_checkpoint)


def prepared(model, processor, request, shared):
    preparer = Preparer(processor, model.model_config, model.generation_defaults, 64, **shared)
    return preparer.question(request).options


def parsed_flags(said):
    arguments = []
    for name, value in said.items():
        flag = name.replace("_", "-")
        if name == "do_sample":
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "stop_strings":
            arguments += [f"--{flag}={text}" for text in value]
        else:
            value = [f"{token}:{bias}" for token, bias in value.items()] if isinstance(value, dict) else value
            arguments.append(f"--{flag}={','.join(map(str, value)) if isinstance(value, list) else value}")
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    return parser.parse_args(arguments)


def takes(face, name):
    """Whether a face has this option: shared ones hold for no line of a job, and OpenAI has fewer."""
    if face is by_openai:
        return name in TO_OPENAI
    return face is not by_json or name not in SHARED


def test_every_option_is_in_the_tables():
    assert SAID.keys() == WRONG.keys() == KINDS.keys()


@pytest.mark.parametrize(("face", "name"), [(f, n) for f in FACES for n in SAID if takes(f, n)])
def test_every_face_gives_the_same_options(seen, tiny_processor, face, name):
    value, others = SAID[name]
    said = {**others, name: value}
    expected = tuple(value) if isinstance(value, list) else value
    if isinstance(value, dict):
        expected = tuple(sorted((int(token), bias) for token, bias in value.items()))
    options = face(*seen, tiny_processor, said)
    assert options == seen[0].resolve_options(said)
    assert getattr(options, name) == expected
    assert type(getattr(options, name)) is type(expected)


def wrong(face, name):
    """The wrong values that a face can be given: a command line has text alone, and JSON no bytes."""
    if (face, name) == (by_generate, "seed"):
        return [value for value in WRONG[name] if value != [1]]  # a seed for each row
    if face in (by_flags, by_a_jobs_flags):
        text = name in ("do_sample", "stop_strings")
        return [] if text else [value for value in WRONG[name] if isinstance(value, (int, float)) and value is not True]
    return [value for value in WRONG[name] if face in PYTHON or not isinstance(value, bytes)]


@pytest.mark.parametrize(("face", "name"), [(f, n) for f in FACES for n in WRONG if takes(f, n) and wrong(f, n)])
def test_every_face_refuses_what_makes_no_sense(seen, tiny_processor, capsys, face, name):
    for value in wrong(face, name):
        with pytest.raises((ValueError, SystemExit)) as refused:
            face(*seen, tiny_processor, {**GREEDY, name: value})
        said = str(refused.value) if refused.type is ValueError else capsys.readouterr().err  # argparse prints
        shown = TO_OPENAI[name] if face is by_openai else name
        assert f"{shown}: expected" in said.replace("-", "_")
        assert len(said.splitlines()[-1]) < 250


def test_what_is_said_comes_first_and_then_the_checkpoint_and_then_transformers():
    config = ModelConfig(text_config=TextConfig(eos_token_id=(2, 7), pad_token_id=None))
    alone = GenerationOptions.resolve({}, {}, config)
    assert alone == GenerationOptions(eos_token_id=(2, 7), pad_token_id=2)
    # transformers' own defaults, as its GenerationConfig has them
    assert (alone.max_new_tokens, alone.do_sample, alone.temperature, alone.top_k, alone.top_p) == (20, False, 1, 50, 1)
    file = {"eos_token_id": 5, "top_p": 0.5, "temperature": None, "do_sample": True, "top_k": 0, "num_beams": 1}
    found = GenerationOptions.resolve({"top_p": 0.25, "seed": None}, file, config)
    assert (found.eos_token_id, found.top_p, found.temperature, found.pad_token_id) == ((5,), 0.25, 1.0, 5)
    assert (found.do_sample, found.top_k) == (True, 0)
    with_padding = ModelConfig(text_config=TextConfig(eos_token_id=(2,), pad_token_id=9))
    assert GenerationOptions.resolve({}, {}, with_padding).pad_token_id == 9
    assert GenerationOptions.resolve({"pad_token_id": 0}, {}, with_padding).pad_token_id == 0
    assert GenerationOptions.resolve({"eos_token_id": []}, {}, config) == GenerationOptions(pad_token_id=0)


def test_what_is_wrong_in_the_checkpoint_names_its_file_and_is_passed_over_where_it_is_given():
    with pytest.raises(ValueError, match=r"generation_config\.json: temperature: expected 0 or a number"):
        GenerationOptions.resolve({}, {"temperature": "hot"}, ModelConfig())
    assert GenerationOptions.resolve({"temperature": 2}, {"temperature": "hot"}, ModelConfig()).temperature == 2.0


def test_a_temperature_decides_whether_tokens_are_drawn(seen, tiny_processor):
    """In jobs and commands; keywords are transformers', where only do_sample does."""
    for face in (by_json, by_openai, by_flags, by_a_jobs_flags):
        drawn = face(*seen, tiny_processor, {"temperature": 0.5, "top_p": 0.5})
        assert (drawn.do_sample, drawn.temperature, drawn.top_p) == (True, 0.5, 0.5)
        for said in ({"temperature": 0}, {}):
            assert not face(*seen, tiny_processor, said).do_sample
    for face in (by_json, by_flags, by_a_jobs_flags):
        with pytest.raises(ValueError, match="temperature: 0 asks for the likeliest tokens and do_sample for drawn"):
            face(*seen, tiny_processor, {"temperature": 0, "do_sample": True})
    assert not by_generate(*seen, tiny_processor, {"temperature": 0.5}).do_sample
    with pytest.raises(ValueError, match="temperature: expected at least 1e-06 with do_sample=True, got 0"):
        by_generate(*seen, tiny_processor, {"temperature": 0, "do_sample": True})


def test_a_line_comes_before_its_job():
    defaults = Defaults(options={"temperature": 0.5, "top_p": 0.25, "seed": 2**63 - 1})
    line = {"id": "a", "prompt": "?"}

    def options(index=0, **said):
        made = to_request(Line(index, 1, {**line, "options": said}), "jsonl", defaults)
        return made.seed, dict(made.options)

    drawn = {"do_sample": True, "temperature": 0.5, "top_p": 0.25}
    assert options() == (2**63 - 1, drawn)
    assert options(index=1) == (-(2**63), drawn)  # beyond 64 bits seeds start at the other end
    assert options(temperature=0) == (2**63 - 1, {"do_sample": False})
    assert options(do_sample=False, seed=4) == (4, {"do_sample": False})
    assert options(temperature=None, top_p=1) == (2**63 - 1, {**drawn, "top_p": 1.0})
    defaults = Defaults()
    assert options(do_sample=True) == (0, {"do_sample": True})  # at the checkpoint's temperature
    assert options(temperature=2) == (0, {"do_sample": True, "temperature": 2.0})


def test_every_option_makes_another_job(tmp_path):
    (tmp_path / "in.jsonl").write_text("")

    def identity(**options):
        return job_identity([tmp_path / "in.jsonl"], "jsonl", Defaults(options=options))

    assert identity() == identity(max_new_tokens=128) == identity(temperature=0) == identity(temperature=None)
    own = [identity(**{name: value}) for name, (value, _) in SAID.items() if name not in SHARED]
    assert all(own.count(each) == 1 and each != identity() for each in own)


def test_what_an_engine_shares_is_refused_from_one_request(seen, tiny_processor):
    model = seen[0]
    for name in SHARED:
        request = Request(id="0", prompt="?", options={name: SAID[name][0]})
        with pytest.raises(ValueError, match=f"{name}: all requests of an engine share it"):
            prepared(model, tiny_processor, request, {})
        with pytest.raises(ValueError, match=f"{name}: all requests of an engine share it"):
            to_request(Line(0, 1, {"id": "a", "prompt": "?", "options": {name: SAID[name][0]}}), "jsonl")


def test_unknown_options_are_named(seen, tiny_processor):
    for face in (by_generate, by_chat, by_request):
        with pytest.raises(TypeError, match="unknown option 'heat': expected max_new_tokens, do_sample"):
            face(*seen, tiny_processor, {"heat": 1})
    with pytest.raises(
        ValueError, match=r"unknown option 'heat': expected max_new_tokens.*, frames, pool, start, end$"
    ):
        by_json(*seen, tiny_processor, {"heat": 1})


def test_suppressed_tokens_are_of_the_vocabulary(seen, tiny_processor):
    V = seen[0].model_config.text_config.vocab_size
    with pytest.raises(ValueError, match=f"suppress_tokens: expected ids below {V}, .* got {V}"):
        by_generate(*seen, tiny_processor, {"suppress_tokens": [3, V]})
    with pytest.raises(ValueError, match=f"logit_bias: expected ids below {V}, .* got {V}"):
        by_generate(*seen, tiny_processor, {"logit_bias": {3: 1, V: 1}})


def test_the_types_of_arrays_are_taken(seen, tiny_processor):
    said = {"max_new_tokens": np.int64(4), "do_sample": np.bool_(True), "temperature": np.float32(0.5)}
    said |= {"eos_token_id": np.array([3, 4]), "top_k": jnp.int32(3), "suppress_tokens": range(5, 8)}
    options = by_generate(*seen, tiny_processor, said)
    assert dataclasses.asdict(options) == {
        **dataclasses.asdict(GenerationOptions()), "max_new_tokens": 4, "do_sample": True, "temperature": 0.5,
        "eos_token_id": (3, 4), "top_k": 3, "suppress_tokens": (5, 6, 7), "pad_token_id": options.pad_token_id,
    }  # fmt: skip
    json.dumps(dataclasses.asdict(options))  # Python's own types


def test_the_options_of_a_command_stay_as_they_are():
    for said in ({}, {"temperature": 0}, {"temperature": 0.5, "stop_strings": "a"}, {"do_sample": True, "top_k": 3}):
        assert for_command(for_command(said)) == for_command(said)


def test_what_turns_an_option_off_is_taken_from_everybody(seen, tiny_processor):
    """vLLM's -1 for top-k; a temperature of 0 is in `test_a_temperature_decides_whether_tokens_are_drawn`."""
    for face in FACES:
        assert face(*seen, tiny_processor, {**DRAWN, "top_k": -1}).top_k == 0


# ── generate alone ──


@pytest.mark.parametrize(
    ("file", "said", "expected"),
    [
        ({}, {}, 20),
        ({"max_length": 12}, {}, 10),
        ({"max_new_tokens": 9, "max_length": 12}, {}, 9),
        ({"max_new_tokens": 9}, {"max_length": 12}, 10),
        ({"max_new_tokens": 9}, {"max_length": 12, "max_new_tokens": 7}, 7),
    ],
)
def test_the_length_of_an_answer(seen, monkeypatch, tiny_processor, file, said, expected):
    monkeypatch.setattr(seen[0], "generation_config", file)
    assert by_generate(*seen, tiny_processor, said).max_new_tokens == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"max_length": 2}, "max_length: expected more than the 2 tokens of the prompt, got 2"),
        ({"max_length": "long"}, "max_length: expected a whole number"),
        ({"num_return_sequences": 0}, "num_return_sequences: expected a whole number from 1"),
        ({"num_return_sequences": 2}, "needs do_sample=True"),
        ({"seed": [1, 2]}, "seed: expected one number or one for each of 1 rows, got 2"),
        ({"seed": [2**64]}, "seed: expected a whole number"),
        ({"stop_strings": "a", "tokenizer": None}, "stop_strings need tokenizer="),
    ],
)
def test_what_generate_alone_takes_is_checked(seen, tiny_processor, said, message):
    said = {"tokenizer": tiny_processor.tokenizer, **said}
    with pytest.raises(ValueError, match=message):
        seen[0].generate(np.array([[1, 5]]), **said)


# ── the command line ──


def test_flags_that_are_no_numbers_are_told_with_what_was_expected(capsys):
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    for flag, text, expected in (
        ("--top-k", "3.5", "expected a whole number from 0 to 2147483647, or -1, got '3.5'"),
        ("--top-p", "hot", "expected a number above 0, at most 1, got 'hot'"),
        ("--suppress-tokens", "1,b", "or a list of such, got '1,b'"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args([flag, text])
        assert f"argument {flag}: " in (said := capsys.readouterr().err)
        assert expected in said


def test_the_help_of_every_flag_says_its_range_and_default():
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    text = " ".join(parser.format_help().split())
    assert "cut the answer after this number of tokens (1 or more; default: 128)" in text
    assert "0: take the likeliest ones (0 or from 1e-06 to 1000000; default: 0)" in text
    assert "with this probability mass (above 0, at most 1; default: the checkpoint's, or 1.0)" in text
    for option in dataclasses.fields(GenerationOptions):
        assert f"--{option.name.replace('_', '-')}" in text
    assert text.count("default: ") == len(KINDS)
