"""Data of the tiny model: drawn scenes as frames and labels, a tokenizer, conversations. No JAX in here."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tqdm import tqdm

from videollava_jax.assets import world as shapes
from videollava_jax.assets.world import Question, Scene
from videollava_jax.media import FramePreprocessor, Uniform
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.tokenizer import load_tokenizer

FRAMES = 8
"""Frames of a clip that the model sees."""
SIDE = 56
"""Pixels of a frame's side."""
GRID = 4
"""A frame is GRID × GRID patches of 14 pixels."""
SAMPLING = Uniform(FRAMES)
PREPROCESS = FramePreprocessor(size=SIDE, crop_size=SIDE)


# ── scenes ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Media:
    """Scenes of one kind of medium.

    Attributes:
        frames: uint8 [N, F, SIDE, SIDE, 3], RGB; or, where the towers are frozen, the hidden states that they gave for
            these frames, float32 [N, F, GRID² + 1, D].
        labels: float32 [N, F, LABELS], what each frame shows (`frame_labels`).
        questions: for each scene, its questions.
    """

    frames: np.ndarray
    labels: np.ndarray
    questions: list[tuple[Question, ...]]


def frame_labels(scene: Scene, frame: int) -> np.ndarray:
    """Returns the labels of a frame for stage 1: float32 [45].

    16 shapes and 16 colours, one for each patch (0 for none), then for the whole frame 6 colours and 4 shapes
    (1 where present), the number of shapes, and the mean of their centres (x, y).
    """
    names = tuple(shapes.COLOURS)
    block = shapes.SIZE // GRID
    cover = np.stack(
        [track.coverage(frame).reshape(GRID, block, GRID, block).mean((1, 3)).reshape(-1) for track in scene.tracks]
    )
    best, covered = cover.argmax(0), cover.max(0) > 0.06
    shape = np.array([shapes.SHAPES.index(track.shape) for track in scene.tracks])
    colour = np.array([names.index(track.colours[frame]) for track in scene.tracks])
    visible = [i for i, track in enumerate(scene.tracks) if track.visible[frame]]
    return np.concatenate(
        [
            (shape + 1)[best] * covered,
            (colour + 1)[best] * covered,
            np.isin(np.arange(len(names)), colour[visible]),
            np.isin(np.arange(len(shapes.SHAPES)), shape[visible]),
            [len(visible)],
            np.mean([scene.tracks[i].centres[frame] for i in visible], axis=0),
        ]
    ).astype(np.float32)


def make_clip(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[Question, ...]]:
    """Draws a clip as the model reads it: through H.264, 8 frames by transformers' rule, resized by its processor.

    Returns:
        Frames uint8 [F, SIDE, SIDE, 3], their labels float32 [F, 45], and the questions.
    """
    scene = shapes.sample_clip(seed)
    taken = SAMPLING.indices(shapes.FRAMES, shapes.FPS)
    frames = PREPROCESS(shapes.decode_mp4(shapes.encode_mp4(scene.frames))[taken])
    return frames, np.stack([frame_labels(scene, i) for i in taken]), scene.questions


def make_image(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[Question, ...]]:
    """Draws an image as the model reads it; the results are those of `make_clip`, with one frame."""
    scene = shapes.sample_image(seed)
    return PREPROCESS(scene.frames), frame_labels(scene, 0)[None], scene.questions


def make(pool: Any, what: Callable[[int], Any], seeds: range, title: str) -> Media:
    """Draws a scene for each seed with `make_clip` or `make_image`, in the processes of a pool."""
    made = list(tqdm(pool.imap(what, seeds, chunksize=16), title, len(seeds), unit="scene"))
    frames, labels, questions = zip(*made, strict=True)
    return Media(np.stack(frames), np.stack(labels), list(questions))


# ── frames with labels, for stage 1 ─────────────────────────────────────────────────────────────────────────


def some_frames(images: Media, clips: Media) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frames that the image tower is aligned on, with their labels: images, and two frames of each clip."""
    return (
        np.concatenate([images.frames[:, 0], clips.frames[:, 1], clips.frames[:, 6]]),
        np.concatenate([images.labels[:, 0], clips.labels[:, 1], clips.labels[:, 6]]),
    )


def every_frame(media: Media) -> tuple[np.ndarray, np.ndarray]:
    """Returns all frames with their labels."""
    return media.frames.reshape(-1, *media.frames.shape[2:]), media.labels.reshape(-1, media.labels.shape[-1])


def labelled_frames(
    x: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields batches of frames and labels, without end."""
    while True:
        rows = rng.integers(len(x), size=size)
        yield x[rows], y[rows]


# ── tokenizer and conversations, for stages 2 and 3 ─────────────────────────────────────────────────────────


def make_processor(questions: list[Question], directory: Path) -> VideoLlavaProcessor:
    """Trains a SentencePiece tokenizer on the questions: whole words, and bytes for everything else."""
    texts = sorted({question.text for question in questions})
    words = sorted({answer for answers in shapes.ANSWERS.values() for answer in answers})
    lines = [f"USER: {text} ASSISTANT: {word}" for text in texts for word in words]
    lines += [f"{word.capitalize()} {word}" for word in words] * 40
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "padding_side": "left",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return VideoLlavaProcessor(
        image_processor=PREPROCESS,
        tokenizer=load_tokenizer(directory),
        template="vicuna_v1_no_system",
        max_positions=512,
    )


@dataclass(frozen=True)
class Texts:
    """Conversations to train the decoder on, padded on the right.

    Attributes:
        ids: int32 [N, T], with a medium's token repeated for each of its features.
        labels: int32 [N, T], the id to predict after each token, or -1 where there is nothing to learn.
    """

    ids: np.ndarray
    labels: np.ndarray


def tokenize(
    processor: VideoLlavaProcessor, media: Media, rng: np.random.Generator, questions: int, length: int = 0
) -> Texts:
    """Writes up to `questions` questions about each medium as one conversation; 1 takes the question for evaluation.

    Half of the conversations end their earlier answers with `</s>`, as the authors do, half with a space, as
    transformers' chat template does. The label after an answer is `</s>` either way.
    """
    kind = "image" if media.frames.shape[1] == 1 else "video"
    tokens = GRID**2 if kind == "image" else FRAMES * (GRID**2 + 1)
    rows = []
    for asked in media.questions:
        order = [0, *(1 + rng.permutation(len(asked) - 1))][:questions]
        messages: list[dict[str, Any]] = []
        for i in order:
            content = [{"type": "text", "text": asked[i].text}]
            messages += [
                {"role": "user", "content": content if messages else [{"type": kind}, *content]},
                {"role": "assistant", "content": asked[i].answer},
            ]
        template = "vicuna_v1_no_system" if rng.integers(2) else "hf"
        segments = processor.encode(messages, template=template, add_generation_prompt=False)
        expanded = segments.expand([tokens], processor.encoder.media_ids)
        following = np.append(expanded.input_ids[1:], 0)
        answered = np.append(expanded.answer[1:], False)
        labels = np.where(answered, following, -1)
        eos = processor.tokenizer.eos_token_id
        labels[expanded.answer & ~answered & (expanded.input_ids != eos)] = eos
        rows.append((expanded.input_ids, labels))
    length = max(length, *(len(ids) for ids, _ in rows))
    return Texts(
        np.stack([np.pad(ids, (0, length - len(ids))) for ids, _ in rows]).astype(np.int32),
        np.stack([np.pad(row, (0, length - len(row)), constant_values=-1) for _, row in rows]).astype(np.int32),
    )


def conversations(
    processor: VideoLlavaProcessor,
    sources: Sequence[tuple[Media, int]],
    questions: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields frames, ids and labels of a batch from each source, one source after the other, without end.

    Args:
        processor: of the model.
        sources: media, and the number of conversations that a batch takes from them.
        questions: the most questions in a conversation; they are drawn anew every 400 steps.
        rng: draws questions and batches.
    """
    lengths = [0] * len(sources)
    while True:
        texts = [
            tokenize(processor, media, rng, questions, length)
            for (media, _), length in zip(sources, lengths, strict=True)
        ]
        lengths = [text.ids.shape[1] for text in texts]
        for _ in range(400):
            batch: list[np.ndarray] = []
            for (media, size), text in zip(sources, texts, strict=True):
                rows = rng.integers(len(text.ids), size=size)
                batch += [media.frames[rows], text.ids[rows], text.labels[rows]]
            yield tuple(batch)


def answer_start(frames: Any) -> int:
    """Returns the number of a medium's tokens in a conversation: no answer comes before them."""
    return GRID**2 if frames.shape[1] == 1 else FRAMES * (GRID**2 + 1)
