"""What `generate` returns besides tokens, against transformers: hidden states, attentions, scores of the tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.reference import assert_close, batch
from tests.small_models import array, hf_config, public, sharp_hf_model
from tests.tolerances import MODEL

ASKED = {"max_new_tokens": 5, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def pair(torch):
    theirs = sharp_hf_model(torch, hf_config(text={"eos_token_id": 2, "pad_token_id": 0}), 5)
    theirs.set_attn_implementation("eager")
    return theirs, public(theirs)


@pytest.fixture(scope="module")
def given(pair):
    return batch(pair[1].model_config, np.random.default_rng(3), ["iv", "", "v"])


@pytest.mark.parametrize("end", [[], None])
def test_every_layer_of_every_step(torch, pair, given, end):
    """Also of rows that have ended, which transformers goes on to compute with padding."""
    theirs, ours = pair
    if end is None:  # a token that one row soon writes
        end = int(ours.generate(**given.for_ours(), max_new_tokens=2, eos_token_id=[])[1, -1])
    options = {**ASKED, "output_hidden_states": True, "output_attentions": True, "eos_token_id": end}
    got = ours.generate(**given.for_ours(), **options)
    expected = theirs.generate(**given.for_torch(torch), **options)
    np.testing.assert_array_equal(got.sequences, expected.sequences.numpy())
    assert list(got) == ["sequences", "attentions", "hidden_states"]
    held = given.mask == 1
    steps = got.sequences.shape[1] - given.ids.shape[1]
    assert len(got.hidden_states) == len(expected.hidden_states) == len(got.attentions) == steps
    for step in range(steps):
        assert len(got.hidden_states[step]) == len(expected.hidden_states[step]) == 3
        for ours_BTD, theirs_BTD in zip(got.hidden_states[step], expected.hidden_states[step], strict=True):
            theirs_BTD = array(theirs_BTD)
            assert ours_BTD.shape == theirs_BTD.shape
            assert_close(*((ours_BTD, theirs_BTD) if step else (ours_BTD[held], theirs_BTD[held])), MODEL)
        for weights, wanted in zip(got.attentions[step], expected.attentions[step], strict=True):
            weights, wanted = np.moveaxis(weights, 1, 2), np.moveaxis(array(wanted), 1, 2)
            assert weights.shape == wanted.shape
            assert_close(*((weights, wanted) if step else (weights[held], wanted[held])), MODEL)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_of_the_tokens(torch, pair, given, options, normalize):
    theirs, ours = pair
    options = {**ASKED, "output_scores": True, **options}
    got = ours.generate(**given.for_ours(), **options)
    expected = theirs.generate(**given.for_torch(torch), **options)
    found = ours.compute_transition_scores(got.sequences, got.scores, got.beam_indices, normalize_logits=normalize)
    wanted = theirs.compute_transition_scores(
        expected.sequences, expected.scores, expected.get("beam_indices"), normalize_logits=normalize
    )
    assert_close(found, array(wanted), MODEL)
    with pytest.raises(ValueError, match="scores: expected those of"):
        ours.compute_transition_scores(got.sequences, None)
    with pytest.raises(ValueError, match="scores: expected those of"):
        ours.compute_transition_scores(np.concatenate([got.sequences] * 4), got.scores)


def test_items_of_the_result(pair):
    out = pair[1].generate(np.array([[3, 4]]), output_scores=True, **ASKED)
    assert list(out.keys()) == list(out) == ["sequences", "scores"]
    assert out.get("logits") is None
    assert "scores" in out
    assert len(out) == len(out.to_tuple()) == 2
    assert out[0] is out["sequences"] is out.sequences


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}, {"inputs_embeds": np.ones((1, 2, 32))}],
)
def test_refused_by_name(pair, options):
    with pytest.raises(ValueError, match="expected one answer to each prompt, and neither inputs_embeds nor"):
        pair[1].generate(np.array([[3, 4]]), output_hidden_states=True, **ASKED, **options)
