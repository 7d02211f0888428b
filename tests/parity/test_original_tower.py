"""The original video tower against a torch reference written from its description: time first, then space."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parity.reference import array, assert_close, channels_last
from tests.tolerances import LAYER
from videollava_jax.config import VisionConfig
from videollava_jax.model import named_parameters
from videollava_jax.vision import VisionTower

CONFIG = VisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    hidden_act="gelu",
)
FRAMES = 8


@pytest.fixture(scope="module")
def tower():
    """Ours, with every parameter stirred so that no bias or norm is trivially 0 or 1."""
    tower = VisionTower(CONFIG, temporal_frames=FRAMES, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    graph, state = nnx.split(tower)
    flat = [(p, v.replace(v[...] + 0.1 * rng.standard_normal(v.shape))) for p, v in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def reference(torch, weights, pixels):
    """Hidden states [F, 1 + patches, D] after each layer, one clip, with torch's own modules."""
    F = torch.nn.functional
    w = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}

    def norm(x, name):
        return F.layer_norm(x, (CONFIG.hidden_size,), w[f"{name}.weight"], w[f"{name}.bias"], CONFIG.layer_norm_eps)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attend(x, name):
        heads = [
            linear(x, f"{name}.{part}_proj").unflatten(-1, (CONFIG.num_attention_heads, -1)).transpose(1, 2)
            for part in "qkv"
        ]
        return linear(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2), f"{name}.out_proj")

    patches = F.conv2d(torch.tensor(pixels), w["embeddings.patch_embedding.weight"], stride=CONFIG.patch_size)
    patches = patches.flatten(2).transpose(1, 2)
    classes = w["embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([classes, patches], dim=1) + w["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm")
    hidden = [x]
    for i in range(CONFIG.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        over_time = x.transpose(0, 1) + w[f"{layer}.temporal_embedding"]  # [positions, frames, D]
        attended = attend(norm(over_time, f"{layer}.temporal_layer_norm1"), f"{layer}.temporal_attn")
        x = (over_time + attended).transpose(0, 1)
        x = x + attend(norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn")
        x = x + linear(F.gelu(linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        hidden.append(x)
    return hidden


def test_equals_the_reference_layer_by_layer(torch, tower):
    pixels = np.random.default_rng(1).standard_normal((FRAMES, 3, 28, 28)).astype(np.float32)
    for i, expected in enumerate(reference(torch, named_parameters(nnx.state(tower)), pixels)):
        assert_close(tower(channels_last(pixels), (i,)), array(expected), LAYER)


def test_sixteen_frames_are_two_clips_of_eight(tower):
    pixels = channels_last(np.random.default_rng(2).standard_normal((16, 3, 28, 28)).astype(np.float32))
    both = tower(pixels, (2,))
    assert_close(both[:8], tower(pixels[:8], (2,)), LAYER)
    assert_close(both[8:], tower(pixels[8:], (2,)), LAYER)


def test_other_counts_are_refused(tower):
    with pytest.raises(ValueError, match="multiple of 8 frames, got 12"):
        tower(jnp.zeros((12, 28, 28, 3)), (2,))


def test_temporal_parameters_are_11_a_layer():
    abstract = nnx.eval_shape(
        lambda: VisionTower(VisionConfig(), temporal_frames=FRAMES, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    temporal = {n: v for n, v in named_parameters(nnx.state(abstract)).items() if ".temporal_" in n}
    assert len(temporal) == 264
    assert sum(int(np.prod(v.shape)) for v in temporal.values()) == 101_007_360
