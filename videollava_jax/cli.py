"""The `videollava` command: demo, ask, chat, batch, convert, export, verify, plan."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
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
    from videollava_jax.batch.isolation import IsolatedReader, WorkerLimits
    from videollava_jax.batch.ray_data import RayRunner
    from videollava_jax.batch.runner import Runner
    from videollava_jax.chat import Chat, Turn
    from videollava_jax.engine import Engine
    from videollava_jax.media import Medium, Sampling
    from videollava_jax.processor import VideoLlavaProcessor
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


def batch(arguments: argparse.Namespace) -> None:
    from videollava_jax.batch.formats import Defaults
    from videollava_jax.batch.isolation import IsolatedReader
    from videollava_jax.batch.remote import Fetcher
    from videollava_jax.batch.runner import BatchOptions, Stopped, run_batch
    from videollava_jax.config import require_whole_windows
    from videollava_jax.demo import TINY
    from videollava_jax.processor import VideoLlavaProcessor

    source, output = _job_files(arguments)
    if not source.is_file():
        raise ValueError(f"{source}: no such file; expected the questions")
    path = TINY if arguments.model == "tiny" else arguments.model
    processor = VideoLlavaProcessor.from_pretrained(path, template=arguments.template, video_pooling=arguments.pool)
    if arguments.fps is None:
        frames = arguments.frames if arguments.indices is None else len(arguments.indices)
        require_whole_windows("--frames", frames, processor.frame_window)
    if not arguments.ray and (arguments.replicas or arguments.replica_resources or arguments.ray_block):
        raise ValueError(
            "--replicas, --replica-resources and --ray-block say how a Ray cluster is used: expected --ray"
        )
    limits = _worker_limits(arguments)
    fetch = Fetcher(arguments.allow_host, seconds=arguments.limit_seconds, attempts=1 + arguments.retries)
    answering: list[IsolatedReader | RayRunner] = []

    def make_runner() -> Runner:
        if arguments.ray:
            answering.append(runner := _ray_runner(arguments, source, output))
            return runner
        answering.append(reader := IsolatedReader(processor, limits))
        return _batch_engine(arguments, path, processor, reader)

    def stop() -> None:
        for part in (*answering, fetch):
            part.stop()

    options = BatchOptions(
        form=arguments.format,
        defaults=Defaults(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature or 0.0,
            top_p=arguments.top_p,
            seed=arguments.seed,
            sampling=_sampling(arguments, processor.frame_window),
            video_pooling=arguments.pool,
        ),
        media_root=arguments.media_root,
        fetch=fetch if arguments.allow_host else None,
        max_bytes=arguments.limit_bytes,
        max_error_rate=arguments.max_error_rate,
        retry_errors=arguments.retry_errors,
        keep_ledger=arguments.keep_ledger,
        model=str(arguments.model),
        facts=_batch_facts(arguments, path, processor.template.name),
        on_stop=stop,
        grace=10.0,  # machines are given 25 to 30 seconds
    )
    try:
        # What happens to its nodes, Ray prints to the standard output, which is for the summary.
        with contextlib.redirect_stdout(sys.stderr):
            summary = run_batch(source, output, make_runner, options)
    except Stopped as stopped:
        print(f"videollava: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signal) from None
    except MemoryError as error:
        raise OSError(f"{error} What is done is kept: the same command goes on from there") from None
    finally:
        for part in answering:
            part.close()
    if arguments.json:
        _print_json({**summary.record(), "output": str(output)})
    else:
        print(f"{summary}\n{output}")


def _worker_limits(arguments: argparse.Namespace) -> WorkerLimits:
    from videollava_jax.batch.isolation import WorkerLimits

    return WorkerLimits(
        seconds=arguments.limit_seconds,
        memory=arguments.limit_memory,
        max_bytes=arguments.limit_bytes,
        attempts=1 + arguments.retries,
    )


def _job_files(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """INPUT and OUTPUT, by place or by -i and -o."""
    given = [*arguments.files]
    source = arguments.input_file or (given.pop(0) if given else None)
    output = arguments.output_file or (given.pop(0) if given else None)
    if source is None or output is None or given:
        raise ValueError("batch: expected an input and an output, as INPUT OUTPUT or -i INPUT -o OUTPUT")
    return source, output


def _batch_facts(arguments: argparse.Namespace, path: str | Path, template: str) -> dict[str, str]:
    """What makes it this job: the model by content, or by its revision on the hub, and how it computes."""
    from videollava_jax.batch.fingerprint import model_fingerprint
    from videollava_jax.processor_files import local_directory

    directory = local_directory(path, None, None)
    here = Path(path).is_dir()
    model = model_fingerprint(directory) if here else {"model": f"{path} at {directory.name}"}
    return {
        **model,
        "template": template,
        "dtype": arguments.dtype or "the checkpoint's",
        "int8 weights": str(arguments.int8_weights),
        "int8 cache": str(arguments.int8_cache),
    }


def _batch_engine(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor, reader: IsolatedReader
) -> Engine:
    from videollava_jax.engine import Engine
    from videollava_jax.pretrained import VideoLlavaForConditionalGeneration
    from videollava_jax.sharding import make_mesh

    model = VideoLlavaForConditionalGeneration.from_pretrained(
        path,
        dtype=arguments.dtype,
        mesh=None if arguments.mesh is None else make_mesh(*arguments.mesh),
        quantization="int8" if arguments.int8_weights else None,
    )
    return Engine(
        model,
        processor,
        max_rows=arguments.max_rows,
        memory=arguments.memory,
        int8_cache=arguments.int8_cache,
        readers=arguments.workers,
        reader=reader,
    )


def _ray_runner(arguments: argparse.Namespace, source: Path, output: Path) -> RayRunner:
    from videollava_jax.batch.ledger import Paths
    from videollava_jax.batch.lines import read_lines, recognise
    from videollava_jax.batch.ray_data import RayOptions, RayRunner

    options: dict[str, Any] = {"replicas": arguments.replicas, "resources": arguments.replica_resources or {}}
    if arguments.mesh is not None:
        options["devices"] = math.prod(arguments.mesh)
    if arguments.ray_block is not None:
        options["block"] = arguments.ray_block
    there = argparse.Namespace(**{**vars(arguments), "run": None})
    if Path(there.model).is_dir():
        there.model = Path(there.model).resolve()  # replicas have another working directory
    lines = sum(1 for _ in read_lines(source, arguments.format or recognise(source)))
    make_engine = functools.partial(_replica_engine, there)
    return RayRunner(make_engine, RayOptions(**options), spool=Paths(output).media, lines=lines)


def _replica_engine(arguments: argparse.Namespace) -> Engine:
    """The engine of `batch`, in a replica."""
    from videollava_jax.batch.isolation import IsolatedReader
    from videollava_jax.demo import TINY
    from videollava_jax.processor import VideoLlavaProcessor

    path = TINY if arguments.model == "tiny" else arguments.model
    processor = VideoLlavaProcessor.from_pretrained(path, template=arguments.template, video_pooling=arguments.pool)
    return _batch_engine(arguments, path, processor, IsolatedReader(processor, _worker_limits(arguments)))


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


def plan(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from videollava_jax.arithmetic import Job, Storage
    from videollava_jax.config import VideoLlavaConfig, require_whole_windows
    from videollava_jax.plan import PROGRAMS, Wish, make_plan
    from videollava_jax.plan_report import record, text

    config = VideoLlavaConfig() if arguments.model is None else VideoLlavaConfig.from_hf(arguments.model)
    if arguments.variant is not None:
        config = dataclasses.replace(config, variant=arguments.variant)
    require_whole_windows("--frames", arguments.frames, config.frame_window)
    caption = arguments.job == "caption"
    job = Job(
        frames=arguments.frames,
        pooling=arguments.pool,
        questions=1 if caption else arguments.questions,
        question_tokens=arguments.question_tokens,
        answer_tokens=arguments.answer_tokens or (256 if caption else 10),
    )
    made = make_plan(
        Wish(
            topology=arguments.topology,
            config=config,
            job=job,
            storage=Storage(int8_weights=arguments.int8_weights, int8_kv=arguments.int8_cache),
            mesh=arguments.mesh,
            grid=arguments.grid,
            programs=tuple(name for name in PROGRAMS if name in arguments.programs),
        ),
        lambda names: tqdm(names, "compiling", unit="program", disable=None),
    )
    if arguments.json:
        _print_json(record(made))
    else:
        print(text(made))


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
  videollava batch questions.jsonl answers.jsonl           many questions; killed at any moment, it goes on from there
  videollava convert Video-LLaVA-7B-hf 7b-orbax            a checkpoint of any layout to Orbax
  videollava export 7b-orbax 7b-hf --layout hub            and back
  videollava verify 7b-orbax                               is every bit as it was written?
  videollava ask --model 7b-orbax clip.mp4 "Why is this funny?"
  videollava plan --topology v5e:2x4 --questions 25        does it fit chips that are not here, and how fast at best?
"""
MODEL_HELP = (
    "a directory (transformers' layouts, or what `videollava convert` wrote), or a model's name on the Hugging Face "
    "hub such as LanguageBind/Video-LLaVA-7B-hf; by default the bundled tiny model, which knows coloured shapes only"
)


BATCH_DETAILS = """\
INPUT holds a question a line, and OUTPUT appears whole, in the same order, when all have a record:

  {"id": "a1", "video": "clips/a.mp4", "prompt": "Which way does it move?"}
  {"id": "a2", "video": "clips/a.mp4", "prompt": "What shape is it?", "options": {"max_new_tokens": 16}}
  {"id": "b1", "image": "b.png", "prompt": "How many shapes are there?"}

  videollava batch questions.jsonl answers.jsonl --model 7b-orbax --media-root /data

OpenAI's batch lines (custom_id, body.messages), LLaVA's question files (question_id, text), CSV and Parquet (id,
video or image, prompt) are known by their look. Questions about one video may stand anywhere in the file: it is
decoded and encoded once. Every answer is kept in OUTPUT.partial as it comes; killed at any moment, the same command
goes on from there. Files are read by processes of their own, so that a hostile one costs its own line alone.
"""


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
        "batch",
        batch,
        "answer a file of questions, one record for each line, on a machine that may be taken away",
        BATCH_DETAILS,
    )
    _add_batch_arguments(made)

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

    made = command(
        "plan",
        plan,
        "say what fits chips that are not here, and how fast it can be at best",
        "The engine's programs are compiled for a TPU topology by the real compiler, which needs no TPU: memory,\n"
        "traffic, collectives, the largest batch, and the rates when every program takes the least time that its\n"
        "operations and bytes allow. Minutes for the 7B model. For GPUs the rates are arithmetic alone.",
    )
    _add_plan_arguments(made)
    return parser


def _add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET", help="must not exist, or hold exactly this already")
    parser.add_argument("--dtype", choices=DTYPES, help="of the tensors written; default: as they are")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="let NaN and infinity pass, instead of counting them in an error"
    )


def _add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    from videollava_jax.batch.lines import FORMS

    parser.add_argument("files", nargs="*", type=Path, metavar="INPUT OUTPUT")
    parser.add_argument("-i", "--input-file", type=Path, metavar="INPUT", help="the same, as vLLM's run-batch has it")
    parser.add_argument("-o", "--output-file", type=Path, metavar="OUTPUT")
    parser.add_argument("-m", dest="model", metavar="MODEL", default=argparse.SUPPRESS, help="as --model")
    parser.add_argument("--format", choices=FORMS, help="of the input; default: what it looks like")
    job = parser.add_argument_group("the job")
    job.add_argument(
        "--max-error-rate",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="end when more of the lines than this have failed, after 20; 1 for never; default: %(default)s",
    )
    job.add_argument("--retry-errors", action="store_true", help="try lines again whose record is an error")
    job.add_argument("--keep-ledger", action="store_true", help="leave OUTPUT.partial when OUTPUT is written")
    media = parser.add_argument_group("media")
    media.add_argument(
        "--media-root", type=Path, metavar="DIRECTORY", help="paths are relative to it and may not leave"
    )
    media.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="media may be fetched from it, but from no private network; can be repeated; default: from nowhere",
    )
    media.add_argument(
        "--workers", type=int, default=4, metavar="N", help="processes that decode; default: %(default)s"
    )
    media.add_argument(
        "--limit-seconds", type=float, default=60.0, metavar="S", help="that a medium may take; default: %(default)g"
    )
    media.add_argument(
        "--limit-memory", type=_size, default=4 * 2**30, metavar="SIZE", help="that a medium may take; default: 4GiB"
    )
    media.add_argument("--limit-bytes", type=_size, default=2**30, metavar="SIZE", help="of a medium; default: 1GiB")
    media.add_argument(
        "--retries",
        type=_natural,
        default=1,
        metavar="N",
        help="of a medium that crashes or hangs its process, or whose host fails; default: %(default)s",
    )
    device = parser.add_argument_group("the device")
    device.add_argument("--max-rows", type=int, metavar="N", help="questions answered at a time; default: what fits")
    device.add_argument("--memory", type=_size, metavar="SIZE", help="for keys and values; default: what is free")
    device.add_argument("--int8-weights", action="store_true", help="the decoder's projections in int8")
    device.add_argument("--int8-cache", action="store_true", help="keys and values of prefixes in int8")
    device.add_argument("--mesh", type=_pair, metavar="DATAxTENSOR", help="such as 1x8; default: one device")
    machines = parser.add_argument_group("several machines")
    machines.add_argument(
        "--ray",
        action="store_true",
        help="answer on the Ray cluster of RAY_ADDRESS or of this machine; the ledger stays here",
    )
    machines.add_argument(
        "--replicas", type=_positive, metavar="N", help="engines in the cluster; default: what there is room for"
    )
    machines.add_argument(
        "--replica-resources",
        type=_resources,
        metavar="NAME=N,...",
        help="of each, by Ray's names, such as TPU=4; default: a TPU or a GPU for each device of --mesh, or a CPU",
    )
    machines.add_argument(
        "--ray-block", type=_positive, metavar="N", help="lines that a replica is given at a time; default: 2048"
    )
    _add_model_arguments(parser)


def _size(text: str) -> int:
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.rstrip("bBiIkKmMgG ")
    unit = units.get(text[len(number) :].strip().lower())
    try:
        size = int(float(number) * unit) if unit else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 8GiB, 500MB or 1000000, got {text!r}")
    return size


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _resources(text: str) -> dict[str, float]:
    try:
        found = {name: float(count) for name, count in (part.split("=") for part in text.split(","))}
    except ValueError:
        found = {}
    if not found or not all(name and 0 < count < math.inf for name, count in found.items()):
        raise argparse.ArgumentTypeError(f"expected resources such as TPU=4 or GPU=1,CPU=8, got {text!r}")
    return found


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology", required=True, metavar="CHIPS", help="v5e:2x4, v6e:2x4, v5p:2x2x2, v5e:16x16, h100:8, h200, ..."
    )
    parser.add_argument("--job", choices=("qa", "caption"), default="qa", help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=25, metavar="N", help="of a video, for qa; default: 25")
    parser.add_argument("--question-tokens", type=int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--answer-tokens", type=int, metavar="N", help="default: 10, of a caption 256")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="of a video; default: 8")
    parser.add_argument("--pool", type=int, default=1, metavar="K", help="as `ask --pool`; default: none")
    parser.add_argument(
        "--mesh", type=_pair, metavar="DATAxTENSOR", help="default: the fewest chips a copy that leave caches room"
    )
    parser.add_argument(
        "--grid", type=_pair, metavar="PLACESxROWS", help="default: what the engine chooses, and the largest that fits"
    )
    parser.add_argument(
        "--programs",
        nargs="+",
        choices=("encode", "prefill", "extend", "decode"),
        default=("encode", "prefill", "extend", "decode"),
        help="to compile; rates take all four, which is the default",
    )
    parser.add_argument("--int8-weights", action="store_true", help="the decoder's projections in int8")
    parser.add_argument("--int8-cache", action="store_true", help="keys and values of prefixes in int8")
    parser.add_argument("--model", type=Path, metavar="DIRECTORY", help="whose config.json; default: the 7B model")
    parser.add_argument("--variant", choices=("original", "hf"), help="of the video tower; default: the model's, or hf")


def _pair(text: str) -> tuple[int, int]:
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"expected two numbers such as 2x4, got {text!r}")
    return int(numbers[0]), int(numbers[1])


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
