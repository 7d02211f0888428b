"""Draws a world of coloured shapes: seeded images and clips, with questions whose answers are known. No JAX.

The bundled tiny model is trained and tested on this world. These are the kinds of questions and their answers:

    kind        image  clip  answers
    colour        x      x   red, green, blue, yellow, purple, white
    shape         x      x   circle, square, triangle, cross
    where         x      x   left, right, top, bottom, middle
    how many      x      x   one, two, three, four
    direction            x   left, right, up, down
    order                x   a shape or a colour: what comes first, what comes last
    change               x   yes, no

A scene has a single shape, or a group of one to four equal shapes; in clips also a moving shape, or a sequence of two
shapes, one after the other. Answers are unambiguous by construction: motion is along one axis and crosses at least two
fifths of the frame, a changed colour stays changed, and shapes do not overlap.

The seed determines everything. `TRAIN_SEEDS`, `EVAL_SEEDS` and `DEMO_SEEDS` are disjoint ranges. The kind of the first
question is `seed % number of kinds`, so consecutive seeds ask all kinds equally often.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["colour", "shape", "where", "how many", "direction", "order", "change"]
Medium = Literal["image", "clip"]
UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]

SIZE = 112
"""Height and width of every frame, in pixels."""
FRAMES = 16
"""Frames of a clip."""
FPS = 8
"""Frames per second of a clip, which lasts two seconds."""

TRAIN_SEEDS = range(1_000_000)
EVAL_SEEDS = range(1_000_000, 2_000_000)
DEMO_SEEDS = range(2_000_000, 3_000_000)

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (45, 190, 70),
    "blue": (50, 90, 240),
    "yellow": (240, 215, 50),
    "purple": (170, 60, 200),
    "white": (240, 240, 240),
}
PLACES: dict[str, tuple[float, float]] = {
    "left": (0.22, 0.5),
    "right": (0.78, 0.5),
    "top": (0.5, 0.22),
    "bottom": (0.5, 0.78),
    "middle": (0.5, 0.5),
}
"""Centres as (x, y), in frame sides from the top left corner; scenes move them by up to `PLACE_JITTER`."""
PLACE_JITTER = 0.05
NUMBERS = ("one", "two", "three", "four")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit steps as (x, y), y downwards."""

IMAGE_KINDS: tuple[Kind, ...] = ("colour", "shape", "where", "how many")
CLIP_KINDS: tuple[Kind, ...] = ("colour", "shape", "where", "how many", "direction", "order", "change")
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "where": tuple(PLACES),
    "how many": NUMBERS,
    "direction": tuple(DIRECTIONS),
    "order": SHAPES + tuple(COLOURS),
    "change": ("yes", "no"),
}
"""All answers to each kind of question, equally likely; half of the questions of kind "order" ask for a colour."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene, and its only right answer, one of `ANSWERS[kind]`."""

    kind: Kind
    text: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Track:
    """A shape in all frames of a scene.

    Attributes:
        shape: one of `SHAPES`.
        colours: its colour in each frame, names of `COLOURS`.
        centres: float32 [F, 2], (x, y) in frame sides from the top left corner.
        radius: half its height and width, in frame sides.
        visible: whether it is shown in each frame, bool [F].
    """

    shape: str
    colours: tuple[str, ...]
    centres: Float
    radius: float
    visible: npt.NDArray[np.bool_]

    def coverage(self, frame: int) -> Float:
        """Returns how much of each pixel the shape covers in a frame: float32 [SIZE, SIZE], 0 to 1."""
        if not self.visible[frame]:
            return np.zeros((SIZE, SIZE), np.float32)
        return _coverage(self.shape, self.centres[frame], self.radius)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image or a clip, with its questions.

    Attributes:
        seed: from which it was drawn.
        medium: "image" or "clip".
        frames: uint8 [F, SIZE, SIZE, 3], RGB; F is 1 for an image and `FRAMES` for a clip. These are the rendered
            frames, before any codec (see `encode_mp4`).
        tracks: the shapes in it.
        questions: at least two; the seed determines the kind of the first.
    """

    seed: int
    medium: Medium
    frames: UInt8
    tracks: tuple[Track, ...]
    questions: tuple[Question, ...]


def sample_image(seed: int) -> Scene:
    """Draws the image scene of a seed; the first question is of kind `IMAGE_KINDS[seed % 4]`."""
    rng = np.random.default_rng([seed, 0])
    kind = IMAGE_KINDS[seed % len(IMAGE_KINDS)]
    layouts = {"where": ("single",), "how many": ("group",)}.get(kind, ("single", "group"))
    if _pick(rng, layouts) == "group":
        tracks, questions = _group(rng, 1)
    else:
        tracks, questions = _single(rng, 1, keep=kind)
    return Scene(
        seed=seed,
        medium="image",
        frames=_render(rng, tracks, 1),
        tracks=tracks,
        questions=_ordered(rng, questions, kind),
    )


def sample_clip(seed: int) -> Scene:
    """Draws the clip scene of a seed; the first question is of kind `CLIP_KINDS[seed % 7]`."""
    rng = np.random.default_rng([seed, 1])
    kind = CLIP_KINDS[seed % len(CLIP_KINDS)]
    layouts = {
        "where": ("single",),
        "how many": ("group",),
        "direction": ("moving",),
        "order": ("sequence",),
        "change": ("single", "moving"),
    }.get(kind, ("single", "moving", "group"))
    layout = _pick(rng, layouts)
    if layout == "sequence":
        tracks, questions = _sequence(rng)
    elif layout == "group":
        tracks, questions = _group(rng, FRAMES)
    else:
        tracks, questions = _single(rng, FRAMES, keep=kind, moving=layout == "moving")
    return Scene(
        seed=seed,
        medium="clip",
        frames=_render(rng, tracks, FRAMES),
        tracks=tracks,
        questions=_ordered(rng, questions, kind),
    )


def encode_mp4(frames: UInt8, *, fps: int = FPS, crf: int = 20) -> bytes:
    """Encodes frames as an H.264 video in an MP4 file (libx264, yuv420p, one keyframe, a few kB).

    Args:
        frames: uint8 [F, H, W, 3], RGB; H and W are even.
        fps: frames per second.
        crf: x264's constant rate factor, 0 (lossless) to 51.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the bytes must not depend on the number of cores
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(data: bytes) -> UInt8:
    """Decodes every frame of a small video made by `encode_mp4`: uint8 [F, H, W, 3], RGB.

    For videos of unknown origin use `videollava_jax.media`, which checks and limits them.
    """
    import av

    with av.open(io.BytesIO(data), format="mp4") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _ordered(rng: np.random.Generator, questions: list[Question], first: Kind) -> tuple[Question, ...]:
    """Returns the questions in random order, except that one of kind `first` comes first."""
    shuffled = [questions[i] for i in rng.permutation(len(questions))]
    return tuple(sorted(shuffled, key=lambda question: question.kind != first))


def _place(rng: np.random.Generator, place: str) -> Float:
    return np.asarray(PLACES[place] + rng.uniform(-PLACE_JITTER, PLACE_JITTER, 2), np.float32)


def _still(shape: str, colour: str, centre: Float, radius: float, frames: int) -> Track:
    return Track(
        shape=shape,
        colours=(colour,) * frames,
        centres=np.tile(centre, (frames, 1)),
        radius=radius,
        visible=np.ones(frames, bool),
    )


def _single(
    rng: np.random.Generator, frames: int, *, keep: Kind, moving: bool = False
) -> tuple[tuple[Track, ...], list[Question]]:
    """Draws one shape, which in a clip may move and may change its colour."""
    shape, colour, place = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), _pick(rng, tuple(PLACES))
    direction = _pick(rng, tuple(DIRECTIONS))
    radius = float(rng.uniform(0.15, 0.19))
    # A question about the colour has only one answer if the colour does not change.
    changes = frames > 1 and keep != "colour" and bool(rng.integers(2))
    # A question that names the shape would give away the answer to the question about the shape.
    named = keep != "shape" and rng.random() < 0.25
    it = f"the {shape}" if named else _pick(rng, ("it", "the shape"))

    if moving:
        step = np.asarray(DIRECTIONS[direction], np.float32)
        travel = rng.uniform(0.42, 0.6)
        across = rng.uniform(0.3, 0.7)
        middle = np.where(step != 0, rng.uniform(0.5 - (0.62 - travel) / 2, 0.5 + (0.62 - travel) / 2), across)
        centres = middle + step * travel * np.linspace(-0.5, 0.5, frames)[:, None]
    else:
        centres = np.tile(_place(rng, place), (frames, 1))
    other = _pick(rng, [name for name in COLOURS if name != colour])
    when = int(rng.integers(5, 12)) if changes else frames
    track = Track(
        shape=shape,
        colours=tuple(colour if frame < when else other for frame in range(frames)),
        centres=centres.astype(np.float32),
        radius=radius,
        visible=np.ones(frames, bool),
    )

    questions = [_how_many(rng, 1)]
    if not named:
        questions.append(
            Question(kind="shape", text=_pick(rng, ("What shape is it?", "Which shape is it?")), answer=shape)
        )
    if not changes:
        questions.append(Question(kind="colour", text=_pick(rng, _COLOUR_OF).format(f"is {it}"), answer=colour))
    if moving:
        ways = ("Which way does {} move?", "Which way does {} go?", "In which direction does {} move?")
        text = _pick(rng, ways).format(it)
        questions.append(Question(kind="direction", text=text, answer=direction))
    else:
        questions.append(Question(kind="where", text=f"Where is {it}?", answer=place))
    if frames > 1:
        ways = ("Does {} change colour?", "Does {} change color?", "Does the colour of {} change?")
        text = _pick(rng, ways).format(it)
        questions.append(Question(kind="change", text=text, answer="yes" if changes else "no"))
    return (track,), questions


def _group(rng: np.random.Generator, frames: int) -> tuple[tuple[Track, ...], list[Question]]:
    """Draws one to four equal shapes, well apart."""
    shape, colour, count = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), int(rng.integers(1, 5))
    radius = float(rng.uniform(0.11, 0.14))
    centres: list[Float] = []
    while len(centres) < count:
        centre = rng.uniform(radius + 0.03, 0.97 - radius, 2).astype(np.float32)
        if all(float(np.abs(centre - other).max()) > 2 * radius + 0.06 for other in centres):
            centres.append(centre)
        elif rng.random() < 0.02:
            centres.clear()  # the first shapes may have left no room for the others
    tracks = tuple(_still(shape, colour, centre, radius, frames) for centre in centres)
    one = count == 1
    return tracks, [
        _how_many(rng, count),
        Question(kind="shape", text="What shape is it?" if one else "What shape are they?", answer=shape),
        Question(kind="colour", text=_pick(rng, _COLOUR_OF).format("is it" if one else "are they"), answer=colour),
    ]


def _how_many(rng: np.random.Generator, count: int) -> Question:
    text = _pick(rng, ("How many shapes are there?", "How many shapes do you see?"))
    return Question(kind="how many", text=text, answer=NUMBERS[count - 1])


def _sequence(rng: np.random.Generator) -> tuple[tuple[Track, ...], list[Question]]:
    """Draws one shape for about half of the clip, then another one with a different colour."""
    shapes = [str(name) for name in rng.permutation(SHAPES)[:2]]
    colours = [str(name) for name in rng.permutation(tuple(COLOURS))[:2]]
    when = int(rng.integers(6, 11))
    tracks = tuple(
        Track(
            shape=shapes[i],
            colours=(colours[i],) * FRAMES,
            centres=np.tile(rng.uniform(0.28, 0.72, 2).astype(np.float32), (FRAMES, 1)),
            radius=float(rng.uniform(0.15, 0.19)),
            visible=(np.arange(FRAMES) < when) == (i == 0),
        )
        for i in range(2)
    )
    by_shape, by_colour = int(rng.integers(2)), int(rng.integers(2))
    return tracks, [
        Question(kind="order", text=f"Which shape comes {_ENDS[by_shape]}?", answer=shapes[by_shape]),
        Question(kind="order", text=f"Which colour comes {_ENDS[by_colour]}?", answer=colours[by_colour]),
    ]


def _render(rng: np.random.Generator, tracks: tuple[Track, ...], frames: int) -> UInt8:
    """Draws the shapes over a dark, tinted gradient with a little noise: uint8 [frames, SIZE, SIZE, 3]."""
    tint = rng.uniform(15, 65, 3) * 0.5 + rng.uniform(15, 65) * 0.5
    slope = rng.uniform(-18, 18, 2)
    background = tint + (slope[0] * (_X - 0.5) + slope[1] * (_Y - 0.5))[..., None]
    background = (background + rng.normal(0, 2.5, (SIZE, SIZE, 1))).astype(np.float32)
    paint = {name: (rgb + rng.uniform(-15, 15, 3)).astype(np.float32) for name, rgb in COLOURS.items()}
    drawn: list[UInt8] = []
    for frame in range(frames):
        if frame and not any(_differs(track, frame) for track in tracks):
            drawn.append(drawn[-1])
            continue
        pixels = background
        for track in tracks:
            cover = track.coverage(frame)[..., None]
            pixels = pixels + cover * (paint[track.colours[frame]] - pixels)
        drawn.append(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return np.stack(drawn)


def _differs(track: Track, frame: int) -> bool:
    """Returns whether a track looks different in this frame than in the previous one."""
    return (
        track.colours[frame] != track.colours[frame - 1]
        or track.visible[frame] != track.visible[frame - 1]
        or bool((track.centres[frame] != track.centres[frame - 1]).any())
    )


def _coverage(shape: str, centre: Float, radius: float) -> Float:
    """Returns how much of each pixel a shape covers, with soft edges: float32 [SIZE, SIZE], 0 to 1."""
    x, y = _X - centre[0], _Y - centre[1]
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    elif shape == "triangle":  # pointing up, in a square of twice the radius
        distance = np.maximum(y - radius, (2 * np.abs(x) - y - radius) / math.sqrt(5))
    else:
        arm = 0.36 * radius
        across = np.maximum(np.abs(x) - radius, np.abs(y) - arm)
        distance = np.minimum(across, np.maximum(np.abs(x) - arm, np.abs(y) - radius))
    return np.asarray(np.clip(0.5 - distance * SIZE, 0, 1), np.float32)


_ENDS = ("first", "last")
_COLOUR_OF = ("What colour {}?", "What color {}?", "Which colour {}?")
_Y, _X = ((np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE).astype(np.float32)
