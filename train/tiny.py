"""Trains the tiny Video-LLaVA that ships with the package, from nothing, in about half an hour on two CPU cores.

    python train/tiny.py --out out/tiny

It makes its own data (`videollava_jax.assets.world`: coloured shapes in images and in real H.264 clips, with questions
whose answers are known), its own tokenizer, and then trains in the stages of the real recipe:

    1  align      the image tower learns to name what its patches show; the video tower starts from it
    2  project    towers frozen: the projector, and the decoder, which has no language to start from
    3  fine-tune  everything, at a lower rate

At the end it asks 300 clips and 300 images that it has never seen, prints the accuracy of each kind of question,
and writes a checkpoint in transformers' layout with its card beside it. Two things make a model of a million
parameters learn this fast: stage 1 supervises every patch (the class token of an image never reaches the
decoder), and a medium is encoded once for several questions, asked as one conversation.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece
from flax import nnx
from safetensors.numpy import save_file
from tqdm import tqdm

from videollava_jax.assets import world as shapes
from videollava_jax.assets.world import CLIP_KINDS, EVAL_SEEDS, IMAGE_KINDS, TRAIN_SEEDS, Question, Scene
from videollava_jax.config import TextConfig, VideoLlavaConfig, VisionConfig
from videollava_jax.media import FramePreprocessor, Uniform
from videollava_jax.model.video_llava import VideoLlava, named_parameters, with_parameters
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.tokenizer import load_tokenizer

Parameters = dict[str, Any]

FRAMES = 8
SIDE = 56
GRID = 4
"""A frame is GRID × GRID patches of 14 pixels."""
SAMPLING = Uniform(FRAMES)
PREPROCESS = FramePreprocessor(size=SIDE, crop_size=SIDE)
FIRST_WIDE = 10_000
"""The wide evaluation begins so far behind the one of 300, in the range of evaluation seeds."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run depends on; all of it goes into the card."""

    seed: int = 0
    clips: int = 8000
    images: int = 16000
    align_steps: int = 3500
    align_batch: int = 64
    align_rate: float = 2e-3
    project_steps: int = 700
    tune_steps: int = 300
    clip_batch: int = 24
    image_batch: int = 24
    project_rate: float = 1e-3
    tune_rate: float = 7e-4
    questions: int = 3
    evaluated: int = 300
    evaluated_wide: int = 1400


QUICK = Recipe(
    clips=28,
    images=28,
    align_steps=6,
    align_batch=8,
    project_steps=2,
    tune_steps=2,
    clip_batch=4,
    image_batch=4,
    evaluated=14,
    evaluated_wide=14,
)


# ── 1. Data: scenes as the model sees them ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Media:
    """Scenes of one kind of medium.

    Attributes:
        frames: uint8 [N, F, SIDE, SIDE, 3], RGB; or, where the towers stay as they are and have seen them
            already, the hidden states that they made of them, float32 [N, F, GRID² + 1, D].
        labels: float32 [N, F, LABELS], what each frame shows (`frame_labels`).
        questions: for each scene, its questions.
    """

    frames: np.ndarray
    labels: np.ndarray
    questions: list[tuple[Question, ...]]


def frame_labels(scene: Scene, frame: int) -> np.ndarray:
    """What stage 1 teaches about a frame: float32 [45].

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
    """A clip as a file would give it: through H.264, 8 frames by transformers' rule, resized as its processor does."""
    scene = shapes.sample_clip(seed)
    taken = SAMPLING.indices(shapes.FRAMES, shapes.FPS)
    frames = PREPROCESS(shapes.decode_mp4(shapes.encode_mp4(scene.frames))[taken])
    return frames, np.stack([frame_labels(scene, i) for i in taken]), scene.questions


def make_image(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[Question, ...]]:
    scene = shapes.sample_image(seed)
    return PREPROCESS(scene.frames), frame_labels(scene, 0)[None], scene.questions


def make(pool: Any, what: Callable[[int], Any], seeds: range, title: str) -> Media:
    made = list(tqdm(pool.imap(what, seeds, chunksize=16), title, len(seeds), unit="scene"))
    frames, labels, questions = zip(*made, strict=True)
    return Media(np.stack(frames), np.stack(labels), list(questions))


# ── 2. Tokenizer and processor ──────────────────────────────────────────────────────────────────────────────


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
    """Conversations as the decoder is trained on them, padded on the right.

    Attributes:
        ids: int32 [N, T], a medium's token once for each of its features.
        labels: int32 [N, T], the id to predict after each token, or -1 where there is nothing to learn.
    """

    ids: np.ndarray
    labels: np.ndarray


def tokenize(
    processor: VideoLlavaProcessor, media: Media, rng: np.random.Generator, questions: int, length: int = 0
) -> Texts:
    """Up to `questions` questions about each medium as one conversation; with 1, the one that is evaluated.

    Half of the conversations end their earlier answers with `</s>`, as the authors do, half with a space, as
    transformers' chat template does. Either way `</s>` is what follows an answer.
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


# ── 3. Model ────────────────────────────────────────────────────────────────────────────────────────────────


def make_config(processor: VideoLlavaProcessor) -> VideoLlavaConfig:
    """1.1 million parameters in the shape of the 7B model."""
    return VideoLlavaConfig(
        vision_config=VisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=SIDE // GRID,
        ),
        text_config=TextConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            pad_token_id=processor.tokenizer.pad_token_id,
        ),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )


def scaled(parameters: Parameters) -> Parameters:
    """Initial values for narrow layers: matrices of standard deviation 0.7 / √inputs, embeddings of 0.1.

    The model's own 0.02 suits a width of 4096; at 128 it would train ten times more slowly.
    """

    def rescale(name: str, value: jax.Array) -> jax.Array:
        if value.ndim < 2 or "position_embedding" in name:
            return value
        std = 0.1 if "embed_tokens" in name else 0.7 * np.prod(value.shape[1:]) ** -0.5
        return value * (std / jnp.std(value))

    return {name: rescale(name, value) for name, value in parameters.items()}


# ── 4. Training ─────────────────────────────────────────────────────────────────────────────────────────────


def make_schedule(rate: float, steps: int) -> optax.Schedule:
    """The rate warms up for 5% of the steps and falls along a cosine to 2%."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps, 0.02 * rate)


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, clipped at norm 1."""
    matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02, mask=matrices))


def train(
    title: str,
    loss: Callable[..., jax.Array],
    trained: Parameters,
    batches: Iterator[tuple[np.ndarray, ...]],
    *,
    schedule: optax.Schedule,
    steps: int,
    after: Callable[[int, Parameters], None] | None = None,
) -> Parameters:
    """`steps` steps on `loss(trained, *batch)`, with a progress bar; the trained parameters.

    `after`, if any, is called after each step with the number of steps done and the parameters.
    """
    optimizer = make_optimizer(schedule)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained: Parameters, state: Any, *batch: jax.Array) -> tuple[Parameters, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(trained, *batch)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, value

    smooth = None
    for i, batch in zip(bar := tqdm(range(steps), title, unit="step"), batches, strict=False):
        trained, state, value = step(trained, state, *batch)
        smooth = float(value) if smooth is None else 0.98 * smooth + 0.02 * float(value)
        bar.set_postfix(loss=f"{smooth:.3f}")
        if after is not None:
            after(i + 1, trained)
    return trained


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def align_loss(hidden: jax.Array, labels: jax.Array, heads: Parameters) -> jax.Array:
    """How badly linear heads read `frame_labels` from the selected hidden state [B, 17, D] of a tower."""
    normed = jax.nn.standardize(hidden, axis=-1)

    def read(name: str, x: jax.Array) -> jax.Array:
        return x @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]

    patch_shape, patch_colour = labels[:, :16].astype(int), labels[:, 16:32].astype(int)
    colours, kinds, number, centre = labels[:, 32:38], labels[:, 38:42], labels[:, 42], labels[:, 43:]
    patches = normed[:, 1:]
    loss = cross_entropy(read("patch.shape", patches), patch_shape).mean()
    loss += cross_entropy(read("patch.colour", patches), patch_colour).mean()
    for where, x in (("class", normed[:, 0]), ("mean", patches.mean(1))):
        loss += optax.sigmoid_binary_cross_entropy(read(f"{where}.colours", x), colours).mean()
        loss += optax.sigmoid_binary_cross_entropy(read(f"{where}.shapes", x), kinds).mean()
        loss += 0.5 * cross_entropy(read(f"{where}.number", x), number.astype(int)).mean()
        loss += 2 * jnp.square(read(f"{where}.centre", x) - centre).mean()
    return loss


def make_heads(rng: np.random.Generator, width: int) -> Parameters:
    sizes = {"patch.shape": 5, "patch.colour": 7}
    for where in ("class", "mean"):
        sizes |= {f"{where}.colours": 6, f"{where}.shapes": 4, f"{where}.number": 5, f"{where}.centre": 2}
    heads: Parameters = {}
    for name, size in sizes.items():
        heads[f"{name}.weight"] = jnp.asarray(rng.normal(0, width**-0.5, (size, width)), jnp.float32)
        heads[f"{name}.bias"] = jnp.zeros(size)
    return heads


def some_frames(images: Media, clips: Media) -> tuple[np.ndarray, np.ndarray]:
    """What the image tower is aligned on: images, and two frames of each clip, with their labels."""
    return (
        np.concatenate([images.frames[:, 0], clips.frames[:, 1], clips.frames[:, 6]]),
        np.concatenate([images.labels[:, 0], clips.labels[:, 1], clips.labels[:, 6]]),
    )


def every_frame(media: Media) -> tuple[np.ndarray, np.ndarray]:
    """All frames with their labels."""
    return media.frames.reshape(-1, *media.frames.shape[2:]), media.labels.reshape(-1, media.labels.shape[-1])


def labelled_frames(
    x: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of frames and labels, without end."""
    while True:
        rows = rng.integers(len(x), size=size)
        yield x[rows], y[rows]


def video_tower_of(parameters: Parameters) -> Parameters:
    """The image tower's parameters under the names of the video tower's."""
    return {
        name.replace("image_tower", "video_tower"): value
        for name, value in parameters.items()
        if name.startswith("image_tower")
    }


class Tiny:
    """The model as functions of its named parameters."""

    def __init__(self, config: VideoLlavaConfig, seed: int):
        self.graph, self.state = nnx.split(VideoLlava(config, rngs=nnx.Rngs(seed)))
        self.predict = jax.jit(lambda *args: self.answer_logits(*args).argmax(-1))

    def module(self, parameters: Parameters) -> VideoLlava:
        return nnx.merge(self.graph, with_parameters(self.state, parameters))

    def normalise(self, frames: jax.Array) -> jax.Array:
        return (frames.astype(jnp.float32) / 255 - jnp.asarray(PREPROCESS.mean)) / jnp.asarray(PREPROCESS.std)

    def hidden(self, parameters: Parameters, tower: str, frames: jax.Array) -> jax.Array:
        """The selected hidden state of uint8 frames [B, S, S, 3]."""
        model = self.module(parameters)
        return getattr(model, tower)(self.normalise(frames), model.config.feature_layers)

    def features(self, model: VideoLlava, frames: jax.Array) -> jax.Array:
        """What the decoder sees of the frames, or of the hidden states, of `Media`: [B, tokens, D]."""
        is_image = frames.shape[1] == 1
        if frames.ndim == 4:
            B, _, _, D = frames.shape
            return model.multi_modal_projector(frames[:, 0, 1:] if is_image else frames.reshape(B, -1, D))
        pixels = self.normalise(frames)
        return model.encode_images(pixels[:, 0]) if is_image else model.encode_videos(pixels)

    def answer_logits(self, parameters: Parameters, frames: jax.Array, ids: jax.Array) -> jax.Array:
        """Logits after the tokens behind the medium, [B, T - start, V]; start as `answer_start` says."""
        model = self.module(parameters)
        features = self.features(model, frames)
        if frames.shape[1] == 1:
            x = model.embed(ids, image_features=features)
        else:
            x = model.embed(ids, video_features=features)
        x = model.language_model(x, jnp.ones(ids.shape, bool))
        return model.logits(x[:, answer_start(frames) :])

    def answer_loss(self, parameters: Parameters, frames: jax.Array, ids: jax.Array, labels: jax.Array) -> jax.Array:
        labels = labels[:, answer_start(frames) :]
        losses = cross_entropy(self.answer_logits(parameters, frames, ids), jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum() / (labels >= 0).sum()


def answer_start(frames: jax.Array | np.ndarray) -> int:
    """How many tokens of a conversation are a medium's: no answer comes before them."""
    return GRID**2 if frames.shape[1] == 1 else FRAMES * (GRID**2 + 1)


def align(
    title: str,
    tiny: Tiny,
    parameters: Parameters,
    heads: Parameters,
    tower: str,
    batches: Iterator[tuple[np.ndarray, ...]],
    *,
    schedule: optax.Schedule,
    steps: int,
) -> tuple[Parameters, Parameters]:
    """Trains a tower together with the heads that read it: all parameters with the tower's new ones, and the heads."""
    frozen = {name: value for name, value in parameters.items() if not name.startswith(tower)}

    def loss(trained: Parameters, x: jax.Array, y: jax.Array) -> jax.Array:
        model = {name: value for name, value in trained.items() if name.startswith(tower)}
        return align_loss(tiny.hidden(frozen | model, tower, x), y, trained)

    trained = {name: parameters[name] for name in parameters if name not in frozen} | heads
    trained = train(title, loss, trained, batches, schedule=schedule, steps=steps)
    heads = {name: trained.pop(name) for name in heads}
    return parameters | trained, heads


def conversations(
    processor: VideoLlavaProcessor,
    parts: Sequence[tuple[Media, int]],
    questions: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, ...]]:
    """For each part a batch of its size: frames, ids and labels. The questions are drawn anew every 400 steps."""
    lengths = [0] * len(parts)
    while True:
        texts = [
            tokenize(processor, media, rng, questions, length)
            for (media, _), length in zip(parts, lengths, strict=True)
        ]
        lengths = [text.ids.shape[1] for text in texts]
        for _ in range(400):
            batch: list[np.ndarray] = []
            for (media, size), text in zip(parts, texts, strict=True):
                rows = rng.integers(len(text.ids), size=size)
                batch += [media.frames[rows], text.ids[rows], text.labels[rows]]
            yield tuple(batch)


def accuracy(tiny: Tiny, parameters: Parameters, processor: VideoLlavaProcessor, media: Media) -> dict[str, list[int]]:
    """[right, asked] by kind, one question a medium. Right: greedy decoding says the answer and stops.

    The answer is fed as if said, and every token of it and `</s>` has to be the most likely one: exactly when
    that holds does greedy decoding produce it.
    """
    texts = tokenize(processor, media, np.random.default_rng(0), questions=1)
    counts: dict[str, list[int]] = {}
    for start in range(0, len(texts.ids), 100):
        part = slice(start, start + 100)
        said = np.asarray(tiny.predict(parameters, media.frames[part], texts.ids[part]))
        labels = texts.labels[part, answer_start(media.frames) :]
        right = ((said == labels) | (labels < 0)).all(1)
        for ok, asked in zip(right, media.questions[part], strict=True):
            count = counts.setdefault(asked[0].kind, [0, 0])
            count[0] += int(ok)
            count[1] += 1
    return counts


# ── 5. The run, from top to bottom ──────────────────────────────────────────────────────────────────────────


def main() -> None:
    recipe, out = parse_arguments()
    started = time.monotonic()
    rng = np.random.default_rng(recipe.seed)

    with multiprocessing.get_context("spawn").Pool() as pool:
        clips = make(pool, make_clip, TRAIN_SEEDS[: recipe.clips], "clips")
        images = make(pool, make_image, TRAIN_SEEDS[: recipe.images], "images")
        wide = EVAL_SEEDS[FIRST_WIDE : FIRST_WIDE + recipe.evaluated_wide]
        unseen = {
            "clips": make(pool, make_clip, EVAL_SEEDS[: recipe.evaluated], "unseen clips"),
            "images": make(pool, make_image, EVAL_SEEDS[: recipe.evaluated], "unseen images"),
            "more clips": make(pool, make_clip, wide, "more unseen clips"),
            "more images": make(pool, make_image, wide, "more unseen images"),
        }

    questions = [question for media in (clips, images) for asked in media.questions for question in asked]
    with tempfile.TemporaryDirectory() as directory:
        processor = make_processor(questions, Path(directory))
        tokenizer_model = (Path(directory) / "tokenizer.model").read_bytes()
    config = make_config(processor)
    tiny = Tiny(config, recipe.seed)
    parameters = scaled(named_parameters(tiny.state))

    # Stage 1: the image tower on images and on frames of clips; the video tower starts from it.
    heads = make_heads(rng, config.vision_config.hidden_size)
    for tower, (x, y), steps, rate in (
        ("image_tower", some_frames(images, clips), recipe.align_steps, recipe.align_rate),
        ("video_tower", every_frame(clips), recipe.align_steps // 3, recipe.align_rate / 3),
    ):
        if tower == "video_tower":
            parameters |= video_tower_of(parameters)
        batches = labelled_frames(x, y, recipe.align_batch, rng)
        parameters, heads = align(
            f"1 align {tower}",
            tiny,
            parameters,
            heads,
            tower,
            batches,
            schedule=make_schedule(rate, steps),
            steps=steps,
        )

    # Stages 2 and 3: the same conversations, first with the towers frozen.
    for title, frozen_parts, steps, rate in (
        ("2 project", ("image_tower", "video_tower"), recipe.project_steps, recipe.project_rate),
        ("3 fine-tune", (), recipe.tune_steps, recipe.tune_rate),
    ):
        frozen = {name: value for name, value in parameters.items() if name.startswith(frozen_parts or ("-",))}

        def answer_loss(trained: Parameters, *batch: jax.Array, frozen=frozen) -> jax.Array:
            everything = frozen | trained
            return tiny.answer_loss(everything, *batch[:3]) + tiny.answer_loss(everything, *batch[3:])

        parts = ((clips, recipe.clip_batch), (images, recipe.image_batch))
        batches = conversations(processor, parts, recipe.questions, rng)
        trained = {name: value for name, value in parameters.items() if name not in frozen}
        trained = train(title, answer_loss, trained, batches, schedule=make_schedule(rate, steps), steps=steps)
        parameters |= trained
        report = {name: accuracy(tiny, parameters, processor, media) for name, media in unseen.items()}
        print_table(title, report)

    save(out, parameters, config, processor, tokenizer_model)
    minutes = (time.monotonic() - started) / 60
    write_card(out, recipe, report, parameters, minutes)
    print(f"{minutes:.1f} minutes; written to {out}")


def parse_arguments() -> tuple[Recipe, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few scenes: does it run?")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), help=f"default: {field.default}")
    arguments = vars(parser.parse_args())
    given = {field.name: arguments[field.name] for field in dataclasses.fields(Recipe)}
    chosen = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(QUICK if arguments["quick"] else Recipe(), **chosen)
    if not 1 <= recipe.clips <= len(TRAIN_SEEDS) or not 1 <= recipe.images <= len(TRAIN_SEEDS):
        parser.error(f"--clips and --images: expected 1 to {len(TRAIN_SEEDS)}, the seeds kept for training")
    return recipe, arguments["out"]


def percent(counts: list[int]) -> str:
    return f"{100 * counts[0] / counts[1]:.1f}%"


def total(counts: dict[str, list[int]]) -> list[int]:
    return [sum(count[i] for count in counts.values()) for i in range(2)]


def print_table(title: str, report: dict[str, dict[str, list[int]]]) -> None:
    print(f"\nafter stage {title}: exact answers on unseen media")
    for name, counts in report.items():
        kinds = CLIP_KINDS if "clips" in name else IMAGE_KINDS
        cells = [f"{kind} {percent(counts[kind])}" for kind in kinds if kind in counts]
        print(f"  {name:12} {percent(total(counts)):>6}   " + "  ".join(cells))
    print()


def save(
    out: Path,
    parameters: Parameters,
    config: VideoLlavaConfig,
    processor: VideoLlavaProcessor,
    tokenizer_model: bytes,
) -> None:
    """Writes the checkpoint as transformers 5 saves it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(tokenizer_model)
    processor.save_pretrained(out)
    (out / "config.json").write_text(json.dumps({**config.to_hf(), "dtype": "float32"}, indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": processor.tokenizer.pad_token_id}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {stored_name(name): np.asarray(value, np.float32) for name, value in parameters.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def stored_name(name: str) -> str:
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.replace("language_model.", "language_model.model.", 1)


def write_card(
    out: Path, recipe: Recipe, report: dict[str, dict[str, list[int]]], parameters: Parameters, minutes: float
) -> None:
    """`card.json` for programs and `README.md` for people: data, steps, seed, and accuracy by kind with counts."""
    size = sum(value.size for value in parameters.values())
    card = {
        "parameters": size,
        "recipe": dataclasses.asdict(recipe),
        "minutes": round(minutes, 1),
        "train_seeds": {"clips": [0, recipe.clips], "images": [0, recipe.images]},
        "eval_seeds": [EVAL_SEEDS.start, EVAL_SEEDS.start + recipe.evaluated],
        "wide_eval_seeds": [
            EVAL_SEEDS.start + FIRST_WIDE,
            EVAL_SEEDS.start + FIRST_WIDE + recipe.evaluated_wide,
        ],
        "accuracy": report,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    rows = []
    for name, counts in report.items():
        kinds = CLIP_KINDS if "clips" in name else IMAGE_KINDS
        for kind in (*(kind for kind in kinds if kind in counts), "all"):
            right, asked = total(counts) if kind == "all" else counts[kind]
            rows.append(f"| {name} | {kind} | {right} of {asked} | {percent([right, asked])} |")
    (out / "README.md").write_text(CARD.format(size=size, rows="\n".join(rows), minutes=minutes, **vars(recipe)))


CARD = """# A tiny Video-LLaVA that answers

{size:,} parameters, trained from nothing by `train/tiny.py` on procedurally made images and H.264 clips of
coloured shapes (`videollava_jax.assets.world`). It knows that world and nothing else: what is there (colour, shape),
where, how many, which way it moves, what came first or last, and whether it changed colour. It is here so that the
whole pipeline can be tried and tested without a download.

Ask it as in training: `USER: <video>\\nWhich way does it move? ASSISTANT:`. Frames are 56 pixels, 8 a clip.

## Training
- data: {clips} clips and {images} images, made with seeds from the training range
- steps: {align_steps} to align the image tower (batch {align_batch}, rate {align_rate}) and a third as many for the
  video tower, {project_steps} with the towers frozen (rate {project_rate}), {tune_steps} of everything
  (rate {tune_rate}), each on {clip_batch} clips and {image_batch} images
- seed {seed}; {minutes:.0f} minutes on the machine that made this card

## Exact answers on unseen media
One question a medium, greedy, float32. Seeds are from the evaluation range, which training never draws from.

| media | kind | right | |
|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
