"""Draws answers: the frames that the model saw, with the questions and answers under them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videollava_jax.generation.chat import Turn
from videollava_jax.media import Medium

Panel = tuple[Sequence[Medium], Sequence[Turn]]
"""Media and what was asked about them."""

FRAME_HEIGHT = 140
MARGIN, GAP = 16, 6
MIN_WIDTH = 640
LINE, SMALL_LINE = 22, 18
INK, PALE, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
TEXT, SMALL = ImageFont.load_default(16), ImageFont.load_default(12)


def draw_answers(panels: Sequence[Panel]) -> Image.Image:
    """Draws one panel below the other: frames with their times, and then each question with its answer."""
    return _stacked([_panel(media, turns) for media, turns in panels])


def save_picture(path: Path, panels: Sequence[Panel]) -> None:
    """Draws the panels to a file, whose suffix is the format."""
    draw_answers(panels).save(path)


def prepare_picture(path: Path) -> None:
    """Makes the directory of a picture. Call it before the work, whose answers would otherwise wait for an error.

    Raises:
      ValueError: the name's suffix is not a format of pictures, or it is a directory.
      OSError: the directory cannot be made, or nothing can be written there.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(
            f"{path}: expected the name of a picture such as answers.png, got {path.suffix or 'no suffix'}"
        )
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a picture, got a directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab"):
        pass
    if not path.stat().st_size:
        path.unlink()


def _panel(media: Sequence[Medium], turns: Sequence[Turn]) -> Image.Image:
    strips = [_strip(medium) for medium in media]
    width = max([MIN_WIDTH, *(strip.width for strip in strips)])
    inside = _stacked([*strips, *(_turn(turn, width) for turn in turns)])
    panel = Image.new("RGB", (inside.width + 2 * MARGIN, inside.height + 2 * MARGIN), PAPER)
    panel.paste(inside, (MARGIN, MARGIN))
    return panel


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _strip(medium: Medium) -> Image.Image:
    """The medium's name, its frames in a row, and their times below."""
    height, width = medium.frames.shape[1:3]
    size = (max(1, round(width * FRAME_HEIGHT / height)), FRAME_HEIGHT)
    step = size[0] + GAP
    strip = Image.new(
        "RGB",
        (max(len(medium.frames) * step, _length(medium.description, SMALL)), FRAME_HEIGHT + 2 * SMALL_LINE + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(strip)
    draw.text((0, 0), medium.description, fill=INK, font=SMALL)
    for i, frame in enumerate(medium.frames):
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (i * step, SMALL_LINE))
        if medium.kind == "video":
            seconds = medium.timestamps[i]
            when = f"frame {medium.indices[i]}" if np.isnan(seconds) else f"{seconds:.2f} s"
            draw.text((i * step, SMALL_LINE + FRAME_HEIGHT + 2), when, fill=PALE, font=SMALL)
    return strip


def _turn(turn: Turn, width: int) -> Image.Image:
    """A question and its answer, on one line if they fit."""
    answer = turn.answer or "(nothing)"
    indent = _length(turn.question, TEXT) + 2 * GAP
    if indent + _length(answer, TEXT) <= width:
        placed = [(0, 0, turn.question, PALE), (0, indent, answer, INK)]
    else:
        lines = [(line, PALE) for line in _wrapped(turn.question, width)]
        lines += [(line, INK) for line in _wrapped(answer, width)]
        placed = [(row, 0, line, colour) for row, (line, colour) in enumerate(lines)]
    picture = Image.new("RGB", (width, (placed[-1][0] + 1) * LINE), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, left, line, colour in placed:
        draw.text((left, row * LINE), line, fill=colour, font=TEXT)
    return picture


def _length(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(font.getlength(text)) + 1


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of words, each as long as fits the width; a longer word has a line to itself."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _length(longer, TEXT) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
