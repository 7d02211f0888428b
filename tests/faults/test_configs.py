"""Configurations with odd values are read or refused in a line, before any memory is taken."""

import pytest

from tests.faults.configs import MEMORY, bases, outcome, run
from videollava_jax.config import ModelConfig
from videollava_jax.media import FramePreprocessor


def test_drawn_configurations():
    """`python -m tests.faults.configs` draws more."""
    tally, violations = run(600, 7)
    assert violations == []
    assert min(tally["read"], tally["refused"]) > 100


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "num_attention_heads", 0),
        ("vision_config", "num_attention_heads", 0),
        ("text_config", "hidden_size", 10**9),
        ("vision_config", "intermediate_size", 10**9),
        ("vision_config", "image_size", 10**6),
        ("vision_config", "num_hidden_layers", 10**9),
        ("text_config", "vocab_size", -1),
        ("text_config", "rms_norm_eps", float("nan")),
        ("text_config", "head_dim", 10**9),
        ("text_config", "max_position_embeddings", 10**30),
    ],
)
def test_sizes_beyond_any_model(part, key, value):
    raw = ModelConfig().to_hf()
    raw[part] = {**raw[part], key: value}
    kind, why = outcome(ModelConfig.from_hf, raw)
    assert kind == "refused"
    assert key in why


@pytest.mark.parametrize("key", ["num_labels", "id2label"])
@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_labels_of_classifiers_cost_nothing(part, key):
    """transformers makes a dictionary of as many labels as a configuration asks for."""
    raw = ModelConfig().to_hf()
    (raw if part is None else raw[part]).update({key: 10**9})
    assert outcome(ModelConfig.from_hf, raw) == ("read", "")
    assert MEMORY < 10**9


@pytest.mark.parametrize(
    ("key", "value"), [("crop_size", 10**6), ("size", {"shortest_edge": 10**9}), ("size", 0), ("image_std", [0, 1, 1])]
)
def test_squares_beyond_any_tower(key, value):
    kind, why = outcome(FramePreprocessor.from_json, {**FramePreprocessor().to_json(), key: value})
    assert kind == "refused"
    assert key in why


def test_the_bases_are_read():
    assert [outcome(read, raw) for read, raw in bases()] == [("read", "")] * 3
