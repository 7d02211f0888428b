"""The `videollava` command: demo, ask, chat, convert, export, verify."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.prompt import TEMPLATES
from videollava_jax.version import __version__

# JAX is imported by the subcommands, so that `--help` and a wrong argument are answered at once.
if TYPE_CHECKING:
    from videollava_jax.chat import Chat, Turn
    from videollava_jax.media import Medium, Sampling
    from videollava_jax.weights import Conversion, Options

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 0 on success, 1 for what went wrong, 2 for wrong arguments, 130 on Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    # transformers would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run: Callable[[argparse.Namespace], None] = parsed.run
    try:
        run(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        sys.stderr.close()
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"videollava: {error}", file=sys.stderr)
        return 1
    return 0


# ── subcommands ─────────────────────────────────────────────────────────────────────────────────────────────


def demo(arguments: argparse.Namespace) -> None:
    from videollava_jax.demo import run_demo
    from videollava_jax.picture import require_picture_name, save_picture

    require_picture_name(arguments.picture)
    started = time.perf_counter()
    panels = run_demo(_nothing if arguments.json else print)
    save_picture(arguments.picture, panels)
    if arguments.json:
        for media, turns in panels:
            for turn in turns:
                _print_json(_record(media, turn))
    else:
        print(f"\n{time.perf_counter() - started:.1f} s in all; the frames and answers are in {arguments.picture}")


def ask(arguments: argparse.Namespace) -> None:
    from videollava_jax.picture import require_picture_name, save_picture

    if arguments.picture is not None:
        require_picture_name(arguments.picture)
    media, chat = _open(arguments)
    turns = []
    for question in arguments.question:
        chat.restart()
        turn = chat.ask(question, **_generation(arguments))
        turns.append(turn)
        if arguments.json:
            _print_json(_record(media, turn))
        else:
            print(turn.answer if len(arguments.question) == 1 else f"{question}\n  {turn.answer}", flush=True)
    if arguments.picture is not None:
        save_picture(arguments.picture, [(media, turns)])


def chat(arguments: argparse.Namespace) -> None:
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
            turn = chat.ask(question, on_text=on_text, **_generation(arguments))
        except ValueError as error:  # too long, say: the conversation can go on
            if not interactive:
                raise
            print(f"videollava: {error}", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(interrupted: this turn is forgotten)")
            continue
        if arguments.json:
            _print_json(_record(media, turn))
        else:
            print(flush=True)


def convert(arguments: argparse.Namespace) -> None:
    from videollava_jax.weights import convert_to_orbax

    started = time.perf_counter()
    done = convert_to_orbax(
        arguments.source,
        arguments.target,
        _conversion_options(arguments),
        tower_config=arguments.tower_config,
        base=arguments.base,
    )
    _report_conversion(arguments, done, time.perf_counter() - started)


def export(arguments: argparse.Namespace) -> None:
    from videollava_jax.weights import export
    from videollava_jax.weights.adapters import is_adapter, open_adapter, write_peft

    started = time.perf_counter()
    if is_adapter(arguments.source):  # kept apart: an adapter again, for PEFT
        for option in ("dtype", "allow_nonfinite", "drop_temporal", "adapter"):
            if getattr(arguments, option):
                flag = "--" + option.replace("_", "-")
                raise ValueError(f"{arguments.source}: an adapter is written as it is: {flag} does not apply to it")
        adapter = open_adapter(arguments.source)
        written = write_peft(adapter, arguments.target, arguments.layout)
        summary = {"source": str(arguments.source), "target": str(arguments.target), "tensors": len(written)}
        if arguments.json:
            _print_json({**summary, "from": adapter.layout, "to": arguments.layout})
        else:
            print(f"adapter of {len(written)} tensors, {adapter.layout} to {arguments.layout}\n{arguments.target}")
        return
    done = export(
        arguments.source,
        arguments.target,
        arguments.layout,
        _conversion_options(arguments),
        drop_temporal=arguments.drop_temporal,
        adapter=arguments.adapter,
    )
    _report_conversion(arguments, done, time.perf_counter() - started)


def verify(arguments: argparse.Namespace) -> None:
    from videollava_jax.weights import WeightsError, compare_checkpoints, open_checkpoint, verify_checkpoint

    if arguments.other is None:
        problems = verify_checkpoint(arguments.checkpoint, "fast" if arguments.fast else "full")
        if arguments.json:
            _print_json({"checkpoint": str(arguments.checkpoint), "problems": problems})
        if problems:
            raise WeightsError(f"{arguments.checkpoint} is not what was written:\n  " + "\n  ".join(problems))
        if not arguments.json:
            print(f"{arguments.checkpoint} is what its manifest says")
        return
    compared = compare_checkpoints(open_checkpoint(arguments.checkpoint), open_checkpoint(arguments.other))
    lines = [f"{d.name}: {d.what}{f' ({d.detail})' if d.detail else ''}" for d in compared.differences]
    record = {"equal": compared.equal, "differences": [dataclasses.asdict(d) for d in compared.differences]}
    said = [f"{compared.equal} tensors are equal to the bit, {len(lines)} are not"]
    if arguments.logits:
        from videollava_jax.comparing import compare_logits

        apart = compare_logits(arguments.checkpoint, arguments.other, dtype=arguments.dtype)
        record["logits"] = dataclasses.asdict(apart)
        said.append(str(apart))
    if arguments.json:
        _print_json(record)
    else:
        print("\n".join(said))
    if lines:
        raise WeightsError(f"{arguments.checkpoint} and {arguments.other} differ:\n  " + "\n  ".join(lines))


def _conversion_options(arguments: argparse.Namespace) -> Options:
    import jax.numpy as jnp

    from videollava_jax.weights import Options

    dtype = None if arguments.dtype is None else jnp.dtype(arguments.dtype)
    return Options(dtype=dtype, int8=arguments.int8, allow_nonfinite=arguments.allow_nonfinite)


def _report_conversion(arguments: argparse.Namespace, done: Conversion, seconds: float) -> None:
    summary = {
        "source": str(arguments.source),
        "target": str(arguments.target),
        "from": done.source.layout,
        "to": done.layout,
        "variant": done.source.config.variant,
        "tensors": len(done.tensors),
        "parameters": done.size,
        "bytes": done.nbytes,
        "already_there": done.already_there,
        "seconds": round(seconds, 3),
    }
    if arguments.json:
        _print_json(summary)
        return
    what = "nothing to do: the target holds it already" if done.already_there else f"{seconds:.1f} s"
    print(
        f"{len(done.tensors)} tensors, {done.size:,} parameters, {done.nbytes / 1e9:.3f} GB, "
        f"{done.source.layout} to {done.layout}: {what}\n{arguments.target}"
    )


# ── what they share ─────────────────────────────────────────────────────────────────────────────────────────


def _open(arguments: argparse.Namespace) -> tuple[list[Medium], Chat]:
    """The media before the weights: a bad file, or frames that the model does not take, are told at once."""
    from videollava_jax.chat import Chat
    from videollava_jax.config import require_whole_windows
    from videollava_jax.demo import TINY
    from videollava_jax.media import open_medium
    from videollava_jax.pretrained import VideoLlavaForConditionalGeneration
    from videollava_jax.processor import VideoLlavaProcessor

    path = TINY if arguments.model == "tiny" else arguments.model
    processor = VideoLlavaProcessor.from_pretrained(path, template=arguments.template, video_pooling=arguments.pool)
    sampling = _sampling(arguments, processor.frame_window)
    media = [open_medium(name, sampling) for name in [*arguments.media, *arguments.more]]
    for medium in media:
        if medium.kind == "video":
            require_whole_windows(medium.path, len(medium.frames), processor.frame_window)
    model = VideoLlavaForConditionalGeneration.from_pretrained(path, dtype=arguments.dtype)
    return media, Chat.about(model, processor, media)


def _sampling(arguments: argparse.Namespace, frame_window: int) -> Sampling:
    from videollava_jax.media import Fps, Indices, Linspace, Uniform

    if arguments.indices is not None:
        return Indices(arguments.indices)
    if arguments.fps is not None:
        return Fps(arguments.fps, max_frames=arguments.frames, multiple_of=frame_window)
    return Linspace(arguments.frames) if arguments.linspace else Uniform(arguments.frames)


def _generation(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if arguments.temperature is not None and arguments.temperature > 0:
        options |= {"do_sample": True, "temperature": arguments.temperature, "top_p": arguments.top_p}
    else:
        options["do_sample"] = False
    return options


def _record(media: Sequence[Medium], turn: Turn) -> dict[str, Any]:
    """A turn as `--json` prints it."""
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


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)


def _stream(piece: str) -> None:
    print(piece, end="", flush=True)


def _nothing(_: str) -> None:
    pass


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None


# ── arguments ───────────────────────────────────────────────────────────────────────────────────────────────

DESCRIPTION = """\
Ask questions about images and videos with Video-LLaVA, in JAX.

  videollava demo                                          what it looks like, with nothing to fetch
  videollava ask clip.mp4 "Which way does it move?"        one answer
  videollava ask clip.mp4 "What is it?" "What colour?"     the clip is read and encoded once for both
  videollava chat clip.mp4                                 a conversation about it
  videollava convert Video-LLaVA-7B-hf 7b-orbax            a checkpoint of any layout to Orbax
  videollava export 7b-orbax 7b-hf --layout hub            and back
  videollava verify 7b-orbax                               is every bit as it was written?
  videollava ask --model 7b-orbax clip.mp4 "Why is this funny?"
"""
MODEL_HELP = (
    "a directory (transformers' layouts, or what `videollava convert` wrote), or a model's name on the Hugging Face "
    "hub such as LanguageBind/Video-LLaVA-7B-hf; by default the bundled tiny model, which knows coloured shapes only"
)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("videollava", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"videollava {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str, details: str = "") -> Any:
        made = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.\n\n{details}", formatter_class=raw
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
        return made

    made = command(
        "demo",
        demo,
        "convert the bundled tiny model, ask it about bundled files, draw the answers",
        "It needs no network and takes under a minute on a laptop.",
    )
    made.add_argument("--picture", type=Path, default=Path("videollava-demo.png"), help="default: %(default)s")

    made = command(
        "ask",
        ask,
        "answer questions about an image or a video",
        "Each question is asked on its own; the media are read and encoded once for all.\n\n"
        '  videollava ask clip.mp4 "Which way does it move?"\n'
        '  videollava ask before.png -m after.png "What has changed?"\n'
        '  videollava ask clip.mp4 "What happens?" --picture answer.png --json',
    )
    made.add_argument("media", nargs=1, metavar="MEDIUM", help="an image or a video")
    made.add_argument("question", nargs="+", metavar="QUESTION", help="what to ask")
    made.add_argument("-m", "--more", action="append", default=[], metavar="MEDIUM", help="one more; can be repeated")
    made.add_argument("--picture", type=Path, help="draw the frames that the model saw, with the answers, to this file")
    _add_model_arguments(made)

    made = command(
        "chat",
        chat,
        "hold a conversation about images and videos",
        "Questions are read from the terminal, or a line each from standard input. The media are encoded once, and\n"
        "the keys and values of earlier turns stay on the device.",
    )
    made.add_argument("media", nargs="*", metavar="MEDIUM", help="images and videos")
    made.set_defaults(more=[])
    _add_model_arguments(made)

    made = command(
        "convert",
        convert,
        "convert a checkpoint to Orbax, losing nothing",
        "SOURCE is a directory in any of transformers' layouts (as on the hub, as 5.x saves them, as in memory) or in\n"
        "the authors' own, temporal attention included; which one is told by the names of its tensors. TARGET appears\n"
        "whole or not at all, with a SHA-256 for each tensor in its manifest.json.",
    )
    _add_conversion_arguments(made)
    made.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="SOURCE is an adapter (PEFT's, the authors' LoRA or mm_projector.bin): merge it into this checkpoint",
    )
    made.add_argument(
        "--int8",
        action="store_true",
        help="store the decoder's projections in int8, with a scale for each output channel",
    )
    made.add_argument(
        "--tower-config",
        type=Path,
        metavar="CONFIG_JSON",
        help="LanguageBind's config.json, for a checkpoint of the authors'; default: read off the weights' shapes",
    )

    made = command(
        "export",
        export,
        "write a checkpoint as safetensors, for transformers or for the authors' code",
        "SOURCE is what `videollava convert` wrote, or any other checkpoint that is known. An adapter is written as\n"
        "an adapter again, for PEFT.",
    )
    _add_conversion_arguments(made)
    made.add_argument(
        "--layout",
        choices=("hub", "hf5", "memory", "pku"),
        default="hub",
        help="of names: hub as on the hub, hf5 as transformers 5 saves, memory as it holds them, pku the authors'; "
        "default: %(default)s",
    )
    made.set_defaults(int8=False)
    made.add_argument("--adapter", type=Path, metavar="DIRECTORY", help="merge this adapter into SOURCE on the way")
    made.add_argument(
        "--drop-temporal",
        action="store_true",
        help="leave out the video tower's attention over time, which transformers cannot hold",
    )

    made = command(
        "verify",
        verify,
        "prove that a checkpoint is what was written, or what another one is",
        "With one argument, the files and tensors are hashed and compared with manifest.json. With two, the\n"
        "tensors of two checkpoints in any layouts are compared, bit by bit, and what differs is listed.",
    )
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    made.add_argument("other", type=Path, nargs="?", metavar="OTHER")
    made.add_argument(
        "--fast", action="store_true", help="with one: files, names, shapes and dtypes, no tensor is read"
    )
    made.add_argument("--logits", action="store_true", help="with two: run both on a fixed prompt, too")
    made.add_argument("--dtype", choices=DTYPES, help="to run both in, with --logits; default: each in its own")
    return parser


def _add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET", help="must not exist, or hold exactly this already")
    parser.add_argument("--dtype", choices=DTYPES, help="of the tensors written; default: as they are")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="let NaN and infinity pass, instead of counting them in an error"
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
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
    answer = parser.add_argument_group("answers")
    answer.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    answer.add_argument(
        "--temperature", type=float, help="draw tokens at this temperature; default: the likeliest ones"
    )
    answer.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest with this mass")
    answer.add_argument("--seed", type=int, default=0, help="of the draws; default: %(default)s")


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected frame numbers such as 0,5,9, got {text!r}") from None
