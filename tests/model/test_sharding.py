"""The table of logical axes decides how arrays are sharded, and nothing else does."""

import jax
import numpy as np

from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.model.sharding import RULES, make_mesh

PROMPT = "USER: <video>\nWhat shape is it? ASSISTANT:"


def test_an_axis_without_a_row_is_whole_on_every_device(tiny_model, tiny_processor, monkeypatch):
    inputs = tiny_processor(text=PROMPT, videos=MEDIA / "rising-triangle.mp4", return_tensors="np")
    expected = tiny_model.generate(**inputs, max_new_tokens=4)
    monkeypatch.delitem(RULES, "mlp")
    jax.clear_caches()  # what was traced with the row
    model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, mesh=make_mesh(1, 2))
    layer = "language_model.layers.0"
    assert model.parameters[f"{layer}.mlp.up_proj.weight"].sharding.is_fully_replicated
    assert not model.parameters[f"{layer}.self_attn.q_proj.weight"].sharding.is_fully_replicated
    np.testing.assert_array_equal(model.generate(**inputs, max_new_tokens=4), expected)
