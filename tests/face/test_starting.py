"""`generate` from embeddings, and on a cache that it continues, against transformers."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.parity.reference import Batch, assert_close, batch
from tests.small_models import TEXT, array, hf_config, on_mesh, public, sharp_hf_model
from tests.tolerances import MODEL
from videollava_jax import DynamicCache
from videollava_jax.model.sharding import make_mesh

PAD = 0


@pytest.fixture(scope="module")
def pair(torch):
    """A random model of transformers with logits far apart, and ours with its weights."""
    theirs = sharp_hf_model(torch, hf_config(text={"eos_token_id": 2, "pad_token_id": PAD}), 5)
    with torch.no_grad():
        theirs.lm_head.weight.mul_(3)
    return theirs, public(theirs)


@pytest.fixture(scope="module")
def given(pair):
    return batch(pair[1].model_config, np.random.default_rng(3), ["iv", "", "v"])


def in_torch(torch, arguments):
    return {name: torch.tensor(np.asarray(value)) for name, value in arguments.items()}


@pytest.mark.filterwarnings("ignore:Passing `")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}])
def test_from_embeddings(torch, pair, given, options):
    """Answers alone; media go where the embeddings are those of placeholders."""
    theirs, ours = pair
    if "repetition_penalty" in options:
        # transformers skips as many generated tokens as a row has padding: rows without it.
        given = batch(ours.model_config, np.random.default_rng(3), ["iv"])
    arguments = given.for_ours()
    ids = arguments.pop("input_ids")
    embeds = ours.get_input_embeddings()(ids)
    asked = {"max_new_tokens": 7, "min_new_tokens": 3, **options}
    got = ours.generate(inputs_embeds=embeds, **arguments, **asked)
    media = {"pixel_values": given.images, "pixel_values_videos": given.videos}
    expected = theirs.generate(
        **in_torch(torch, {"inputs_embeds": embeds, "attention_mask": given.mask, **media}), **asked
    )
    np.testing.assert_array_equal(got, expected.numpy())
    if not options:
        with_ids = ours.generate(ids, inputs_embeds=embeds, **arguments, **asked)
        np.testing.assert_array_equal(with_ids, np.concatenate([ids, got], axis=1))
        np.testing.assert_array_equal(ours.generate(**given.for_ours(), **asked), with_ids)


def test_the_length_of_embeddings_counts(torch, pair):
    theirs, ours = pair
    embeds = ours.get_input_embeddings()(np.array([[5, 6, 7, 8]]))
    for options in ({"max_length": 9}, {"max_length": 12, "min_length": 10}):
        got = ours.generate(inputs_embeds=embeds, **options)
        expected = theirs.generate(inputs_embeds=torch.tensor(np.asarray(embeds)), **options)
        np.testing.assert_array_equal(got, expected.numpy())


def test_a_conversation_on_a_cache(torch, pair):
    """Two turns after a video, as transformers' page on caches has it: each computes what is new."""
    theirs, ours = pair
    one = batch(ours.model_config, np.random.default_rng(4), ["v"])
    rng = np.random.default_rng(5)
    cache, expected_cache = DynamicCache(config=ours.config), None
    arguments, ids = one.for_ours(), one.ids
    for turn in range(3):
        out = ours.generate(
            **{**arguments, "input_ids": ids, "attention_mask": None},
            past_key_values=cache,
            max_new_tokens=6,
            return_dict_in_generate=True,
        )
        assert out.past_key_values is out["past_key_values"] is cache
        expected = theirs.generate(
            input_ids=torch.tensor(ids),
            **({} if turn else {"pixel_values_videos": torch.tensor(one.videos)}),
            cache=expected_cache,
            max_new_tokens=6,
            return_dict_in_generate=True,
        )
        expected_cache = expected.cache
        np.testing.assert_array_equal(out.sequences, expected.sequences.numpy())
        assert cache.get_seq_length() == expected_cache.get_seq_length() == out.sequences.shape[1] - 1
        for layer, wanted in zip(cache.layers, expected_cache.layers, strict=True):
            assert_close(layer.keys, array(wanted.keys), MODEL)
            assert_close(layer.values, array(wanted.values), MODEL)
        ids = np.concatenate([out.sequences, rng.integers(3, TEXT, (1, 5))], axis=1)
    # The same without a cache.
    np.testing.assert_array_equal(
        ours.generate(ids, pixel_values_videos=one.videos, max_new_tokens=4),
        ours.generate(ids, pixel_values_videos=one.videos, max_new_tokens=4, past_key_values=cache),
    )


def test_many_questions_about_one_prefix(pair):
    """The cache of a forward pass, copied for each question; draws, beams and batches with padding too."""
    ours = pair[1]
    rng = np.random.default_rng(6)
    one = batch(ours.model_config, rng, ["iv"])
    prefix = ours(**one.for_ours()).past_key_values
    T = one.ids.shape[1]
    for options in (
        {},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "seed": 4},
    ):
        ids = np.concatenate([one.ids, rng.integers(3, TEXT, (1, 4))], axis=1)
        whole = {**one.for_ours(), "input_ids": ids, "attention_mask": None}
        past = copy.deepcopy(prefix)
        got = ours.generate(**whole, past_key_values=past, max_new_tokens=5, **options)
        np.testing.assert_array_equal(got, ours.generate(**whole, max_new_tokens=5, **options))
        assert past.get_seq_length() == (T + 4 if options else got.shape[1] - 1)
        assert prefix.get_seq_length() == T
    rows = batch(ours.model_config, rng, ["v", "", "i"])
    cache = ours(**rows.for_ours()).past_key_values
    longer = Batch(
        np.concatenate([rows.ids, rng.integers(3, TEXT, (3, 3))], axis=1),
        np.pad(rows.mask, ((0, 0), (0, 3)), constant_values=1),
        rows.images,
        rows.videos,
    )
    got = ours.generate(**longer.for_ours(), cache=cache, max_new_tokens=5, eos_token_id=[])
    np.testing.assert_array_equal(got, ours.generate(**longer.for_ours(), max_new_tokens=5, eos_token_id=[]))
    # A pass on the cache of the answers sees what a pass over everything sees.
    mask = np.pad(longer.mask, ((0, 0), (0, 5)), constant_values=1)
    step = ours(got[:, -1:], mask, past_key_values=cache).logits
    everything = ours(**{**longer.for_ours(), "input_ids": got, "attention_mask": mask}, logits_to_keep=1).logits
    assert_close(step, everything, MODEL)


def test_both_on_a_mesh(pair):
    one, mesh = pair[1], on_mesh(pair[1], make_mesh(1, 2))
    ids = np.random.default_rng(7).integers(3, TEXT, (2, 9))
    expected = one.generate(ids, max_new_tokens=4)
    cache = mesh(ids[:, :5]).past_key_values
    np.testing.assert_array_equal(mesh.generate(ids, past_key_values=cache, max_new_tokens=4), expected)
    assert cache.get_seq_length() == expected.shape[1] - 1
    embeds = one.get_input_embeddings()(ids)
    np.testing.assert_array_equal(mesh.generate(inputs_embeds=embeds, max_new_tokens=4), expected[:, 9:])


REFUSED = [
    ({"past_key_values": ((1, 2),)}, r"past_key_values of an earlier call .* got builtins.tuple"),
    ({"past_key_values": 2}, "got builtins.int"),
    (
        {"past_key_values": "longer"},
        "a cache of 1 rows and fewer than 3 tokens, the first ones of input_ids, got 1 rows of 5",
    ),
    ({"past_key_values": "rows"}, "got 2 rows of 2"),
    ({"past_key_values": "rows", "cache": "rows"}, "names of one thing"),
    ({"inputs_embeds": np.ones((1, 3, 7))}, r"inputs_embeds: expected floats \[batch, tokens, 32\]"),
    ({"inputs_embeds": np.ones((1, 4, 32))}, r"the shape of inputs_embeds \[1, 4\], got \[1, 3\]"),
    ({"inputs_embeds": np.ones((1, 3, 32)), "past_key_values": 1}, "expected input_ids with a cache"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_by_name(pair, number):
    options, words = REFUSED[number]
    ours = pair[1]
    caches = {"longer": np.array([[3, 4, 5, 6, 7]]), "rows": np.array([[3, 4], [5, 6]])}
    given = {
        name: ours(caches[value]).past_key_values if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises(ValueError, match=words):
        ours.generate(np.array([[3, 4, 5]]), max_new_tokens=2, **given)
    with pytest.raises(ValueError, match="expected the tokens of prompts"):
        ours.generate(past_key_values=DynamicCache())
