"""The bundled tiny model: it answers, its answers depend on the media, and transformers agrees with every token."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import ENVIRONMENT
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.assets.world import (
    ANSWERS,
    CLIP_KINDS,
    EVAL_SEEDS,
    IMAGE_KINDS,
    encode_mp4,
    sample_clip,
    sample_image,
)
from videollava_jax.media import Uniform, read_video

SEEDS = EVAL_SEEDS[:300]
BATCH = 100
NEW_TOKENS = 6
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class Asked:
    """Questions about unseen media, and the model's answers.

    Attributes:
        kinds, prompts, right: for each question its kind, prompt and answer.
        media: uint8 [N, F, H, W, 3], frames as they come from the file; F is 1 for images.
        said: the answers.
        tokens: int [N, NEW_TOKENS], as generated, padded.
    """

    kinds: np.ndarray
    prompts: list[str]
    right: np.ndarray
    media: np.ndarray
    said: np.ndarray
    tokens: np.ndarray

    def share(self, which: np.ndarray | None = None) -> float:
        hits = self.said == self.right
        return float((hits if which is None else hits[which]).mean())


@pytest.fixture(scope="module")
def processor(tiny_processor):
    return tiny_processor


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


def batches(processor, prompts, media):
    """Yields model inputs of `BATCH` prompts at a time."""
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        if media.shape[1] == 1:
            given = {"images": [frames[0] for frames in media[part]]}
        else:
            given = {"videos": list(media[part])}
        yield processor(text=prompts[part], padding=True, return_tensors="np", **given)


def ask(model, processor, prompts, media):
    """Decodes greedily: returns (answers, tokens)."""
    pad = processor.tokenizer.pad_token_id
    rows = []
    for inputs in batches(processor, prompts, media):
        ids = np.asarray(model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
        rows += list(padded(ids[:, inputs["input_ids"].shape[1] :], pad))
    tokens = np.stack(rows)
    said = processor.batch_decode(tokens, skip_special_tokens=True)
    return np.array([text.strip() for text in said]), tokens


def padded(tokens, pad):
    """Pads all rows to one width, as generation stops when every row has ended."""
    return np.pad(tokens, ((0, 0), (0, NEW_TOKENS - tokens.shape[1])), constant_values=pad)


def prompt_for(scene, placeholder):
    return f"USER: <{placeholder}>\n{scene.questions[0].text} ASSISTANT:"


@pytest.fixture(scope="module")
def clips(model, processor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("clips")
    scenes = [sample_clip(seed) for seed in SEEDS]
    media = []
    for scene in scenes:
        path = directory / f"{scene.seed}.mp4"
        path.write_bytes(encode_mp4(scene.frames))
        media.append(read_video(path, Uniform(8)).frames)
    return asked(model, processor, scenes, "video", np.stack(media))


@pytest.fixture(scope="module")
def images(model, processor):
    scenes = [sample_image(seed) for seed in SEEDS]
    return asked(model, processor, scenes, "image", np.stack([scene.frames for scene in scenes]))


def asked(model, processor, scenes, placeholder, media):
    prompts = [prompt_for(scene, placeholder) for scene in scenes]
    said, tokens = ask(model, processor, prompts, media)
    return Asked(
        kinds=np.array([scene.questions[0].kind for scene in scenes]),
        prompts=prompts,
        right=np.array([scene.questions[0].answer for scene in scenes]),
        media=media,
        said=said,
        tokens=tokens,
    )


def test_it_answers_97_percent_of_600_unseen_questions(clips, images):
    assert len(clips.right) + len(images.right) == 600
    right = (clips.said == clips.right).sum() + (images.said == images.right).sum()
    assert right / 600 >= 0.97


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_no_kind_of_clip_question_is_under_93_percent(clips, kind):
    which = clips.kinds == kind
    assert which.sum() >= 42
    assert clips.share(which) >= 0.93


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_no_kind_of_image_question_is_under_93_percent(images, kind):
    which = images.kinds == kind
    assert which.sum() >= 75
    assert images.share(which) >= 0.93


def test_reversed_frames_flip_direction_and_order(model, processor, clips):
    """A clip played backwards moves the other way, and what came first comes last."""
    flipped = total = 0
    for kind in ("direction", "order"):
        which = np.flatnonzero(clips.kinds == kind)
        said, _ = ask(model, processor, [clips.prompts[i] for i in which], clips.media[which, ::-1])
        for i, answer in zip(which, said, strict=True):
            total += 1
            if kind == "direction":
                flipped += answer == OPPOSITE[clips.right[i]]
            else:
                scene = sample_clip(SEEDS[int(i)])
                first, last = scene.tracks
                shown = (
                    (first.shape, last.shape) if "shape" in clips.prompts[i] else (first.colours[0], last.colours[0])
                )
                flipped += answer == shown[0 if "last" in clips.prompts[i] else 1]
    assert total >= 84
    assert flipped / total >= 0.95


def test_a_black_clip_leaves_only_chance(model, processor, clips):
    """Without frames, no more answers are right than by chance, within three standard deviations."""
    for kind in ("direction", "order", "shape", "where", "how many"):
        which = np.flatnonzero(clips.kinds == kind)
        black = np.zeros_like(clips.media[which])
        said, _ = ask(model, processor, [clips.prompts[i] for i in which], black)
        # "order" asks for one of the shapes or one of the colours: no more than a quarter by guessing.
        chance = 1 / min(len(ANSWERS[kind]), 4)
        margin = 3 * (chance * (1 - chance) / len(which)) ** 0.5
        assert (said == clips.right[which]).mean() <= chance + margin, kind


@pytest.mark.parametrize("medium", ["clips", "images"])
def test_transformers_generates_the_same_tokens(medium, processor, request):
    torch = pytest.importorskip("torch", reason="the live comparison with transformers needs torch")
    from transformers import VideoLlavaForConditionalGeneration as Reference

    asked = request.getfixturevalue(medium)
    reference = Reference.from_pretrained(TINY, dtype=torch.float32).eval()
    pad = processor.tokenizer.pad_token_id
    rows = []
    for inputs in batches(processor, asked.prompts, asked.media):
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        with torch.no_grad():
            ids = reference.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False).numpy()
        rows += list(padded(ids[:, given["input_ids"].shape[1] :], pad))
    np.testing.assert_array_equal(np.stack(rows), asked.tokens)


def test_several_questions_in_one_conversation(model, processor):
    """Later turns see the medium of the first, however earlier answers end."""
    scenes = [sample_image(seed) for seed in SEEDS[:100]]
    media = np.stack([scene.frames for scene in scenes])
    answers = np.array([scene.questions[1].answer for scene in scenes])
    for end in ("</s>", " "):
        prompts = [
            f"{prompt_for(scene, 'image')} {scene.questions[0].answer}{end}USER: {scene.questions[1].text} ASSISTANT:"
            for scene in scenes
        ]
        said, _ = ask(model, processor, prompts, media)
        assert (said == answers).mean() >= 0.93, end


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("rising-triangle.mp4", "Which way does it move?", "up"),
        ("rising-triangle.mp4", "What shape is it?", "triangle"),
        ("rising-triangle.mp4", "Does it change colour?", "yes"),
        ("circle-then-square.mp4", "Which shape comes first?", "circle"),
        ("circle-then-square.mp4", "Which colour comes last?", "blue"),
        ("three-triangles.png", "How many shapes are there?", "three"),
        ("three-triangles.png", "What colour are they?", "red"),
    ],
)
def test_the_demo_media_are_answered_from_their_files(model, processor, name, question, answer):
    kind = "image" if name.endswith(".png") else "video"
    inputs = processor(text=f"USER: <{kind}>\n{question} ASSISTANT:", **{f"{kind}s": MEDIA / name})
    ids = np.asarray(model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
    said = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in said] == [answer]


def test_the_package_ships_at_most_6_megabytes():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 6_000_000
    assert sum(path.stat().st_size for path in MEDIA.rglob("*") if path.is_file()) <= 100_000


def test_the_card_says_what_a_re_evaluation_says(clips, images):
    card = json.loads((TINY / "card.json").read_text())
    assert card["eval_seeds"] == [SEEDS.start, SEEDS.stop]
    for asked, name, kinds in ((clips, "clips", CLIP_KINDS), (images, "images", IMAGE_KINDS)):
        counts = {
            kind: [int((asked.said == asked.right)[asked.kinds == kind].sum()), int((asked.kinds == kind).sum())]
            for kind in kinds
        }
        assert card["accuracy"][name] == counts


def test_the_training_seeds_of_the_card_are_not_evaluated():
    card = json.loads((TINY / "card.json").read_text())
    for low, high in card["train_seeds"].values():
        assert high <= EVAL_SEEDS.start or low >= EVAL_SEEDS.stop


def test_the_training_program_runs_end_to_end(tmp_path):
    """A few training steps on a few scenes: the result loads, and its card has the counts of every kind."""
    program = Path(__file__).parents[2] / "train" / "tiny.py"
    subprocess.run(
        [sys.executable, str(program), "--quick", "--seed", "3", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["recipe"]["seed"] == 3
    assert {kind: asked for kind, (_, asked) in card["accuracy"]["clips"].items()} == dict.fromkeys(CLIP_KINDS, 2)
    model = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    processor = VideoLlavaProcessor.from_pretrained(tmp_path)
    scene = sample_clip(EVAL_SEEDS[0])
    _, tokens = ask(model, processor, [prompt_for(scene, "video")], scene.frames[None, ::2])
    assert tokens.shape == (1, NEW_TOKENS)
