"""What the commands share: how one is declared, options and their values, JSON, errors of one line.

JAX is imported by the commands' functions, so that `--help` and a wrong argument are answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from videollava_jax.generation.options import add_option_flags
from videollava_jax.processing.prompt import TEMPLATES

if TYPE_CHECKING:
    from videollava_jax.media import FrameSampling
    from videollava_jax.processing.processor import VideoLlavaProcessor

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DTYPES = ("float32", "bfloat16", "float16")
MODEL_HELP = (
    "a directory (transformers' layouts, or what `videollava convert` wrote), or a model's name on the Hugging Face "
    "hub such as LanguageBind/Video-LLaVA-7B-hf; by default the bundled tiny model, which knows coloured shapes only"
)


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str, details: str
) -> argparse.ArgumentParser:
    """The parser of a command, with `--json`.

    Args:
      run: called with the parsed arguments; what it raises of ValueError and OSError is told in a line.
      text: what it does, as the list of commands has it.
      details: the rest of its help.
    """
    made = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.\n\n{details}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    made.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    return made


def print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)


def print_error(error: object) -> None:
    print(f"videollava: {error}", file=sys.stderr)


# ── a model, frames, answers ────────────────────────────────────────────────────────────────────────────────


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that answers questions."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", help=MODEL_HELP)
    model.add_argument("--dtype", choices=DTYPES, help="of parameters and compute; default: the checkpoint's")
    model.add_argument(
        "--template", choices=tuple(TEMPLATES), help="how prompts are written; default: the checkpoint's own way"
    )
    frames = parser.add_argument_group("frames of videos")
    frames.add_argument(
        "--frames", type=int, default=8, metavar="N", help="how many; default: 8, as the model was trained"
    )
    frames.add_argument(
        "--pool",
        type=int,
        metavar="K",
        help="average each frame's tokens over windows of K by K patches, so that more frames fit: of 257 tokens 2 "
        "leaves 65, 4 leaves 17; the model was not trained for it. Default: the checkpoint's own, which is none",
    )
    rule = frames.add_mutually_exclusive_group()
    rule.add_argument(
        "--linspace", action="store_true", help="spread from the first frame to the last, as the authors do"
    )
    rule.add_argument("--fps", type=float, help="so many a second, at most N")
    rule.add_argument("--indices", type=_indices, metavar="I,I,...", help="exactly these, counted from 0")
    add_option_flags(parser.add_argument_group("answers"))


def open_processor(arguments: argparse.Namespace) -> tuple[str | Path, VideoLlavaProcessor]:
    """Opens the processor of `--model` with the template and pooling that were asked for; fetches no weights.

    Returns:
      the model's directory, or its name on the hub, and the processor.
    """
    from videollava_jax.hub import find_here
    from videollava_jax.processing.processor import VideoLlavaProcessor

    model = find_here(arguments.model, bundled=True) or arguments.model
    return model, VideoLlavaProcessor.from_pretrained(model, template=arguments.template, video_pooling=arguments.pool)


def frame_sampling_of(arguments: argparse.Namespace, frame_window: int) -> FrameSampling:
    """Which frames of a video are taken.

    Args:
      frame_window: that the model takes; frames by `--fps` are whole windows.
    """
    from videollava_jax.media import Fps, Indices, Linspace, Uniform

    if arguments.indices is not None:
        return Indices(arguments.indices)
    if arguments.fps is not None:
        return Fps(arguments.fps, max_frames=arguments.frames, multiple_of=frame_window)
    return Linspace(arguments.frames) if arguments.linspace else Uniform(arguments.frames)


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected frame numbers such as 0,5,9, got {text!r}") from None


# ── the device ──────────────────────────────────────────────────────────────────────────────────────────────


def add_int8_arguments(parser: argparse._ActionsContainer) -> None:
    """What the engine keeps in int8."""
    parser.add_argument("--int8-weights", action="store_true", help="the decoder's projections in int8")
    parser.add_argument("--int8-cache", action="store_true", help="keys and values of prefixes in int8")


def pair(text: str) -> tuple[int, int]:
    """`2x4`: a mesh or a grid."""
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"expected two numbers such as 2x4, got {text!r}")
    return int(numbers[0]), int(numbers[1])
