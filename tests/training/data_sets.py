"""Small data sets in LLaVA's format with real files, for the bundled tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from videollava_jax.assets import world as shapes


def write_data(directory: Path, samples: int, *, first: int = 700_000, media: str = "civ") -> Path:
    """Writes samples about clips, images and text alone, in turn; returns the path of their file.

    Args:
      samples: their number.
      first: the seed of the first scene.
      media: kinds in turn: "c" a clip with one question, "v" a clip with all of its questions, "i" an image, "t" text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(samples):
        kind, seed = media[i % len(media)], first + i
        scene = shapes.sample_image(seed) if kind == "i" else shapes.sample_clip(seed)
        questions = scene.questions[: 1 if kind == "c" else None]
        sample: dict[str, object] = {"id": f"s{i}"}
        marker = ""
        if kind == "i":
            Image.fromarray(scene.frames[0]).save(directory / f"{i}.png")
            sample["image"], marker = f"{i}.png", "<image>\n"
        elif kind in "cv":
            (directory / f"{i}.mp4").write_bytes(shapes.encode_mp4(scene.frames))
            sample["video"], marker = f"{i}.mp4", "<video>\n"
        turns = []
        for question in questions:
            turns += [
                {"from": "human", "value": f"{marker if not turns else ''}{question.text}"},
                {"from": "gpt", "value": question.answer},
            ]
        found.append({**sample, "conversations": turns})
    file = directory / "data.json"
    file.write_text(json.dumps(found))
    return file
