"""Draws scenes of the world and writes their files; choices and people's answers for their questions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.assets import world


@dataclass(frozen=True)
class Drawn:
    """A scene, its name, and where its file is."""

    name: str
    scene: world.Scene
    path: Path


@dataclass(frozen=True)
class Writer:
    """Writes the files of a task.

    Attributes:
      root: their directory.
      clips: whether scenes are clips; images otherwise.
      seeds: of the scenes, counted from the first one that the tiny model has not seen.
    """

    root: Path
    clips: bool
    seeds: range

    def drawn(self, folder: str, name: str) -> Iterator[Drawn]:
        """Draws the scenes and writes their files; `name` has the seed in braces, and the suffix."""
        for seed in self.seeds:
            scene = (world.sample_clip if self.clips else world.sample_image)(world.EVAL_SEEDS[0] + seed)
            path = self.root / folder / name.format(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(world.encode_mp4(scene.frames) if self.clips else _png(scene))
            yield Drawn(path.stem, scene, path)

    def json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        self._write(name, json.dumps(value, indent=1))

    def lines(self, name: str, rows: Sequence[Any]) -> None:
        """Writes an object on each line."""
        self._write(name, "".join(f"{json.dumps(row)}\n" for row in rows))

    def table(self, name: str, rows: Sequence[dict[str, Any]], delimiter: str) -> None:
        """Writes a table with the columns of its first row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write(name, text.getvalue())

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _png(scene: world.Scene) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(scene.frames[0]).save(file, "PNG")
    return file.getvalue()


def options_of(question: world.Question, count: int, turn: int) -> tuple[list[str], int]:
    """Returns options of a choice, the right one among them, and its index; the same for the same question."""
    others = [name for name in world.ANSWERS[question.kind] if name != question.answer]
    others += [
        name for name in ("red", "circle", "left", "two", "up", "cross") if name not in (*others, question.answer)
    ]
    right = (turn * 7 + len(question.text)) % count
    options = others[: count - 1]
    options.insert(right, question.answer)
    return options, right


def ten_answers(answer: str, turn: int) -> list[dict[str, Any]]:
    """Returns ten people's answers: most agree, and two say something else."""
    given = [answer] * 8 + [f"a {answer}", "not sure"]
    given = given[turn % 10 :] + given[: turn % 10]
    return [{"answer": text, "answer_id": i, "answer_confidence": "yes"} for i, text in enumerate(given, 1)]
