"""`forward` against transformers: hidden states, attentions, embeddings, positions, and a cache in and out."""

from __future__ import annotations

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reference import assert_close, batch
from tests.small_models import IMAGE, TEXT, VIDEO, array, hf_config, public, sharp_hf_model
from tests.tolerances import MODEL, SELF
from videollava_jax import DynamicCache, VideoLlavaForConditionalGeneration

MEDIA = ["iv", "v", "", "i"]


@pytest.fixture(scope="module")
def pair(torch):
    """A random model of transformers that returns attentions, and ours with its weights."""
    theirs = sharp_hf_model(torch, hf_config())
    theirs.set_attn_implementation("eager")
    return theirs, public(theirs)


@pytest.fixture(scope="module")
def given(pair):
    return batch(pair[1].model_config, np.random.default_rng(0), MEDIA)


def call(torch, pair, ours, **theirs):
    """The outputs of both for arguments of ours; `theirs` are those that differ in type."""
    arguments = {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in ours.items()}
    arguments |= theirs
    if "pixel_values_images" in arguments:
        arguments["pixel_values"] = arguments.pop("pixel_values_images")
    arguments.pop("past_key_values", None)  # its older name, which warns
    with torch.no_grad():
        return pair[0](**arguments), pair[1](**ours)


def compare(got, expected, mask=None):
    """Compares tokens; what stands at padding is nobody's."""
    found, wanted = np.asarray(got), array(expected)
    assert found.shape == wanted.shape
    held = slice(None) if mask is None else np.asarray(mask, bool)
    assert_close(found[held], wanted[held], MODEL)


def test_everything_that_a_pass_gives(torch, pair, given):
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected, got = call(torch, pair, {**given.for_ours(), **asked})
    compare(got.logits, expected.logits, given.mask)
    assert len(got.hidden_states) == len(expected.hidden_states) == 3
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        compare(ours, theirs, given.mask)
    assert len(got.attentions) == len(expected.attentions) == 2
    for ours, theirs in zip(got.attentions, expected.attentions, strict=True):
        compare(jnp.swapaxes(ours, 1, 2), theirs.transpose(1, 2), given.mask)
    compare(got.image_hidden_states, expected.image_hidden_states)
    compare(got.video_hidden_states, expected.video_hidden_states)
    assert [name for name in got if "hidden_states_" not in name] == [
        *("logits", "past_key_values", "hidden_states", "attentions", "image_hidden_states", "video_hidden_states")
    ]
    assert list(got)[:4] == [{"cache": "past_key_values"}.get(name, name) for name in expected][:4]
    for ours, theirs in zip(got.past_key_values.layers, expected.cache.layers, strict=True):
        compare(jnp.moveaxis(ours.keys, 2, 1), theirs.keys.transpose(1, 2), given.mask)
        compare(jnp.moveaxis(ours.values, 2, 1), theirs.values.transpose(1, 2), given.mask)


def test_a_long_pass_in_pieces(torch, pair, given):
    """Media first, then more text, then token by token over the growth of the cache: each as in transformers."""
    rng = np.random.default_rng(1)
    B, _T = given.ids.shape
    pieces = [rng.integers(3, TEXT, (B, length)) for length in (5, 1, 1, 40, 1)]
    mask = given.mask
    first = {**given.for_ours(), "use_cache": True}
    expected, got = call(torch, pair, first)
    theirs, ours = expected.cache, got.past_key_values
    logits = [got.logits]
    for piece in pieces:
        mask = np.concatenate([mask, np.ones_like(piece)], axis=1)
        expected, got = call(
            torch,
            pair,
            {"input_ids": piece, "attention_mask": mask, "past_key_values": ours},
            cache=theirs,
        )
        compare(got.logits, expected.logits)
        assert got.past_key_values is got["cache"] is ours
        assert ours.get_seq_length() == theirs.get_seq_length() == mask.shape[1]
        logits.append(got.logits)
    whole = {**given.for_ours(), "input_ids": np.concatenate([given.ids, *pieces], axis=1), "attention_mask": mask}
    once = pair[1](**whole, use_cache=False)
    assert once.past_key_values is None
    assert_close(jnp.concatenate(logits, axis=1)[mask == 1], once.logits[mask == 1], 3 * SELF)


def test_a_cache_grows_and_is_cut_back(pair):
    """Past its first 256 positions, and from a copy; without a mask, the padding of earlier calls stays padding."""
    model = pair[1]
    ids = np.random.default_rng(2).integers(3, TEXT, (2, 300))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    cache = DynamicCache(config=model.config)
    model(ids[:, :250], mask[:, :250], past_key_values=cache)
    kept = copy.deepcopy(cache)
    rest = model(ids[:, 250:], past_key_values=cache).logits
    whole = model(ids, mask, use_cache=False).logits
    assert_close(rest, whole[:, 250:], 3 * SELF)
    assert (cache.get_seq_length(), kept.get_seq_length(), len(kept)) == (300, 250, 2)
    kept.crop(-10)
    assert_close(model(ids[:, 240:], mask, past_key_values=kept).logits, whole[:, 240:], 3 * SELF)
    kept.batch_select_indices([1, 1])
    kept.crop(299)
    assert_close(model(ids[[1, 1], 299:], past_key_values=kept).logits, whole[[1, 1], 299:], 3 * SELF)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not cache.is_initialized
    model(ids[:1, :4], past_key_values=cache)
    cache.batch_repeat_interleave(3)
    assert cache.max_batch_size == 3
    assert cache[1][0].shape == (3, 2, 4, 8)


def test_embeddings_instead_of_ids(torch, pair, given):
    """Media go where an embedding is that of a placeholder; features that are in place already stay."""
    _theirs, model = pair
    arguments = given.for_ours()
    ids = arguments.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    expected, got = call(torch, pair, {**arguments, "inputs_embeds": np.asarray(embeds)})
    compare(got.logits, expected.logits, given.mask)
    merged = embeds
    for token, pixels, features in (
        (IMAGE, given.images, model.get_image_features),
        (VIDEO, given.videos, model.get_video_features),
    ):
        merged = merged.at[ids == token].set(features(pixels).pooler_output.reshape(-1, merged.shape[-1]))
    again = model(inputs_embeds=merged, attention_mask=given.mask)
    assert_close(again.logits[given.mask == 1], got.logits[given.mask == 1], SELF)
    assert again.image_hidden_states is None


def test_positions(torch, pair, given):
    """Given ones, and without any those of transformers: padding inside a row has a position too."""
    ids, rng = np.random.default_rng(3).integers(3, TEXT, (2, 9)), np.random.default_rng(4)
    for positions in (np.arange(9)[None] * 2, np.sort(rng.integers(0, 50, (2, 9)))):
        compare(*[out.logits for out in call(torch, pair, {"input_ids": ids, "position_ids": positions})][::-1])
    mask = np.ones_like(ids)
    mask[:, 3:6] = 0
    expected, got = call(torch, pair, {"input_ids": ids, "attention_mask": mask})
    compare(got.logits, expected.logits, mask)


def test_logits_to_keep_and_labels(torch, pair):
    ids = np.random.default_rng(5).integers(3, TEXT, (2, 9))
    labels = np.where(ids % 3 == 0, -100, ids)
    for keep in (0, 1, 3, np.array([2, 5, -1])):
        expected, got = call(torch, pair, {"input_ids": ids, "logits_to_keep": keep})
        compare(got.logits, expected.logits)
    expected, got = call(torch, pair, {"input_ids": ids, "labels": labels})
    assert_close(got.loss, expected.loss, MODEL)
    assert pair[1](ids, labels=labels, logits_to_keep=2).logits.shape[1] == 2


def test_other_hidden_states_of_the_towers(torch, pair, given):
    asked = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
    expected, got = call(torch, pair, {**given.for_ours(), **asked})
    compare(got.logits, expected.logits, given.mask)
    assert np.abs(got.logits - pair[1](**given.for_ours()).logits)[given.mask == 1].max() > 100 * MODEL
    full = pair[1].get_image_features(given.images, vision_feature_select_strategy="full").pooler_output
    with torch.no_grad():
        found = pair[0].get_image_features(torch.tensor(given.images), vision_feature_select_strategy="full")
    compare(full, found.pooler_output)


def test_a_cache_on_a_mesh(pair):
    from tests.small_models import on_mesh
    from videollava_jax.model.sharding import make_mesh

    one, mesh = pair[1], on_mesh(pair[1], make_mesh(1, 2))
    ids = np.random.default_rng(6).integers(3, TEXT, (2, 12))
    asked = {"output_hidden_states": True, "output_attentions": True}
    past = mesh(inputs_embeds=one.get_input_embeddings()(ids[:, :8]), **asked).past_key_values
    got, expected = mesh(ids[:, 8:], past_key_values=past, **asked), one(ids, **asked)
    assert_close(got.logits, expected.logits[:, 8:], 3 * SELF)
    assert_close(got.attentions[1], expected.attentions[1][:, :, 8:], 3 * SELF)
    assert_close(got.hidden_states[1], expected.hidden_states[1][:, 8:], 3 * SELF)


REFUSED = [
    (lambda model, ids: model(), "either input_ids or inputs_embeds, got neither"),
    (lambda model, ids: model(ids, inputs_embeds=np.ones((1, 3, 32))), "got both"),
    (
        lambda model, ids: model(inputs_embeds=np.ones((1, 3, 7))),
        r"inputs_embeds: expected floats \[batch, tokens, 32\]",
    ),
    (lambda model, ids: model(inputs_embeds=[[3, 4]]), "inputs_embeds: expected floats"),
    (lambda model, ids: model(ids, past_key_values=[]), "past_key_values of an earlier call .* got builtins.list"),
    (lambda model, ids: model(ids, past_key_values=model(ids[:1])[1]), "a cache of 2 rows, .* got 1"),
    (lambda model, ids: model(ids, ids, past_key_values=model(ids)[1]), r"shape of past and new tokens \[2, 6\]"),
    (lambda model, ids: model(ids, cache=1, past_key_values=1), "names of one thing"),
    (lambda model, ids: model(ids, position_ids=ids[:, :2]), r"position_ids: expected integers from 0 on \[2, 3\]"),
    (lambda model, ids: model(ids, position_ids=-ids), "position_ids"),
    (lambda model, ids: model(ids, logits_to_keep=[3]), "indices of the 3 tokens"),
    (lambda model, ids: model(ids, logits_to_keep="all"), "logits_to_keep: expected a number"),
    (lambda model, ids: model(ids, labels=ids[:, 1:]), r"labels: expected integers \[2, 3\]"),
    (lambda model, ids: model(ids, labels=ids + 95), r"labels: expected ids in 0..98"),
    (lambda model, ids: model(ids, vision_feature_layer=[-1, -2]), "as many as the projector was made for"),
    (lambda model, ids: model(ids, vision_feature_layer=9), "not one of the 4 hidden states"),
    (lambda model, ids: model(ids, vision_feature_select_strategy="cls"), "vision_feature_select_strategy"),
    (
        lambda model, ids: model.get_image_features(np.ones((1, 3, 5, 5))),
        r"pixel_values_images: expected \[N, 3, 28, 28\]",
    ),
    (lambda model, ids: model.get_image_features(), "pixel_values_images: expected"),
    (lambda model, ids: model.get_video_features(np.ones((1, 3, 28, 28))), "pixel_values_videos: expected"),
    (lambda model, ids: DynamicCache(offloading=True), "offloading is not supported"),
    (lambda model, ids: model(ids)[1].batch_select_indices([2]), "rows of a cache of 2"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_by_name(pair, number):
    given, words = REFUSED[number]
    with pytest.raises(ValueError, match=words):
        given(pair[1], np.array([[3, 4, 5], [6, 7, 8]]))


def test_a_call_that_fails_leaves_an_empty_cache(pair, monkeypatch):
    """Its arrays were donated: what is left of them must not be read."""
    model, ids = pair[1], np.array([[3, 4, 5]])
    cache = model(ids).past_key_values
    monkeypatch.setattr("videollava_jax.face.forward.forward_pass", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 0
    assert not cache.is_initialized


def test_nothing_is_cached_where_the_configuration_says_so(pair):
    theirs = pair[0]
    model = VideoLlavaForConditionalGeneration(copy.deepcopy(theirs.config), dict(pair[1].parameters))
    assert model(np.array([[3, 4]])).past_key_values is not None
    model.config.use_cache, model.config.output_hidden_states = False, True
    out = model(np.array([[3, 4]]))
    assert out.past_key_values is None
    assert len(out.hidden_states) == 3
    assert model(np.array([[3, 4]]), use_cache=True).past_key_values.get_seq_length() == 2
