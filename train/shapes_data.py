"""Writes a data set in LLaVA's format about the drawn world, with a question that the bundled model was never asked.

    python train/shapes_data.py out/data

Each sample is a clip of a coloured shape that moves, and one question with a sentence as its answer: the bundled model
was trained to say single words. `train.json` and `held_out.json` take seeds that its training and its evaluation do not
use.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from videollava_jax.assets import world as shapes

QUESTION = "What happens?"
TRAIN = shapes.TRAIN_SEEDS[500_000:]
HELD_OUT = shapes.EVAL_SEEDS[500_000:]


def main() -> None:
    """Writes both files and the clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for the clips and the two files")
    parser.add_argument("--train", type=int, default=600, help="clips to learn from (600)")
    parser.add_argument("--held-out", type=int, default=200, help="clips to ask about (200)")
    arguments = parser.parse_args()
    (arguments.output / "clips").mkdir(parents=True, exist_ok=True)
    for name, seeds, count in (("train", TRAIN, arguments.train), ("held_out", HELD_OUT, arguments.held_out)):
        samples = list(tqdm(islice(moving(seeds, arguments.output), count), name, count, unit="clip", disable=None))
        (arguments.output / f"{name}.json").write_text(json.dumps(samples, indent=1) + "\n")


def moving(seeds: range, output: Path) -> Iterator[dict[str, object]]:
    """Yields samples about clips in which a shape of one colour moves, and writes the clips."""
    for seed in seeds:
        scene = shapes.sample_clip(seed)
        direction = next((question.answer for question in scene.questions if question.kind == "direction"), None)
        track = scene.tracks[0]
        if direction is None or len(set(track.colours)) > 1:
            continue
        video = f"clips/{seed}.mp4"
        (output / video).write_bytes(shapes.encode_mp4(scene.frames))
        yield {
            "id": str(seed),
            "video": video,
            "conversations": [
                {"from": "human", "value": f"<video>\n{QUESTION}"},
                {"from": "gpt", "value": f"A {track.colours[0]} {track.shape} moves {direction}."},
            ],
        }


if __name__ == "__main__":
    main()
