"""Measures the bundled tiny model's accuracy with more frames and with pooled frames; it was trained with neither.

    python benchmarks/pooling.py                    # prints the table of docs/more_frames.md, in some minutes
    python benchmarks/pooling.py --clips 70 --json  # fewer clips, one JSON object a row

Each question is the first about a drawn clip (`videollava_jax/assets/world.py`) that was not in the training data, with
an equal number of questions of every kind. Clips are encoded as H.264 and decoded again. A clip has 16 frames, so 32
show each of them twice.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import TINY
from videollava_jax.assets.world import CLIP_KINDS, EVAL_SEEDS, decode_mp4, encode_mp4, sample_clip
from videollava_jax.config import poolings
from videollava_jax.media import Uniform

FRAMES = (8, 16, 32)
FIRST_SEED = 10_000  # index in EVAL_SEEDS, after the seeds that tests use
BATCH = 50
NEW_TOKENS = 6


@dataclass(frozen=True)
class Clip:
    """A question about a clip: uint8 frames [16, H, W, 3] as decoded, and the only right answer."""

    kind: str
    prompt: str
    answer: str
    frames: np.ndarray


@dataclass(frozen=True)
class Row:
    """A line of the table: the share of right answers, in all and by kind of question."""

    frames: int
    video_pooling: int
    tokens_per_frame: int
    video_tokens: int
    accuracy: float
    kinds: dict[str, float]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100 * len(CLIP_KINDS), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of a table")
    arguments = parser.parse_args()
    model = VideoLlavaForConditionalGeneration.from_pretrained(TINY)
    processor = VideoLlavaProcessor.from_pretrained(TINY)
    clips = drawn_clips(arguments.clips)
    if not arguments.json:
        columns = ("frames", "pooling", "tokens", "right", *CLIP_KINDS)
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in measured(model, processor, clips):
        print(json.dumps(asdict(row)) if arguments.json else as_markdown(row), flush=True)


def drawn_clips(count: int) -> list[Clip]:
    """Draws clips, each with a question."""
    clips = []
    for seed in EVAL_SEEDS[FIRST_SEED : FIRST_SEED + count]:
        scene = sample_clip(seed)
        question = scene.questions[0]
        prompt = f"USER: <video>\n{question.text} ASSISTANT:"
        clips.append(Clip(question.kind, prompt, question.answer, decode_mp4(encode_mp4(scene.frames))))
    return clips


def measured(
    model: VideoLlavaForConditionalGeneration, processor: VideoLlavaProcessor, clips: Sequence[Clip]
) -> Iterator[Row]:
    """Yields a row for each number of frames and each pooling that fit into the model's positions."""
    vision, text = model.model_config.vision_config, model.model_config.text_config
    for frames in FRAMES:
        for pooling in poolings(vision.patches_per_side):
            each = model.model_config.pooled_tokens_per_frame(pooling)
            if frames * each >= text.max_position_embeddings:
                continue
            given = answers(model, processor, clips, frames, pooling)
            right = np.array([text == clip.answer for text, clip in zip(given, clips, strict=True)])
            kinds = np.array([clip.kind for clip in clips])
            shares = {kind: float(right[kinds == kind].mean()) for kind in CLIP_KINDS if (kinds == kind).any()}
            yield Row(frames, pooling, each, frames * each, float(right.mean()), shares)


def answers(
    model: VideoLlavaForConditionalGeneration,
    processor: VideoLlavaProcessor,
    clips: Sequence[Clip],
    frames: int,
    pooling: int,
) -> list[str]:
    """Decodes answers greedily."""
    given = []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        inputs = processor(
            text=[clip.prompt for clip in part],
            videos=[clip.frames[Uniform(frames).indices(len(clip.frames), None)] for clip in part],
            video_pooling=pooling,
            padding=True,
        )
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        given += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in given]


def as_markdown(row: Row) -> str:
    """Formats a row of the table."""
    tokens = f"{row.frames} × {row.tokens_per_frame} = {row.video_tokens}"
    shares = [f"{100 * share:.0f}" for share in row.kinds.values()]
    return f"| {row.frames} | {row.video_pooling} | {tokens} | {100 * row.accuracy:.1f} % | {' | '.join(shares)} |"


if __name__ == "__main__":
    main()
