"""Parts of all commands: what begins one, shared arguments, JSON.

The functions of the commands import JAX, so `--help` and errors about arguments appear without waiting for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.generation.kinds import Kind, number, whole
from videollava_jax.generation.options import add_option_flags
from videollava_jax.hub import local_path
from videollava_jax.processing.preset import CHOICES, PRESETS
from videollava_jax.processing.prompt import TEMPLATES

if TYPE_CHECKING:
    from videollava_jax.batch.media.isolation import WorkerLimits
    from videollava_jax.engine import Engine
    from videollava_jax.engine.preparation import Reader
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.media import FrameSampling
    from videollava_jax.processing.processor import VideoLlavaProcessor

FRAMES = 8
"""Frames of a video where `--frames` does not say."""
DTYPES = ("float32", "bfloat16", "float16")
MODEL_HELP = (
    "a directory (transformers' layouts, or what `videollava convert` wrote), or a model's name on the Hugging Face "
    "hub such as LanguageBind/Video-LLaVA-7B-hf; by default the bundled tiny model, which knows coloured shapes only"
)


def begin_command(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], details: str) -> None:
    """Gives a command's parser what all commands have.

    Args:
      parser: has the first line of the command's help.
      run: called with the parsed arguments; `main` prints in one line what it raises.
      details: the rest of the help, with examples.
    """
    parser.description = f"{parser.description}\n\n{details}"
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of text")


def print_json(record: dict[str, Any]) -> None:
    """Prints a record as a line of JSON."""
    in_unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    print(json.dumps(record, ensure_ascii=not in_unicode), flush=True)


KEY = "VIDEOLLAVA_API_KEY"
"""The environment variable that holds a server's key, which a command line would show to others."""


# ── a model, frames, answers ────────────────────────────────────────────────────────────────────────────────


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command that answers questions: the model, the frames of videos, the answers."""
    add_reading_arguments(parser)
    add_option_flags(parser.add_argument_group("answers"))


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which model there is and how it reads videos."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", help=MODEL_HELP)
    model.add_argument(
        "--dtype", choices=DTYPES, help="number format of weights and compute; default: the checkpoint's"
    )
    _add_preset_arguments(parser.add_argument_group("prompts and pixels (default: the checkpoint's preset)"))
    frames = parser.add_argument_group("frames of videos")
    frames.add_argument(
        "--frames",
        type=argument_type(whole(1)),
        metavar="N",
        help=f"take this number of frames; default: {FRAMES}, as in training",
    )
    frames.add_argument(
        "--pool",
        type=argument_type(whole(1)),
        metavar="K",
        help="average each frame's tokens over windows of K by K patches, so that more frames fit: 2 leaves 65 of 257 "
        "tokens, 4 leaves 17; the model was not trained with it; default: the checkpoint's, which is none",
    )
    rule = frames.add_mutually_exclusive_group()
    rule.add_argument(
        "--linspace", action="store_true", help="the same as --sampling linspace: from the first frame to the last"
    )
    rule.add_argument(
        "--fps",
        type=argument_type(number(0, 1e6, above=True)),
        metavar="R",
        help="take this number per second, at most N in all",
    )
    rule.add_argument("--indices", type=_indices, metavar="I,I,...", help="take exactly these, counted from 0")


_FIELDS = {
    "media_order": "where media stand in a turn: first, images before videos; or where its text has them",
    "after_media": "text after a medium goes on, or starts anew with Llama's space, as the authors tokenise it",
    "after_end": "the same of text after </s>; trimmed takes that space away from the first token",
    "repeat_end": "end earlier answers in the model's own </s> and in the template's",
    "sampling": "frames of a video: arange(0, n, n / N) or linspace(0, n - 1, N)",
    "resize": "pil: antialiased, on uint8; torch: not antialiased, in floats",
    "pad_to_square": "pad images to squares with the mean colour",
}
"""The fields of a preset, with what the help says of them."""


def _add_preset_arguments(group: argparse._ActionsContainer) -> None:
    """Adds an argument for each field of a preset, whose name in the namespace is the field's."""
    group.add_argument(
        "--preset", choices=tuple(PRESETS), help="all of the following: hf as transformers, original as the authors"
    )
    group.add_argument("--template", choices=tuple(TEMPLATES), help="the way prompts are written")
    for field, says in _FIELDS.items():
        flag = f"--{field.replace('_', '-')}"
        if CHOICES[field] == (False, True):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=says)
        else:
            group.add_argument(flag, choices=CHOICES[field], help=says)
    group.add_argument("--verbose", action="store_true", help="print the preset that holds, to standard error")


def open_processor(arguments: argparse.Namespace) -> tuple[str | Path, VideoLlavaProcessor]:
    """Opens the processor of `--model` with the preset and pooling that were asked for; fetches no weights.

    Returns:
      The model's directory, or its name on the hub, and the processor.
    """
    from videollava_jax.hub import find_here
    from videollava_jax.processing.processor import VideoLlavaProcessor

    model = find_here(arguments.model, bundled=True) or arguments.model
    if isinstance(model, Path):
        _require_no_adapter(model)
    given = {name: getattr(arguments, name) for name in ("template", *CHOICES)}
    changes = {name: value for name, value in given.items() if value is not None}
    preset = changes if arguments.preset is None else {"name": arguments.preset, **changes}
    processor = VideoLlavaProcessor.from_pretrained(model, preset=preset, video_pooling=arguments.pool)
    if arguments.verbose:
        print(processor.preset, file=sys.stderr)
    return model, processor


def _require_no_adapter(model: Path) -> None:
    """Refuses an adapter by name: it has no tokenizer, either, and what is said about that would not help."""
    if any((model / name).is_file() for name in ("adapter_config.json", "mm_projector.bin")):
        from videollava_jax.weights.adapters import is_adapter

        if is_adapter(model):
            raise ValueError(
                f"{model}: an adapter, not a model: merge it into one (`videollava convert {model.name} TARGET --base "
                "MODEL`) and ask that"
            )


def frame_sampling_of(arguments: argparse.Namespace, processor: VideoLlavaProcessor) -> FrameSampling:
    """Returns the rule by which frames of a video are taken.

    Args:
      arguments: of `add_model_arguments`.
      processor: its preset's rule holds where no other is named; `--fps` takes a multiple of its `frame_window`.
    """
    from videollava_jax.media import Fps, Indices, Linspace

    count = arguments.frames or FRAMES
    if arguments.indices is not None:
        return Indices(arguments.indices)
    if arguments.fps is not None:
        return Fps(arguments.fps, max_frames=count, multiple_of=processor.frame_window)
    if arguments.linspace:
        return Linspace(count)
    rule: FrameSampling = processor.frames(count)
    return rule


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected frame numbers such as 0,5,9, got {text!r}") from None


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────


def add_media_arguments(parser: argparse.ArgumentParser, places: bool = True) -> None:
    """Adds the arguments that say where media may come from, and what reading one may take.

    Args:
      parser: of the command.
      places: whether the user says where media may come from; else the command knows.
    """
    media = parser.add_argument_group("media")
    if places:
        media.add_argument(
            "--media-root",
            type=local_path,
            metavar="DIRECTORY",
            help="directory of the media; questions name paths in it and none outside",
        )
        media.add_argument(
            "--allow-host",
            action="append",
            default=[],
            metavar="HOST",
            help="host that media may be fetched from, unless its address is private; can be given several times; "
            "default: none",
        )
    media.add_argument(
        "--workers",
        type=argument_type(whole(1)),
        default=4,
        metavar="N",
        help="processes that decode media; default: %(default)s",
    )
    media.add_argument(
        "--limit-seconds",
        type=argument_type(number(0, 86400, above=True)),
        default=60.0,
        metavar="S",
        help="time that reading one medium may take; default: %(default)g",
    )
    media.add_argument(
        "--limit-memory",
        type=size,
        default=4 * 2**30,
        metavar="SIZE",
        help="memory that reading one medium may take; default: 4GiB",
    )
    media.add_argument(
        "--limit-bytes", type=size, default=2**30, metavar="SIZE", help="size of one medium; default: 1GiB"
    )
    media.add_argument(
        "--retries",
        type=argument_type(whole(0)),
        default=1,
        metavar="N",
        help="times that a medium is tried again after it crashed or hung its process, or its host failed; "
        "default: %(default)s",
    )


def worker_limits(arguments: argparse.Namespace) -> WorkerLimits:
    """Returns the limits that `add_media_arguments` has asked for."""
    from videollava_jax.batch.media.isolation import WorkerLimits

    return WorkerLimits(
        seconds=arguments.limit_seconds,
        memory=arguments.limit_memory,
        max_bytes=arguments.limit_bytes,
        attempts=1 + arguments.retries,
    )


# ── the device, values of arguments ────────────────────────────────────────────────────────────────────────────


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the engine that are about the device."""
    device = parser.add_argument_group("the device")
    device.add_argument(
        "--max-rows", type=argument_type(whole(1)), metavar="N", help="questions answered at a time; default: what fits"
    )
    device.add_argument("--memory", type=size, metavar="SIZE", help="memory for the KV cache; default: what is free")
    add_int8_arguments(device)
    device.add_argument(
        "--mesh", type=pair, metavar="DATAxTENSOR", help="devices to spread over, such as 1x8; default: one"
    )


def load_model(arguments: argparse.Namespace, path: str | Path) -> LoadedModel:
    """Loads a model as `add_device_arguments` and `--dtype` have asked for."""
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.model.sharding import make_mesh

    return LoadedModel.load(
        path,
        dtype=arguments.dtype,
        mesh=None if arguments.mesh is None else make_mesh(*arguments.mesh),
        quantization="int8" if arguments.int8_weights else None,
    )


def make_engine(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor, reader: Reader, **options: Any
) -> Engine:
    """Loads a model and makes its engine, as `add_device_arguments` and `add_reading_arguments` have asked for.

    Args:
      reader: of media.
      options: more of the engine's.
    """
    from videollava_jax.engine import Engine

    return Engine(
        load_model(arguments, path),
        processor,
        max_rows=arguments.max_rows,
        memory=arguments.memory,
        int8_cache=arguments.int8_cache,
        readers=arguments.workers,
        reader=reader,
        **options,
    )


def add_int8_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds flags for what the engine keeps in int8."""
    parser.add_argument("--int8-weights", action="store_true", help="keep the decoder's projections in int8")
    parser.add_argument("--int8-cache", action="store_true", help="keep the keys and values of prefixes in int8")


def size(text: str) -> int:
    """Parses a number of bytes such as `8GiB`.

    Raises:
      ArgumentTypeError: any other text.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    digits = text.rstrip("bBiIkKmMgG ")
    unit = units.get(text[len(digits) :].strip().lower())
    try:
        found = int(float(digits) * unit) if unit else 0
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 8GiB, 500MB or 1000000, got {text!r}")
    return found


def argument_type(kind: Kind) -> Callable[[str], Any]:
    """Returns the `type` of an argument whose values are of a kind, for argparse."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(kind.read(text))
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"expected {kind.expected}, got {text!r}") from None

    return parse


def pair(text: str) -> tuple[int, int]:
    """Parses two numbers such as `2x4`, of a mesh or a grid.

    Raises:
      ArgumentTypeError: any other text.
    """
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"expected two numbers such as 2x4, got {text!r}")
    return int(numbers[0]), int(numbers[1])
