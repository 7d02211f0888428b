"""The demonstration: converts the bundled checkpoint and asks it about the bundled files. It fetches nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from videollava_jax.assets import MEDIA, TINY
from videollava_jax.generation.chat import Chat, Turn
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.media import Medium, open_medium
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.weights import convert_to_orbax

QUESTIONS: dict[str, tuple[str, ...]] = {
    "rising-triangle.mp4": (
        "Which way does it move?",
        "What shape is it?",
        "Does it change colour?",
        "How many shapes are there?",
    ),
    "circle-then-square.mp4": ("Which shape comes first?", "Which colour comes last?"),
    "three-triangles.png": ("How many shapes are there?", "What colour are they?"),
}

Panel = tuple[list[Medium], list[Turn]]


def run_demo(report: Callable[[str], None]) -> list[Panel]:
    """Converts the tiny model to Orbax, loads the result, and asks about every bundled file.

    Args:
      report: called with each line of progress.

    Returns:
      Each file with its questions and answers, for `picture.draw_answers`.
    """
    with tempfile.TemporaryDirectory() as directory:
        orbax = Path(directory) / "tiny"
        started = time.perf_counter()
        converted = convert_to_orbax(TINY, orbax)
        report(
            f"converted the tiny model ({converted.size:,} parameters, layout {converted.source.layout}) to Orbax in "
            f"{time.perf_counter() - started:.1f} s"
        )
        started = time.perf_counter()
        model = LoadedModel.load(orbax)
        processor = VideoLlavaProcessor.from_pretrained(orbax)
        report(f"loaded it from there in {time.perf_counter() - started:.1f} s")
    panels: list[Panel] = []
    for name, questions in QUESTIONS.items():
        started = time.perf_counter()
        medium = open_medium(MEDIA / name)
        report(f"\n{medium.description}, read in {time.perf_counter() - started:.3f} s")
        chat = Chat.about(model, processor, [medium])
        turns = []
        for question in questions:
            chat.restart()
            turns.append(turn := chat.ask(question))
            report(f"  {turn.question:28} {turn.answer:10} {turn.seconds:6.3f} s")
        panels.append(([medium], turns))
    return panels
