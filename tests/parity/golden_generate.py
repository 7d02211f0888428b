"""What transformers answers with the tiny model under a few options, written down for Pythons without torch.

python -m tests.parity.golden_generate        writes golden_generate.json next to this file
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import golden

FILE = Path(__file__).with_suffix(".json")
NEW_TOKENS = 6
WORDS = {"bad_words_ids": [[40], [41, 42]], "sequence_bias": [[[50], 4.0], [[51, 52], -3.0]]}
OPTIONS: dict[str, dict[str, Any]] = {
    "words": {**WORDS, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.4, "repetition_penalty": 1.2},
    "ends": {
        "repetition_penalty": 1.1, "bad_words_ids": [[40]], "min_new_tokens": 4, "forced_eos_token_id": 2,
        "exponential_decay_length_penalty": [1, 1.5], "begin_suppress_tokens": [30, 31, 32],
    },
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams that stop early": {"num_beams": 3, "early_stopping": True, "length_penalty": -1.0},
}  # fmt: skip


def answers(tokens: Any, given: dict[str, np.ndarray]) -> list[list[int]]:
    """The new tokens of generated sequences."""
    return np.asarray(tokens)[:, given["input_ids"].shape[1] :].tolist()


def ours(model: Any, given: dict[str, np.ndarray], name: str) -> list[list[int]]:
    """Our model's answers under one entry of `OPTIONS`."""
    return answers(model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, **OPTIONS[name]), given)


def main() -> None:
    import torch

    from videollava_jax import VideoLlavaProcessor
    from videollava_jax.assets import TINY

    given = golden.inputs(VideoLlavaProcessor.from_pretrained(TINY))
    model = golden.reference(torch, "hf", None)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    found = {}
    for name, options in OPTIONS.items():
        with torch.no_grad():
            tokens = model.generate(**tensors, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
        found[name] = answers(tokens.numpy(), given)
    FILE.write_text(json.dumps({"made by": "python -m tests.parity.golden_generate", **found}) + "\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
