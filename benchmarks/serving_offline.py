"""Prints the rate of the offline engine on questions about clips: `benchmarks/serving.py` runs it.

python benchmarks/serving_offline.py MODEL CLIPS COUNT QUESTIONS ROWS ANSWER-TOKENS MEMORY
"""

import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
from serving_load import words
from sides import rate

from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.engine import Engine, Request
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.processing.processor import VideoLlavaProcessor


def main(model: str, place: str, count: int, questions: int, rows: int, tokens: int, memory: int) -> None:
    """Measures the engine on questions about each of the first clips, read by the processes that the server has too.

    It has the server's grid: a slot for each clip, with as many rows.

    Args:
      place: of the clips.
      count: of clips.
      questions: on each.
      rows: of the server, for each clip.
      tokens: of an answer.
      memory: bytes for keys and values.
    """
    rng = random.Random(1)
    processor = VideoLlavaProcessor.from_pretrained(model)
    loaded = LoadedModel.load(model, dtype="float32")
    reader = IsolatedReader(processor)
    # Of a window of as many requests as there are rows, the engine makes the server's grid.
    engine = Engine(
        loaded,
        processor,
        reader=reader,
        suppress_tokens=[2],
        max_rows=rows * count,
        window=rows * count,
        memory=memory,
        on_sizes=lambda line: print(line, file=sys.stderr, flush=True),
    )
    clips = [Path(place) / f"{number}.mp4" for number in range(count)]
    requests = [
        Request(
            id=f"{clip.name}-{number}",
            conversation=[
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": str(clip)},
                        {"type": "text", "text": words(rng, number)},
                    ],
                }
            ],
            max_new_tokens=tokens,
            options={"do_sample": False},
        )
        for number in range(questions)
        for clip in clips
    ]
    try:
        list(engine.run([replace(request, max_new_tokens=1) for request in requests]))  # compiles: the sizes are equal
        before = time.process_time()
        found = rate(lambda: list(engine.run(requests)), len(requests))
        seconds = (time.process_time() - before) / len(requests)
    finally:
        reader.close()
    size = sum(array.size for array in jax.tree.leaves(loaded.parameters))
    facts = f"{size / 1e6:.0f} M parameters, float32; jax {jax.__version__}"
    print(json.dumps({"rate": found, "facts": facts, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
