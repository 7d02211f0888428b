"""Prints the rate of the offline engine on questions about clips: `benchmarks/serving.py` runs it.

python benchmarks/serving_offline.py MODEL CLIPS ROWS ANSWER-TOKENS MEMORY
"""

import json
import random
import statistics
import sys
from pathlib import Path

import jax
from serving import WORDS
from sides import rate

from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.engine import Engine, Request
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.processing.processor import VideoLlavaProcessor

ROUNDS = 2


def main(model: str, clips: str, rows: int, tokens: int, memory: int) -> None:
    """Measures the engine on 6 questions about each clip, read by the processes that the server has too."""
    rng = random.Random(1)
    processor = VideoLlavaProcessor.from_pretrained(model)
    loaded = LoadedModel.load(model, dtype="float32")
    reader = IsolatedReader(processor)
    engine = Engine(
        loaded, processor, reader=reader, suppress_tokens=[2], max_rows=rows * len(list(Path(clips).iterdir()))
    )
    requests = [
        Request(
            id=f"{clip.name}-{number}",
            conversation=[
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": str(clip)},
                        {"type": "text", "text": " ".join(rng.choices(WORDS, k=6)) + f" {number}?"},
                    ],
                }
            ],
            max_new_tokens=tokens,
            options={"do_sample": False},
        )
        for number in range(6)
        for clip in sorted(Path(clips).iterdir())
    ]
    try:
        list(engine.run(requests))  # compiles
        rates = [rate(lambda: list(engine.run(requests)), len(requests)) for _ in range(ROUNDS)]
    finally:
        reader.close()
    size = sum(array.size for array in jax.tree.leaves(loaded.parameters))
    facts = f"{size / 1e6:.0f} M parameters, float32; jax {jax.__version__}"
    print(json.dumps({"rate": statistics.median(rates), "facts": facts}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
