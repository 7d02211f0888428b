"""Configurations with odd values: each is read, or refused in a line that says where, before any memory is taken.

    python -m tests.faults.configs 20000 7

draws as many from a seed and prints what came of them: `config.json` and `preprocessor_config.json` of every variant,
with values replaced, added, removed and moved to other keys.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from tests.faults.tables import BAD, Tally
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.media import FramePreprocessor

SECONDS = 2.0
"""The most CPU time for one, once transformers is imported."""
MEMORY = 64 * 2**20
"""The most bytes that one may take."""
_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**9, 10**30, -(10**9), 0.0, 0.5, -0.5, 1e-300, 1e300, math.inf, math.nan)
_OTHERS = (None, True, False, "", "x", "224", "gelu", "x" * 5000, "\\u0000\\n", [], [0], [1, 2], {}, {"a": 1}, [[[]]])
_KEYS = (
    *("model_type", "variant", "temporal_frames", "auto_map", "dtype", "torch_dtype", "quantization_config"),
    *("rope_scaling", "rope_parameters", "attn_implementation", "id2label", "num_labels", "architectures"),
    *("size", "crop_size", "x"),
)


def bases() -> list[tuple[Callable[[Any], Any], dict[str, Any]]]:
    """Returns readers, each with a JSON object that it reads."""
    tiny = ModelConfig(
        vision_config=VisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2),
        text_config=TextConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2),
        variant="original",
    )
    return [
        (ModelConfig.from_hf, ModelConfig().to_hf()),
        (ModelConfig.from_hf, tiny.to_hf()),
        (FramePreprocessor.from_json, FramePreprocessor().to_json()),
    ]


def mutated(rng: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with one to three changes, anywhere in it."""
    made = deepcopy(raw)
    for _ in range(rng.choice((1, 1, 2, 3))):
        where = made
        inner = [value for value in made.values() if isinstance(value, dict) and value]
        if inner and rng.random() < 0.6:
            where = rng.choice(inner)
        keys = list(where)
        key = rng.choice(keys) if keys and rng.random() < 0.85 else rng.choice(_KEYS)
        match rng.choice(("number", "number", "other", "remove", "move")):
            case "number":
                where[key] = rng.choice(_NUMBERS)
            case "other":
                where[key] = deepcopy(rng.choice(_OTHERS))
            case "remove":
                where.pop(key, None)
            case "move":
                where[rng.choice(_KEYS)] = deepcopy(where.get(key))
    return made


def outcome(read: Callable[[Any], Any], raw: dict[str, Any]) -> tuple[str, str]:
    """Reads a mutated object; returns "read", "refused" or one of `BAD`, and what was wrong or said."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = read(raw)
        again = found.to_hf() if isinstance(found, ModelConfig) else found.to_json()
        if read(json.loads(json.dumps(again))) != found:
            return "silent", "read otherwise after it was written"
        result = "read", ""
    except ValueError as error:
        text = str(error)
        if len(text) > 500 or not text.isprintable():
            return "violation", f"a message of {len(text)} characters, or not of one line: {text[:200]!r}"
        result = "refused", text
    except Exception as error:
        return "crash", f"{type(error).__name__}: {str(error)[:200]}"
    if (seconds := time.process_time() - started) > SECONDS:
        return "hang", f"took {seconds:.1f} s"
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024) > MEMORY:
        return "violation", f"took {grown / 2**20:.0f} MiB"
    return result


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Draws `count` objects; returns how many there were of each outcome, and the violations."""
    import transformers  # noqa: F401  # its import takes seconds, and is none of their costs

    ModelConfig.from_hf({**ModelConfig().to_hf(), "one_more_key": 1})
    rng, tally, violations = random.Random(seed), Counter[str](), []
    readers = bases()
    for _ in range(count):
        read, raw = rng.choice(readers)
        made = mutated(rng, raw)
        kind, why = outcome(read, made)
        tally[kind] += 1
        if kind in BAD:
            violations.append(f"{why}\n    {json.dumps(made)[:1500]}")
    return tally, violations


def part(seed: int, scale: float) -> list[Tally]:
    """Draws `10000 * scale` configurations; see `tests.faults.parts`."""
    import transformers  # noqa: F401

    ModelConfig.from_hf({**ModelConfig().to_hf(), "one_more_key": 1})
    rng, tally = random.Random(seed), Tally("configurations")
    readers = bases()
    for number in range(round(10_000 * scale)):
        read, raw = rng.choice(readers)
        made = mutated(rng, raw)
        began = time.perf_counter()
        kind, why = outcome(read, made)
        tally.add(
            kind, f"number {number} of seed {seed}: {why}: {json.dumps(made)[:1500]}", time.perf_counter() - began
        )
    return [tally]


if __name__ == "__main__":
    tally, violations = run(int(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(violations[:20]))
    print(
        f"{sum(tally.values())} configurations, seed {sys.argv[2]}: " + ", ".join(f"{n} {k}" for k, n in tally.items())
    )
    raise SystemExit(bool(violations))
