"""`generate` on meshes of 8 virtual devices, with beams, guesses, draws and scores: what one device gives."""

import numpy as np
import pytest

from tests.parity.reference import collate, drawn_row
from tests.small_models import on_mesh, random_model
from videollava_jax.model.sharding import make_mesh

ASKED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2}
CASES = {
    "beams": ((2, 4), BEAMS),
    "beams on one axis": ((8, 1), BEAMS),
    "beams that the host looks at": ((2, 4), {"num_beams": 2, "do_sample": True, "seed": 3, "max_time": 1000.0}),
    "draws": ((2, 4), {"do_sample": True, "num_return_sequences": 2, "seed": 1, "bad_words_ids": [[5, 7]]}),
    "guesses": ((2, 4), {"prompt_lookup_num_tokens": 3}),
}


@pytest.fixture(scope="module")
def model(tiny_model):
    return random_model(tiny_model)


@pytest.mark.parametrize("name", CASES)
def test_answers_and_scores_are_those_of_one_device(model, name):
    """4 rows with 3 beams are 12 rows of the cache, which 8 shards do not divide."""
    shape, asked = CASES[name]
    rng = np.random.default_rng(3)
    media = ["v"] if name == "guesses" else ["iv", "", "v", "i"]
    batch = collate([drawn_row(model.model_config, rng, each, frames=2) for each in media], pad=0)
    options = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": [22, 66], **ASKED, **asked}
    expected = model.generate(**batch.for_ours(), **options)
    got = on_mesh(model, make_mesh(*shape)).generate(**batch.for_ours(), **options)
    np.testing.assert_array_equal(got.sequences, expected.sequences)
    for field in ("scores", "logits"):
        for step, (one, two) in enumerate(zip(getattr(expected, field), getattr(got, field), strict=True)):
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-4, err_msg=f"{field} {step}")
