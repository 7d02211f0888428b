"""`videollava demo`, `ask` and `chat`: questions about one set of media."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.cli.common import (
    Commands,
    add_command,
    add_model_arguments,
    frame_sampling_of,
    open_processor,
    print_error,
    print_json,
)
from videollava_jax.generation.options import from_arguments

if TYPE_CHECKING:
    from videollava_jax.generation.chat import Chat, Turn
    from videollava_jax.media import Medium


def add_demo(commands: Commands) -> None:
    """Adds `demo`."""
    made = add_command(
        commands,
        "demo",
        demo,
        "convert the bundled tiny model, ask it about bundled files, draw the answers",
        "It needs no network and takes less than a minute on a laptop.",
    )
    made.add_argument(
        "--picture", type=Path, default=Path("videollava-demo.png"), help="file to draw to; default: %(default)s"
    )


def demo(arguments: argparse.Namespace) -> None:
    """Runs the demonstration and draws its answers."""
    from videollava_jax.cli.demo import run_demo
    from videollava_jax.cli.picture import require_picture_name, save_picture

    require_picture_name(arguments.picture)
    started = time.perf_counter()
    panels = run_demo(_print_nothing if arguments.json else print)
    save_picture(arguments.picture, panels)
    if arguments.json:
        for media, turns in panels:
            for turn in turns:
                print_json(_record(media, turn))
    else:
        print(f"\n{time.perf_counter() - started:.1f} s in all; the frames and answers are in {arguments.picture}")


def add_ask(commands: Commands) -> None:
    """Adds `ask`."""
    made = add_command(
        commands,
        "ask",
        ask,
        "answer questions about an image or a video",
        "Each question is asked on its own. The media are read and encoded once for all questions.\n\n"
        '  videollava ask clip.mp4 "Which way does it move?"\n'
        '  videollava ask before.png -m after.png "What has changed?"\n'
        '  videollava ask clip.mp4 "What happens?" --picture answer.png --json',
    )
    made.add_argument("media", nargs=1, metavar="MEDIUM", help="an image or a video")
    made.add_argument("question", nargs="+", metavar="QUESTION", help="what to ask")
    made.add_argument(
        "-m",
        "--more",
        action="append",
        default=[],
        metavar="MEDIUM",
        help="one more image or video; can be given several times",
    )
    made.add_argument("--picture", type=Path, help="draw the frames that the model saw and the answers to this file")
    add_model_arguments(made)


def ask(arguments: argparse.Namespace) -> None:
    """Answers each question on its own."""
    from videollava_jax.cli.picture import require_picture_name, save_picture

    if arguments.picture is not None:
        require_picture_name(arguments.picture)
    options = from_arguments(arguments)
    media, chat = _open(arguments)
    turns = []
    for question in arguments.question:
        chat.restart()
        turn = chat.ask(question, **options)
        turns.append(turn)
        if arguments.json:
            print_json(_record(media, turn))
        else:
            print(turn.answer if len(arguments.question) == 1 else f"{question}\n  {turn.answer}", flush=True)
    if arguments.picture is not None:
        save_picture(arguments.picture, [(media, turns)])


def add_chat(commands: Commands) -> None:
    """Adds `chat`."""
    made = add_command(
        commands,
        "chat",
        chat,
        "hold a conversation about images and videos",
        "Reads questions from the terminal, or one per line from standard input. The media are encoded once, and the\n"
        "KV cache of earlier turns stays on the device.\n\n"
        "  videollava chat clip.mp4\n"
        "  videollava chat before.png after.png --temperature 0.7",
    )
    made.add_argument("media", nargs="*", metavar="MEDIUM", help="images and videos")
    made.set_defaults(more=[])
    add_model_arguments(made)


def chat(arguments: argparse.Namespace) -> None:
    """Answers questions in turn until the input ends."""
    options = from_arguments(arguments)
    media, chat = _open(arguments)
    interactive = sys.stdin.isatty()
    if interactive:
        for medium in media:
            print(medium.description)
        print("Ask away. /new forgets the conversation and keeps the media; /quit, or Ctrl-D, ends.")
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
            turn = chat.ask(question, on_text=on_text, **options)
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


def _open(arguments: argparse.Namespace) -> tuple[list[Medium], Chat]:
    """Opens the media, and then the model: an error about a file comes before the weights are loaded."""
    from videollava_jax.config import require_whole_windows
    from videollava_jax.generation.chat import Chat
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.media import open_medium

    path, processor = open_processor(arguments)
    frame_sampling = frame_sampling_of(arguments, processor.frame_window)
    media = [open_medium(name, frame_sampling) for name in [*arguments.media, *arguments.more]]
    for medium in media:
        if medium.kind == "video":
            require_whole_windows(medium.path, len(medium.frames), processor.frame_window)
    model = LoadedModel.load(path, dtype=arguments.dtype)
    return media, Chat.about(model, processor, media)


def _record(media: Sequence[Medium], turn: Turn) -> dict[str, Any]:
    """The record of a turn that `--json` prints."""
    shown = [
        {
            "path": medium.path,
            "kind": medium.kind,
            "frames": medium.indices.tolist(),
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
