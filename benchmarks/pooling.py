"""What more frames and pooled frames cost a model that was trained with neither: the bundled tiny model's accuracy.

    python benchmarks/pooling.py                    # prints the table of docs/more_frames.md, in some minutes
    python benchmarks/pooling.py --clips 70 --json  # fewer clips, one JSON object a row

Questions about drawn clips that the model never saw (`videollava_jax/assets/world.py`), through real H.264: the first
question of each clip, an equal number of every kind. A clip has 16 frames, so that 32 show each of them twice.
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
FIRST_SEED = 10_000  # of EVAL_SEEDS: beyond those that the tests ask about
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
    """One line of the table: shares of right answers, in all and by kind of question."""

    frames: int
    video_pooling: int
    tokens_per_frame: int
    video_tokens: int
    accuracy: float
    kinds: dict[str, float]


def main() -> None:
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
    """A row for each number of frames and each pooling that fit the model's positions."""
    vision, text = model.config.vision_config, model.config.text_config
    for frames in FRAMES:
        for pooling in poolings(vision.patches_per_side):
            each = model.config.pooled_tokens_per_frame(pooling)
            if frames * each >= text.max_position_embeddings:
                continue
            said = answers(model, processor, clips, frames, pooling)
            right = np.array([text == clip.answer for text, clip in zip(said, clips, strict=True)])
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
    """Greedy answers."""
    said = []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        inputs = processor(
            text=[clip.prompt for clip in part],
            videos=[clip.frames[Uniform(frames).indices(len(clip.frames), None)] for clip in part],
            video_pooling=pooling,
            padding=True,
        )
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        said += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def as_markdown(row: Row) -> str:
    tokens = f"{row.frames} × {row.tokens_per_frame} = {row.video_tokens}"
    shares = [f"{100 * share:.0f}" for share in row.kinds.values()]
    return f"| {row.frames} | {row.video_pooling} | {tokens} | {100 * row.accuracy:.1f} % | {' | '.join(shares)} |"


if __name__ == "__main__":
    main()
