"""Every field of transformers' GenerationConfig is honoured, accepted or refused by name: none is dropped."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import GenerationConfig

from videollava_jax import Engine, Request, VideoLlavaForConditionalGeneration
from videollava_jax.generation.call_options import CallOptions, treatment
from videollava_jax.generation.chat import Chat
from videollava_jax.generation.fields import ACCEPTED, FACE_ARGUMENTS, REFUSED, SEARCH_KINDS, SearchOptions
from videollava_jax.generation.options import GenerationOptions, from_json

NO_FIELDS = {"seed", "frequency_penalty", "presence_penalty", "logit_bias"}
"""Options of ours that transformers has no field for."""
ASKING = {
    "use_mtp": True,
    "cache_implementation": "offloaded",
    "cache_config": {"nbits": 4},
    "token_healing": True,
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.0},
    "is_assistant": True,
    "assistant_early_exit": 4,
    "speculation_type": "dflash",
    "continuous_batching_config": {"a": 1},
    "low_memory": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "constraints": [1],
    "force_words_ids": [[5]],
    "prefix_allowed_tokens_fn": len,
    "synced_gpus": True,
    "assistant_model": object(),
    "assistant_tokenizer": object(),
    "negative_prompt_ids": np.ones((1, 2)),
    "negative_prompt_attention_mask": np.ones((1, 2)),
    "custom_generate": "repo",
    "trust_remote_code": True,
    "logits_to_keep": 5,
    "use_model_defaults": False,
}
"""A value of each refused name that asks for something."""


def resolved(model, given, file=None, of_call=None):
    return CallOptions.resolve(given, of_call, file or {}, model.model_config, 3)


def test_every_field_of_transformers_has_its_treatment():
    fields = set(vars(GenerationConfig()))
    unknown = sorted(name for name in fields if treatment(name) == "unknown")
    assert not unknown, f"transformers has fields that fields.py does not know: {unknown}"
    ours = {*GenerationOptions.__dataclass_fields__, *SEARCH_KINDS, *ACCEPTED, *REFUSED}
    assert ours - fields == NO_FIELDS
    parts = [set(SEARCH_KINDS), set(ACCEPTED), set(REFUSED), set(GenerationOptions.__dataclass_fields__)]
    assert sum(map(len, parts)) == len(set.union(*parts)), "a field stands in one table"


SHOWN = {
    "everywhere": "honoured everywhere",
    "generate": "honoured",
    "accepted": "accepted",
    "refused": "refused",
}


def test_the_page_has_a_row_for_every_field():
    text = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", text, flags=re.MULTILINE))
    fields = set(vars(GenerationConfig()))
    assert fields <= rows.keys()
    assert rows == {name: SHOWN[treatment(name)] for name in rows}


def test_every_argument_of_transformers_generate_is_known(torch):
    from transformers import GenerationMixin

    theirs = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    ours = set(inspect.signature(VideoLlavaForConditionalGeneration.generate).parameters)
    assert theirs - ours - {"logits_processor", "stopping_criteria"} <= FACE_ARGUMENTS.keys()


@pytest.mark.parametrize("name", sorted({*REFUSED, *FACE_ARGUMENTS}))
def test_what_is_not_done_is_refused_by_name_wherever_it_stands(tiny_model, name):
    value, instead = ASKING[name], {**REFUSED, **FACE_ARGUMENTS}[name].instead
    for given, file, of_call in (({name: value}, {}, None), ({}, {name: value}, None), ({}, {}, {name: value})):
        with pytest.raises(ValueError, match=name) as refused:
            resolved(tiny_model, given, file, {"max_new_tokens": 3, **of_call} if of_call else None)
        assert instead in str(refused.value)
        assert ("generation_config.json" in str(refused.value)) is bool(file)
    with pytest.raises(ValueError, match=name):
        GenerationOptions.resolve({}, {name: value}, tiny_model.model_config)


def test_what_asks_for_nothing_is_accepted(tiny_model):
    """transformers' defaults, neutral values and whatever changes no answer; also over a checkpoint that asks."""
    plain = resolved(tiny_model, {})
    defaults = {**GenerationConfig._get_default_generation_params(), "max_length": None}
    neutral = {name: refused.neutral[0] for name, refused in {**REFUSED, **FACE_ARGUMENTS}.items() if refused.neutral}
    accepted = {name: ["any value"] for name in ACCEPTED}
    for given in (defaults, neutral, accepted, dict.fromkeys([*SEARCH_KINDS, *REFUSED, *ACCEPTED, *FACE_ARGUMENTS])):
        assert resolved(tiny_model, given) == plain
        assert resolved(tiny_model, {}, given) == plain
        assert resolved(tiny_model, given, {n: ASKING[n] for n in given if n in REFUSED}) == plain
    assert resolved(tiny_model, {}, {}, GenerationConfig()) == plain


def test_none_as_an_argument_turns_an_option_off(tiny_model):
    """As in transformers, where it comes behind the checkpoint's value; a generation_config without it does not."""
    file = {"top_k": 7, "temperature": 0.5, "do_sample": True, "eos_token_id": 9, "repetition_penalty": 1.5}
    off = resolved(tiny_model, dict.fromkeys(file), file).every
    assert (off.top_k, off.temperature, off.do_sample, off.eos_token_id) == (0, 1.0, False, ())
    assert off.repetition_penalty == 1.0
    assert resolved(tiny_model, {}, file, GenerationConfig()).every.top_k == 7
    assert resolved(tiny_model, {"top_k": 3}, file, GenerationConfig(top_k=5)).every.top_k == 3
    assert resolved(tiny_model, {}, file, GenerationConfig(top_k=5)).every.top_k == 5


def test_chats_requests_and_jobs_refuse_what_generate_alone_honours(tiny_model, tiny_processor):
    for found in ({"num_beams": 4}, {"min_new_tokens": 3}, {"bad_words_ids": [[5]]}, {"sequence_bias": {(5,): 1.0}}):
        (name,) = found
        with pytest.raises(ValueError, match=f"generation_config.json: {name}=.* is honoured by model.generate alone"):
            GenerationOptions.resolve({}, found, tiny_model.model_config)
        with pytest.raises(ValueError, match=f"^{name}=.* is honoured by model.generate alone"):
            Chat(tiny_model, tiny_processor).ask("?", **found)
        request = Request(id="a", prompt="USER: ? ASSISTANT:", options=found)
        (result,) = Engine(tiny_model, tiny_processor).run([request])
        assert f"{name}=" in result.error
        if name != "sequence_bias":
            with pytest.raises(ValueError, match=f"^{name}="):
                from_json(found)
    neutral = {"num_beams": 1, "use_cache": True, "min_new_tokens": 0, "length_penalty": 2.0}
    assert from_json({"top_k": 3, **neutral}) == {"top_k": 3}
    plain = GenerationOptions.resolve({}, {}, tiny_model.model_config)
    assert GenerationOptions.resolve(neutral, {"num_beams": 4, "max_length": 4096}, tiny_model.model_config) == plain


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_beams", 0, "a whole number from 1"),
        ("num_beams", 2.0, "a whole number from 1"),
        ("bad_words_ids", [5], "a list of lists of token ids"),
        ("bad_words_ids", [[]], "a list of lists of token ids"),
        ("bad_words_ids", [[5, 10**6]], "ids below"),
        ("sequence_bias", {(): 1.0}, "biases by sequence"),
        ("sequence_bias", {(5,): "high"}, "biases by sequence"),
        ("sequence_bias", "5", "biases by sequence"),
        ("exponential_decay_length_penalty", 3, "a pair"),
        ("early_stopping", "soon", 'true, false or "never"'),
        ("min_p", 1.5, "a number from 0 to 1"),
        ("top_h", 0, "a number above 0"),
        ("forced_eos_token_id", 10**6, "ids below"),
        ("begin_suppress_tokens", [-1], "a whole number"),
    ],
)
def test_values_that_make_no_sense_are_named(tiny_model, name, value, expected):
    with pytest.raises(ValueError, match=f"^{name}: expected ({expected})"):
        resolved(tiny_model, {name: value})


def test_both_forms_of_a_bias_are_one():
    pairs = SearchOptions.of({"sequence_bias": [[[5], 1.0], [[6, 7], -2.0]]})
    assert pairs == SearchOptions.of({"sequence_bias": {(5,): 1.0, (6, 7): -2.0}})
