"""The drawn world: seeds determine it, labels agree with the pixels after H.264, answers are balanced."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from videollava_jax.assets.world import (
    ANSWERS,
    CLIP_KINDS,
    COLOURS,
    DEMO_SEEDS,
    DIRECTIONS,
    EVAL_SEEDS,
    FRAMES,
    IMAGE_KINDS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZE,
    TRAIN_SEEDS,
    Question,
    Scene,
    decode_mp4,
    encode_mp4,
    sample_clip,
    sample_image,
)

SAMPLERS = {"image": (sample_image, IMAGE_KINDS), "clip": (sample_clip, CLIP_KINDS)}


def answer_of(scene: Scene, kind: str) -> str | None:
    return next((question.answer for question in scene.questions if question.kind == kind), None)


def scenes(medium: str, kind: str, count: int) -> list[Scene]:
    """Yields scenes whose first question is of a kind, with seeds of the evaluation range."""
    sample, kinds = SAMPLERS[medium]
    start = EVAL_SEEDS.start - EVAL_SEEDS.start % len(kinds) + len(kinds) + kinds.index(kind)
    return [sample(start + i * len(kinds)) for i in range(count)]


def decoded(scene: Scene) -> np.ndarray:
    """Returns the frames as a model sees them, int: images unchanged, clips through H.264."""
    frames = scene.frames if scene.medium == "image" else decode_mp4(encode_mp4(scene.frames))
    return frames.astype(int)


def bright(frame: np.ndarray) -> np.ndarray:
    """Returns which pixels are shapes, bool [H, W]: backgrounds stay below 90, every colour has a channel above 130."""
    return frame.max(-1) > 130


def nearest_colour(frame: np.ndarray) -> str:
    median = np.median(frame[bright(frame)], axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(median - COLOURS[name]).sum()))


def centroid(frame: np.ndarray) -> tuple[float, float]:
    """Returns the mean (x, y) of the bright pixels, in frame sides."""
    y, x = np.nonzero(bright(frame))
    return float(x.mean() + 0.5) / SIZE, float(y.mean() + 0.5) / SIZE


def count_blobs(frame: np.ndarray) -> int:
    """Counts the 4-connected regions of bright pixels, except specks."""
    left = bright(frame)
    blobs = 0
    while left.any():
        stack = [tuple(np.argwhere(left)[0])]
        area = 0
        while stack:
            y, x = stack.pop()
            if 0 <= y < SIZE and 0 <= x < SIZE and left[y, x]:
                left[y, x] = False
                area += 1
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        blobs += area > 20
    return blobs


@pytest.mark.parametrize("medium", SAMPLERS)
def test_a_seed_decides_everything(medium):
    sample, _ = SAMPLERS[medium]
    once, again, other = sample(11), sample(11), sample(12)
    np.testing.assert_array_equal(once.frames, again.frames)
    assert once.questions == again.questions
    assert not np.array_equal(once.frames, other.frames)
    assert once.frames.shape == (FRAMES if medium == "clip" else 1, SIZE, SIZE, 3)
    assert once.frames.dtype == np.uint8


def test_image_and_clip_of_one_seed_are_drawn_apart():
    assert not np.array_equal(sample_image(5).frames[0], sample_clip(5).frames[0])


def test_an_encoded_clip_is_the_same_bytes_again():
    frames = sample_clip(3).frames
    assert encode_mp4(frames) == encode_mp4(frames)


def test_seed_ranges_are_disjoint():
    for one, other in itertools.combinations((TRAIN_SEEDS, EVAL_SEEDS, DEMO_SEEDS), 2):
        assert one.stop <= other.start or other.stop <= one.start
        assert len(one) >= 100_000


@pytest.mark.parametrize("medium", SAMPLERS)
def test_questions_are_well_formed_and_kinds_take_turns(medium):
    sample, kinds = SAMPLERS[medium]
    for seed in range(EVAL_SEEDS.start, EVAL_SEEDS.start + 140):
        scene = sample(seed)
        assert scene.questions[0].kind == kinds[seed % len(kinds)]
        assert len(scene.questions) >= 2
        for question in scene.questions:
            assert question.kind in kinds
            assert question.answer in ANSWERS[question.kind]
            assert question.text.endswith("?")


@pytest.mark.parametrize("medium", SAMPLERS)
def test_no_question_names_the_answer_to_another(medium):
    sample, _ = SAMPLERS[medium]
    for seed in range(200):
        for asked, other in itertools.permutations(sample(seed).questions, 2):
            given_away = asked.kind in ("colour", "shape", "order") and asked.answer in words(other)
            assert not given_away, (seed, asked, other)


def words(question: Question) -> list[str]:
    return question.text.rstrip("?").split()


@pytest.mark.parametrize(("medium", "kind"), [(m, k) for m, (_, kinds) in SAMPLERS.items() for k in kinds])
def test_answers_are_balanced(medium, kind):
    """Answers are equally frequent within four standard deviations, so a constant answer scores the chance level."""
    asked = [scene.questions[0] for scene in scenes(medium, kind, 200)]
    groups = [[question.answer for question in asked]]
    options = [ANSWERS[kind]]
    if kind == "order":
        groups = [[q.answer for q in asked if what in words(q)] for what in ("shape", "colour")]
        options = [SHAPES, tuple(COLOURS)]
        assert abs(len(groups[0]) - 100) < 4 * math.sqrt(200 / 4)
    for answers, possible in zip(groups, options, strict=True):
        counts, share = Counter(answers), 1 / len(possible)
        assert set(counts) == set(possible)
        margin = 4 * math.sqrt(len(answers) * share * (1 - share))
        assert all(abs(count - len(answers) * share) < margin for count in counts.values()), counts


@pytest.mark.parametrize("medium", SAMPLERS)
def test_colour_in_the_pixels(medium):
    checked = 0
    for scene in scenes(medium, "colour", 40):
        frames = decoded(scene)
        if len(scene.tracks) == 1:
            answer = scene.questions[0].answer
            assert {nearest_colour(frame) for frame in frames} == {answer}
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("medium", SAMPLERS)
def test_shape_in_the_pixels(medium):
    """A shape is recognised by how much of its bounding box it fills, and whether more in the lower half."""
    checked = 0
    for scene in scenes(medium, "shape", 40):
        frame = decoded(scene)[0]
        if len(scene.tracks) > 1:
            continue
        y, x = np.nonzero(bright(frame))
        box = bright(frame)[y.min() : y.max() + 1, x.min() : x.max() + 1]
        filled = box.mean()
        half = len(box) // 2
        top_heavy = box[:half].sum() / box.sum()
        guess = "square" if filled > 0.9 else "circle" if filled > 0.7 else "triangle" if top_heavy < 0.38 else "cross"
        assert guess == scene.questions[0].answer
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("medium", SAMPLERS)
def test_place_in_the_pixels(medium):
    checked = 0
    for scene in scenes(medium, "where", 40):
        if len(scene.tracks) == 1:
            x, y = centroid(decoded(scene)[0])
            nearest = min(PLACES, key=lambda name: math.dist((x, y), PLACES[name]))
            assert nearest == scene.questions[0].answer
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("medium", SAMPLERS)
def test_number_in_the_pixels(medium):
    for scene in scenes(medium, "how many", 24):
        frames = decoded(scene)
        assert NUMBERS[count_blobs(frames[0]) - 1] == scene.questions[0].answer
        assert NUMBERS[count_blobs(frames[-1]) - 1] == scene.questions[0].answer


def test_direction_in_the_pixels():
    for scene in scenes("clip", "direction", 40):
        frames = decoded(scene)
        start, stop = np.asarray(centroid(frames[0])), np.asarray(centroid(frames[-1]))
        step = stop - start
        along = int(np.abs(step).argmax())
        expected = DIRECTIONS[scene.questions[0].answer]
        assert np.sign(step[along]) == expected[along]
        assert abs(step[along]) > 0.4
        assert abs(step[1 - along]) < 0.03
        positions = [centroid(frame)[along] for frame in frames]
        assert (np.diff(positions) * expected[along] > 0).all()


def test_order_in_the_pixels():
    for scene in scenes("clip", "order", 40):
        frames = decoded(scene)
        first, last = scene.tracks
        assert nearest_colour(frames[0]) == first.colours[0] != last.colours[0] == nearest_colour(frames[-1])
        track = first if "first" in words(scene.questions[0]) else last
        asked = track.shape if "shape" in words(scene.questions[0]) else track.colours[0]
        assert scene.questions[0].answer == asked
        # One shape at a time, so that the reversed clip has the opposite answer.
        assert all((first.visible[i] + last.visible[i]) == 1 for i in range(FRAMES))
        assert [count_blobs(frames[i]) for i in (0, -1)] == [1, 1]


def test_change_in_the_pixels():
    for scene in scenes("clip", "change", 40):
        colours = [nearest_colour(frame) for frame in decoded(scene)]
        changed = colours[0] != colours[-1]
        assert answer_of(scene, "change") == ("yes" if changed else "no")
        assert len(set(colours)) == 1 + changed
        if changed:  # in the middle, so that every sampling of the clip has frames of both colours
            assert 4 <= sum(colour == colours[0] for colour in colours) <= 12


def test_a_clip_is_a_small_real_video(tmp_path):
    import av

    data = encode_mp4(sample_clip(0).frames)
    assert len(data) < 16_000
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.frames == FRAMES
        assert (stream.width, stream.height) == (SIZE, SIZE)
