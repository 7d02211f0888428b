"""`videollava demo`, `ask` and `chat`: questions about one set of media."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.cli.asked import (
    STDIN,
    add_media_arguments,
    lines_of_standard_input,
    open_media,
    require_text,
    tell_apart,
    without_effect,
)
from videollava_jax.cli.common import (
    add_model_arguments,
    begin_command,
    frame_sampling_of,
    open_processor,
    print_json,
)
from videollava_jax.cli.errors import UsageError, print_error
from videollava_jax.config import require_whole_windows
from videollava_jax.generation.options import from_arguments

if TYPE_CHECKING:
    from videollava_jax.generation.chat import Chat, Turn
    from videollava_jax.media import Medium


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `demo`."""
    begin_command(
        parser,
        demo,
        "It needs no network and takes less than a minute on a laptop.\n\n"
        "  videollava demo\n"
        "  videollava demo --picture shown.png --json",
    )
    parser.add_argument(
        "--picture", type=Path, default=Path("videollava-demo.png"), help="file to draw to; default: %(default)s"
    )


def demo(arguments: argparse.Namespace) -> None:
    """Runs the demonstration and draws its answers."""
    from videollava_jax.cli.demo import run_demo
    from videollava_jax.cli.picture import prepare_picture, save_picture

    prepare_picture(arguments.picture)
    started = time.perf_counter()
    panels = run_demo(_print_nothing if arguments.json else print)
    save_picture(arguments.picture, panels)
    if arguments.json:
        for media, turns in panels:
            for turn in turns:
                print_json(_record(media, turn))
    else:
        print(f"\n{time.perf_counter() - started:.1f} s in all; the frames and answers are in {arguments.picture}")


def add_ask(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `ask`."""
    begin_command(
        parser,
        ask,
        "Each question is asked on its own. The media are read and encoded once for all questions. In the prompt\n"
        "images come before videos, or all media in their order, as the checkpoint's preset says.\n\n"
        '  videollava ask clip.mp4 "Which way does it move?"\n'
        '  videollava ask before.png after.png "What has changed?" "What is new?"\n'
        "  videollava ask clip.mp4 - < questions.txt                a question on each line\n"
        '  curl -s https://example.org/clip.mp4 | videollava ask - "What happens?"\n'
        '  videollava ask --frames-from frames/ "What happens?"     image files as a video, by their names\n'
        '  videollava ask --as-video 1.png 2.png 3.png "What happens?"\n'
        '  videollava ask clip.mp4 "What happens?" --picture answer.png --json',
    )
    parser.usage = "videollava ask [options] MEDIUM [MEDIUM ...] QUESTION [QUESTION ...]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MEDIUM | QUESTION",
        help="images and videos, and then what to ask; - is standard input: a medium, or after the media questions, "
        "one on each line",
    )
    parser.add_argument(
        "-q",
        "--question",
        action="append",
        default=[],
        help="a question that is also the name of a file; can be given several times",
    )
    parser.add_argument("--picture", type=Path, help="draw the frames that the model saw and the answers to this file")
    add_media_arguments(parser)
    add_model_arguments(parser)


def ask(arguments: argparse.Namespace) -> None:
    """Answers each question on its own.

    Raises:
      UsageError: the command line names no question, or no medium.
    """
    asked = tell_apart(arguments.words, arguments.question, without_media=bool(arguments.frames_from or arguments.more))
    if arguments.picture is not None:
        from videollava_jax.cli.picture import prepare_picture

        prepare_picture(arguments.picture)
    options = from_arguments(arguments)
    questions = lines_of_standard_input() if asked.questions == (STDIN,) else asked.questions
    media, chat = _open(arguments, asked.media, options)
    turns = []
    for question in questions:
        chat.restart()
        turn = chat.ask(question, **options)
        turns.append(turn)
        if arguments.json:
            print_json(_record(media, turn))
        else:
            print(turn.answer if len(questions) == 1 else f"{question}\n  {turn.answer}", flush=True)
    if arguments.picture is not None:
        from videollava_jax.cli.picture import save_picture

        save_picture(arguments.picture, [(media, turns)])


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `chat`."""
    begin_command(
        parser,
        chat,
        "Reads questions from the terminal, or one per line from standard input. The media are encoded once, and the\n"
        "KV cache of earlier turns stays on the device.\n\n"
        "  videollava chat clip.mp4\n"
        "  videollava chat before.png after.png --temperature 0.7\n"
        "  videollava chat clip.mp4 < questions.txt",
    )
    parser.add_argument("words", nargs="*", metavar="MEDIUM", help="images and videos")
    add_media_arguments(parser)
    add_model_arguments(parser)


def chat(arguments: argparse.Namespace) -> None:
    """Answers questions in turn until the input ends.

    Raises:
      UsageError: a medium shall come through standard input, where the questions come from.
    """
    if STDIN in [*arguments.words, *arguments.more]:
        raise UsageError("-: a chat reads its questions from standard input; expected names of files as media")
    options = from_arguments(arguments)
    media, chat = _open(arguments, arguments.words, options)
    interactive = sys.stdin.isatty()
    if interactive:
        for medium in media:
            print(medium.description)
        print("Ask away. /new forgets the conversation and keeps the media; /quit, or Ctrl-D, ends.")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # require_text says what is wrong
    while (line := _read_line("> " if interactive else "")) is not None:
        question = line.strip()
        if not question:
            continue
        if question == "/quit":
            return
        if question == "/new":
            chat.restart()
            continue
        on_text = None if arguments.json else _stream
        try:
            turn = chat.ask(require_text(question), on_text=on_text, **options)
        except ValueError as error:  # such as a question that is too long: the conversation can go on
            if not interactive:
                raise
            print_error(error)
            continue
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(interrupted: this turn is forgotten)")
            continue
        if arguments.json:
            print_json(_record(media, turn))
        else:
            print(flush=True)


def _open(arguments: argparse.Namespace, names: Sequence[str], options: Mapping[str, Any]) -> tuple[list[Medium], Chat]:
    """Opens the media, and then the model: an error about a file comes before the weights are loaded."""
    path, processor = open_processor(arguments)
    frame_sampling = frame_sampling_of(arguments, processor)
    media = open_media(arguments, [*names, *arguments.more], frame_sampling, processor)
    for medium in media:
        if medium.kind == "video":
            require_whole_windows(medium.path, len(medium.frames), processor.frame_window)
    for sentence in without_effect(arguments, media, options["do_sample"]):
        print_error(sentence)

    from videollava_jax.generation.chat import Chat  # imports JAX
    from videollava_jax.generation.loaded import LoadedModel

    model = LoadedModel.load(path, dtype=arguments.dtype)
    return media, Chat.about(model, processor, media)


def _record(media: Sequence[Medium], turn: Turn) -> dict[str, Any]:
    """The record of a turn that `--json` prints."""
    shown = [
        {
            "path": medium.path,
            "kind": medium.kind,
            "frames": medium.indices.tolist(),
            "times": [None if math.isnan(second) else round(second, 6) for second in medium.timestamps.tolist()],
            "total_frames": medium.total_frames,
        }
        for medium in media
    ]
    record = dataclasses.asdict(turn)
    return {"media": shown, **record, "seconds": round(turn.seconds, 4)}


def _stream(piece: str) -> None:
    print(piece, end="", flush=True)


def _print_nothing(_: str) -> None:
    pass


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None
