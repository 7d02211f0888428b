"""Compares the logits of one prompt with transformers', for the same full-size weights, in float32, in little memory.

    python benchmarks/random_checkpoint.py out/7b
    videollava convert out/7b out/7b-orbax
    python benchmarks/logits_full_size.py out/7b out/7b-orbax

In float32 a 7B model does not fit into 24 GiB. Towers, projector, embedding and head do; the decoder's layers are read,
run and freed one after the other, transformers' from safetensors and ours from Orbax. Needs torch. The prompt is text,
an image, text, a clip of two frames, text.
"""

import argparse
import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.config import ModelConfig
from videollava_jax.generation.comparing import fixed_inputs
from videollava_jax.weights import Checkpoint, open_checkpoint
from videollava_jax.weights.source import Source

FRAMES = 2


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hub", type=Path, help="the checkpoint in the hub's layout")
    parser.add_argument("orbax", type=Path, help="the checkpoint converted from it")
    arguments = parser.parse_args()
    config = ModelConfig.from_hf(arguments.hub)
    inputs = fixed_inputs(dataclasses.replace(config, temporal_frames=FRAMES))
    print(f"{inputs['input_ids'].shape[1]} tokens, {config.text_config.num_hidden_layers} layers")

    ours = timed("ours", lambda: our_logits(open_checkpoint(arguments.orbax), inputs))
    theirs = timed("transformers", lambda: their_logits(arguments.hub, config, inputs))

    apart = np.abs(ours - theirs)
    print(f"largest logit {np.abs(theirs).max():.3f}, standard deviation {theirs.std():.3f}")
    print(f"largest difference {apart.max():.2e}, mean {apart.mean():.2e}")
    same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    print(f"the most likely token is the same at {same:.2%} of the positions")


def our_logits(checkpoint: Checkpoint, inputs: dict[str, Any]) -> np.ndarray:
    """Computes our logits, float32 [T, V]."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from videollava_jax.model.decoder import LlamaLayer, positions_of
    from videollava_jax.model.video_llava import abstract_model, named_parameters, with_parameters

    jax.config.update("jax_default_matmul_precision", "highest")
    config = checkpoint.config

    def read(name: str) -> jax.Array:
        return jnp.asarray(checkpoint.tensors[name].read(), jnp.float32)

    # 1. All but the decoder's layers.
    without = dataclasses.replace(config, text_config=dataclasses.replace(config.text_config, num_hidden_layers=0))
    graph, state = nnx.split(abstract_model(without))
    model = nnx.merge(graph, with_parameters(state, {name: read(name) for name in named_parameters(state)}))
    images = model.encode_images(jnp.moveaxis(jnp.asarray(inputs["pixel_values_images"]), 1, -1))
    videos = model.encode_videos(jnp.moveaxis(jnp.asarray(inputs["pixel_values_videos"]), 2, -1))
    ids = jnp.asarray(inputs["input_ids"], jnp.int32)
    hidden = model.embed(ids, images, videos)

    # 2. One layer after the other.
    positions = positions_of(jnp.ones(ids.shape, bool))
    layer_graph, layer_state = nnx.split(
        nnx.eval_shape(lambda: LlamaLayer(config.text_config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    )

    @jax.jit
    def run(state: Any, hidden: jax.Array) -> jax.Array:
        out, _ = nnx.merge(layer_graph, state)(hidden, positions)
        return out

    for i in range(config.text_config.num_hidden_layers):
        names = named_parameters(layer_state)
        weights = {name: read(f"language_model.layers.{i}.{name}") for name in names}
        hidden = run(with_parameters(layer_state, weights), hidden)

    # 3. The head.
    return np.asarray(model.logits(model.language_model.norm(hidden)))[0]


def their_logits(directory: Path, config: ModelConfig, inputs: dict[str, Any]) -> np.ndarray:
    """Computes transformers' logits, float32 [T, V]."""
    import torch
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig
    from transformers import VideoLlavaForConditionalGeneration
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    tensors = Source.open(directory).stored

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[name].read().astype(np.float32))

    # 1. All but the decoder's layers.
    hf = HFVideoLlavaConfig.from_dict(config.to_hf())
    hf.text_config.num_hidden_layers = 0
    with torch.device("meta"):
        model = VideoLlavaForConditionalGeneration(hf)
    weights = {}
    for name in model.state_dict():
        stored = name.removeprefix("model.").replace("_tower.", "_tower.vision_model.")
        stored = stored.replace("language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
        weights[name] = read(stored)
    model.load_state_dict(weights, assign=True)
    model.eval()
    for tower in (model.model.image_tower, model.model.video_tower):  # buffers are computed, not loaded
        tower.embeddings.position_ids = torch.arange(config.vision_config.num_patches + 1)[None]
    ids = torch.from_numpy(inputs["input_ids"])
    with torch.no_grad():
        images = model.model.get_image_features(torch.from_numpy(inputs["pixel_values_images"]))
        videos = model.model.get_video_features(torch.from_numpy(inputs["pixel_values_videos"]))
        hidden = model.model.get_input_embeddings()(ids)
        for token, features in ((config.image_token_id, images), (config.video_token_id, videos)):
            flat = as_tensor(features).reshape(-1, hidden.shape[-1])
            hidden = hidden.masked_scatter((ids == token)[..., None].expand_as(hidden), flat)

        # 2. One layer after the other.
        T = ids.shape[1]
        positions = torch.arange(T)[None]
        rotary = type(model.model.language_model.rotary_emb)(hf.text_config)  # its buffers, not on meta
        cos_sin = rotary(hidden, positions)
        mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
        for i in range(config.text_config.num_hidden_layers):
            with torch.device("meta"):
                layer = LlamaDecoderLayer(hf.text_config, 0)
            prefix = f"language_model.model.layers.{i}."
            layer.load_state_dict({name: read(prefix + name) for name in layer.state_dict()}, assign=True)
            out = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=cos_sin)
            hidden = out[0] if isinstance(out, tuple) else out

        # 3. The head.
        return model.lm_head(model.model.language_model.norm(hidden))[0].numpy()


def as_tensor(features: Any) -> Any:
    """Returns features as one tensor; transformers gives a tensor, a list of tensors, or an output object."""
    import torch

    features = getattr(features, "pooler_output", features)
    return torch.cat(list(features)) if isinstance(features, (list, tuple)) else features


def timed(title: str, run: Callable[[], np.ndarray]) -> np.ndarray:
    """Runs a function and prints its time and the peak memory."""
    started = time.perf_counter()
    result = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{title}: {time.perf_counter() - started:.0f} s, peak memory so far {peak:.1f} GiB", flush=True)
    return result


if __name__ == "__main__":
    main()
