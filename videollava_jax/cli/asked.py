"""What a line of `ask` or `chat` names: media, and questions."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from videollava_jax.cli.common import argument_type
from videollava_jax.cli.errors import UsageError
from videollava_jax.generation.kinds import number

if TYPE_CHECKING:
    from videollava_jax.media import FrameFiles, FrameSampling, Medium
    from videollava_jax.processing.processor import VideoLlavaProcessor

STDIN = "-"
_LARGEST = 2**31
"""The most bytes of a medium from standard input, which is held in memory as a whole."""
_SUFFIXES = frozenset(
    [
        ".3gp",
        ".apng",
        ".avi",
        ".avif",
        ".bmp",
        ".flv",
        ".gif",
        ".h264",
        ".heic",
        ".heif",
        ".hevc",
        ".jpeg",
        ".jpg",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mxf",
        ".ogv",
        ".png",
        ".tif",
        ".tiff",
        ".ts",
        ".webm",
        ".webp",
        ".wmv",
    ]
)
"""Of names that are media even if there is no such file: the error is about the file then."""


class StandardInput(bytes):
    """A medium that came through standard input."""

    name = "<standard input>"  # which errors show


@dataclass(frozen=True)
class Asked:
    """The words of a command line, told apart.

    Attributes:
      media: names of files, or STDIN.
      questions: to ask; empty if they come through standard input.
    """

    media: tuple[str, ...]
    questions: tuple[str, ...]


def add_media_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how files become media."""
    group = parser.add_argument_group("media")
    group.add_argument(
        "-m",
        "--more",
        action="append",
        default=[],
        metavar="MEDIUM",
        help="one more image or video; can be given several times",
    )
    group.add_argument(
        "--as-video", action="store_true", help="the images, or the one directory, are the frames of one video"
    )
    group.add_argument(
        "--frames-from", metavar="DIRECTORY", help="a video whose frames are the images in this directory, by name"
    )
    group.add_argument(
        "--frame-rate", type=float, metavar="R", help="frames a second of images that are a video; --fps needs it"
    )

    group.add_argument(
        "--isolate",
        action="store_true",
        help="read the media in a process of its own, as `batch` and `serve` do: for files of strangers",
    )
    group.add_argument(
        "--limit-seconds",
        type=argument_type(number(0, 86400, above=True)),
        metavar="S",
        help="time that reading one medium may take; default: 120, and 60 with --isolate",
    )


def tell_apart(words: Sequence[str], given: Sequence[str], *, without_media: bool = False) -> Asked:
    """Tells media from questions: the media are first.

    A word is a medium if it is the first one, names a file or a directory, or ends as names of media do. A `-` is a
    medium from standard input; after all media it stands for questions from standard input, one on each line.

    Args:
      words: of the command line, in order.
      given: questions that an option has named.
      without_media: whether the first word may be a question, since an option has named the media.

    Raises:
      UsageError: no question, a medium after a question, or standard input for two things.
    """
    if flags := [word for word in words if re.match("--[a-z]", word)]:
        raise UsageError(f"unrecognized arguments: {flags[0]}")  # argparse takes one with a space for a positional
    media: list[str] = []
    for i, word in enumerate(words):
        last = i == len(words) - 1 and not given
        needed = not media and not without_media
        if word == STDIN and last and not needed:
            break  # the questions come through standard input
        if not (needed or word == STDIN or _is_medium(word)):
            break
        media.append(word)
    questions = [*words[len(media) :], *given]
    if late := [word for word in questions[1:] if _has_suffix(word)]:
        raise UsageError(f"{late[0]}: a file after a question; expected all media before the first question")
    if not questions:
        if not media:
            raise UsageError("expected a medium and a question, got neither")
        raise UsageError(
            f"expected a question after the media ({', '.join(media)}), got none; -q asks one that is also the name of "
            "a file"
        )
    if [*media, *questions].count(STDIN) > 1:
        raise UsageError("- is standard input, which can hold one medium or the questions, not both")
    return Asked(tuple(media), tuple(require_text(question) for question in questions))


def _is_medium(word: str) -> bool:
    return os.path.lexists(word) or _has_suffix(word)


def _has_suffix(word: str) -> bool:
    return PurePath(word).suffix.lower() in _SUFFIXES and not word.endswith("?")


def require_text(question: str) -> str:
    """Returns a question.

    Raises:
      ValueError: it is empty, or was typed in bytes that are not UTF-8.
    """
    if not question.strip():
        raise ValueError("expected a question, got an empty one")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"question: expected text in UTF-8, got the bytes {os.fsencode(question)!r}; is the terminal's encoding "
            "another one?"
        ) from None
    return question


def lines_of_standard_input() -> list[str]:
    """Reads the questions of standard input, one on each line; empty lines are skipped.

    Raises:
      ValueError: there are none, or one is not UTF-8.
    """
    lines = [line.strip() for line in _text_of_standard_input()]
    questions = [require_text(line) for line in lines if line]
    if not questions:
        raise ValueError("standard input: expected questions, one on each line, got none")
    return questions


def _text_of_standard_input() -> list[str]:
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    return list(sys.stdin)


def open_media(
    arguments: argparse.Namespace,
    names: Sequence[str],
    frame_sampling: FrameSampling,
    processor: VideoLlavaProcessor,
) -> list[Medium]:
    """Reads the media of a command line, with `--isolate` in a worker process.

    Args:
      arguments: of `add_media_arguments`.
      names: of files; STDIN for standard input.
      frame_sampling: which frames of videos are taken.
      processor: of the model.

    Raises:
      ValueError: a medium that cannot be read; the message names it.
    """
    from videollava_jax.media import FrameFiles, MediaLimits, open_medium

    sources: list[str | StandardInput | FrameFiles] = [_source(name) for name in names]
    if arguments.as_video:
        if STDIN in names:
            raise UsageError("--as-video: expected image files, got standard input")
        if not names:
            raise UsageError("--as-video: expected the images of the video, got none")
        if len(names) == 1 and os.path.isdir(names[0]):
            sources = [FrameFiles.in_directory(names[0], arguments.frame_rate)]
        else:
            sources = [FrameFiles(list(names), arguments.frame_rate)]
    if arguments.frames_from is not None:
        sources.append(FrameFiles.in_directory(arguments.frames_from, arguments.frame_rate))
    for source in sources:
        if isinstance(source, str) and os.path.isdir(source):
            raise ValueError(
                f"{source}: expected a file, got a directory; --frames-from {source} takes the images in it as the "
                "frames of a video"
            )
    seconds = {} if arguments.limit_seconds is None else {"seconds": arguments.limit_seconds}
    if not arguments.isolate:
        return [open_medium(source, frame_sampling, MediaLimits(**seconds)) for source in sources]
    from videollava_jax.batch.media.isolation import IsolatedReader, WorkerLimits

    with IsolatedReader(processor, WorkerLimits(**seconds)) as reader:
        return [reader.open_medium(source, frame_sampling) for source in sources]


def _source(name: str) -> str | StandardInput:
    if name != STDIN:
        return name
    if sys.stdin.isatty():
        raise UsageError("-: expected an image or a video through a pipe, such as `videollava ask - ... < clip.mp4`")
    content = sys.stdin.buffer.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{StandardInput.name}: expected at most {_LARGEST} bytes, got more; save it to a file")
    return StandardInput(content)


def without_effect(arguments: argparse.Namespace, media: Sequence[Medium], draws: bool) -> list[str]:
    """Returns a sentence for each option that was given and changes nothing.

    Args:
      arguments: of a command with a model, frames and answers.
      media: that were read.
      draws: whether tokens are drawn.
    """
    said = []

    def given(*names: str) -> str:
        return " and ".join(
            f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) not in (None, False)
        )

    if not draws and (flags := given("top_k", "top_p", "seed", "temperature")) and flags != "--temperature":
        said.append(f"{flags}: no effect, as tokens are drawn only with --temperature above 0")
    elif arguments.do_sample is False and arguments.temperature:
        said.append("--temperature: no effect with --no-do-sample")
    if arguments.indices is not None and arguments.frames is not None:
        said.append("--frames: no effect with --indices, which names the frames")
    if arguments.frame_rate is not None and not (arguments.as_video or arguments.frames_from):
        said.append("--frame-rate: no effect without --as-video or --frames-from")
    if arguments.sampling is not None and (flags := given("linspace", "fps", "indices")):
        said.append(f"--sampling: no effect with {flags}")
    if all(medium.kind == "image" for medium in media):
        flags = given("frames", "linspace", "sampling", "fps", "indices", "pool")
        if flags:
            said.append(f"{flags}: no effect, as there is no video among the media")
    return said
