"""Values that make no sense, given as every argument of the model: an error that names it, never one from the inside."""

from __future__ import annotations

import pathlib
import traceback

import numpy as np
import pytest

from videollava_jax import DynamicCache, VideoLlavaForConditionalGeneration, VideoLlavaModel
from videollava_jax.assets import TINY

THREE = 3  # a size that a vocabulary may have
IDS = np.array([[1, 5, 6]])
VALUES = [
    *("x", THREE, -1, 1.5, float("nan"), True, b"", [], {}, [None], [[1, 2], [3]], [["a", "b", "c"]], set(), range(3)),
    *(
        object(),
        len,
        DynamicCache,
        pathlib.Path("x"),
        np.array("a"),
        np.array(None),
        np.ones(3),
        np.ones((1, 3), complex),
    ),
    *(np.ones((1, 3)), np.array([[2**40] * 3]), np.ones((1, 3, 128), np.float32), np.ones((1, 3, 56, 56), np.float32)),
]
FORWARD = [
    "attention_mask",
    "pixel_values_images",
    "pixel_values_videos",
    "labels",
    "inputs_embeds",
    "position_ids",
    "past_key_values",
    "cache",
    "use_cache",
    "logits_to_keep",
    "video_pooling",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "mm_encoder_outputs",
]
GENERATE = [
    "attention_mask",
    "pixel_values_images",
    "pixel_values_videos",
    "inputs_embeds",
    "past_key_values",
    "generation_config",
    "seed",
    "streamer",
    "output_hidden_states",
]


def calls():
    """Every argument: a name, and a function of the model and a value."""
    for name in FORWARD:
        yield f"model({name})", lambda m, v, name=name: m(IDS, **{name: v})
    for name in GENERATE:
        yield f"generate({name})", lambda m, v, name=name: m.generate(IDS, max_new_tokens=1, **{name: v})
    one = {
        "model": lambda m, v: m(v),
        "model.model": lambda m, v: m.model(v),
        "generate": lambda m, v: m.generate(v, max_new_tokens=1),
        "resize_token_embeddings": lambda m, v: None if v is THREE else m.resize_token_embeddings(v),
        "pad_to_multiple_of": lambda m, v: None if v is THREE else m.resize_token_embeddings(pad_to_multiple_of=v),
        "set_input_embeddings": lambda m, v: m.set_input_embeddings(v),
        "load_state_dict": lambda m, v: m.load_state_dict(v),
        "a parameter": lambda m, v: m.load_state_dict({"lm_head.weight": v}, strict=False),
        "get_image_features": lambda m, v: m.get_image_features(v),
        "get_video_features": lambda m, v: m.get_video_features(v),
        "multi_modal_projector": lambda m, v: m.multi_modal_projector(v),
        "image_tower": lambda m, v: m.image_tower(v),
        "embedding": lambda m, v: m.get_input_embeddings()(v),
        "language_model": lambda m, v: m.language_model(inputs_embeds=v),
        "lm_head": lambda m, v: m.lm_head(v),
        "items of a weight": lambda m, v: m.multi_modal_projector.linear_1.bias.data.__setitem__(v, v),
        "crop": lambda m, v: DynamicCache().crop(v),
        "batch_repeat_interleave": lambda m, v: DynamicCache().batch_repeat_interleave(v),
        "batch_select_indices": lambda m, v: DynamicCache().batch_select_indices(v),
        "DynamicCache": lambda m, v: DynamicCache(v),
        "compute_transition_scores": lambda m, v: m.compute_transition_scores(IDS, v),
        "get_submodule": lambda m, v: m.get_submodule(v),
        "get_parameter": lambda m, v: m.get_parameter(v),
        "config": lambda m, v: setattr(m, "config", v) if not isinstance(v, (str, pathlib.Path)) else None,
        "generation_config": lambda m, v: None if isinstance(v, dict) else setattr(m, "generation_config", v),
        "VideoLlavaForConditionalGeneration": lambda m, v: VideoLlavaForConditionalGeneration(v),
        "VideoLlavaModel": lambda m, v: VideoLlavaModel(v),
        "from_pretrained": lambda m, v: m.from_pretrained(v, local_files_only=True),
        "dtype": lambda m, v: m.from_pretrained(TINY, dtype=v),
    }
    yield from one.items()


@pytest.mark.parametrize(("name", "call"), list(calls()), ids=[name for name, _ in calls()])
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_nothing_ends_in_an_error_from_the_inside(tiny_model, name, call):
    model = VideoLlavaForConditionalGeneration(tiny_model.model_config, dict(tiny_model.parameters))
    failed = []
    for value in VALUES:
        try:
            call(model, value)
        except (ValueError, FloatingPointError):
            pass
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            if "videollava_jax" not in last.filename or "raise" not in (last.line or ""):
                failed.append(f"{value!r:.60}: {type(error).__name__}: {error}")
    assert not failed, f"{name}:\n" + "\n".join(failed)
