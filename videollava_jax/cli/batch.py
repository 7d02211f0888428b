"""`videollava batch`: a file of questions, here or on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.cli.common import (
    FRAMES,
    add_device_arguments,
    add_media_arguments,
    add_model_arguments,
    argument_type,
    begin_command,
    frame_sampling_of,
    open_processor,
    print_json,
    worker_limits,
)
from videollava_jax.cli.errors import UsageError, print_error
from videollava_jax.generation.kinds import number, whole
from videollava_jax.generation.options import SHARED, from_arguments
from videollava_jax.processing.prompt import get_template

if TYPE_CHECKING:
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.batch.ray.cluster import RayRunner
    from videollava_jax.batch.runner import Runner
    from videollava_jax.engine import Engine
    from videollava_jax.processing.preset import Preset
    from videollava_jax.processing.processor import VideoLlavaProcessor

DETAILS = """\
INPUT holds one question per line. OUTPUT appears when every line has a record, with the records in the same order:

  {"id": "a1", "video": "clips/a.mp4", "prompt": "Which way does it move?"}
  {"id": "a2", "video": "clips/a.mp4", "prompt": "What shape is it?", "options": {"max_new_tokens": 16}}
  {"id": "b1", "image": "b.png", "prompt": "How many shapes are there?"}

  videollava batch questions.jsonl answers.jsonl --model 7b-orbax --media-root /data

OpenAI's batch lines (custom_id, body.messages), LLaVA's question files (question_id, text), CSV and Parquet (id,
video or image, prompt) are recognised by their keys. Several files of one form, and files compressed with gzip or
Zstandard, are one input: ids differ in all of it. Questions about one video may be anywhere in the file: the video
is decoded and encoded once. Every answer is kept in OUTPUT.partial as it comes, so after a kill at any moment the same
command resumes there. Separate processes read the media, so a hostile file costs only its own line.
"""


def add_batch(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `batch`."""
    from videollava_jax.batch.forms import FORMS

    begin_command(made, batch, DETAILS)
    made.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="INPUT ... OUTPUT",
        help="files of questions, or patterns of their names such as 'part-*.jsonl', and the file of answers",
    )
    made.add_argument(
        "-i",
        "--input-file",
        action="append",
        default=[],
        type=Path,
        metavar="INPUT",
        help="the same, as in vLLM's run-batch; can be given several times",
    )
    made.add_argument("-o", "--output-file", type=Path, metavar="OUTPUT", help="likewise")
    made.add_argument("-m", dest="model", metavar="MODEL", default=argparse.SUPPRESS, help="the same as --model")
    made.add_argument("--format", choices=tuple(FORMS), help="of the input; default: recognised by suffix and keys")
    add_job_arguments(made)


def add_job_arguments(made: argparse.ArgumentParser, places: bool = True) -> None:
    """Adds the arguments of a job but its files: errors, media, device, machines, model.

    Args:
      places: whether the user says where media may come from.
    """
    job = made.add_argument_group("the job")
    job.add_argument(
        "--max-error-rate",
        type=argument_type(number(0, 1)),
        default=0.95,
        metavar="SHARE",
        help="end the job when more than this share of the lines has failed, but not before lines about 20 media "
        "have; 1: never; default: %(default)s",
    )
    job.add_argument("--retry-errors", action="store_true", help="answer the lines again whose record is an error")
    job.add_argument("--keep-ledger", action="store_true", help="keep OUTPUT.partial after OUTPUT is written")
    add_media_arguments(made, places)
    add_device_arguments(made)
    machines = made.add_argument_group("several machines")
    machines.add_argument(
        "--ray",
        action="store_true",
        help="answer on a Ray cluster: that of RAY_ADDRESS, or one on this machine; the ledger stays here",
    )
    machines.add_argument(
        "--replicas",
        type=argument_type(whole(1)),
        metavar="N",
        help="engines in the cluster; default: as many as fit",
    )
    machines.add_argument(
        "--replica-resources",
        type=_resources,
        metavar="NAME=N,...",
        help="what each engine gets, by Ray's names, such as TPU=4; default: a TPU or GPU for each device of --mesh, "
        "or a CPU",
    )
    machines.add_argument(
        "--ray-block",
        type=argument_type(whole(1)),
        metavar="N",
        help="lines that an engine gets at a time; default: 2048",
    )
    add_model_arguments(made)


def batch(arguments: argparse.Namespace) -> None:
    """Runs a job, or what is left of it.

    Raises:
      SystemExit: with 128 plus the signal's number, if a signal stopped the job.
    """
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.batch.requests import Defaults
    from videollava_jax.batch.runner import BatchOptions, Stopped, run_batch
    from videollava_jax.config import require_whole_windows
    from videollava_jax.media.remote import Fetcher

    sources, output = _job_files(arguments)
    generation = from_arguments(arguments)
    path, processor = open_processor(arguments)
    if arguments.fps is None:
        frames = (arguments.frames or FRAMES) if arguments.indices is None else len(arguments.indices)
        require_whole_windows("--frames", frames, processor.frame_window)
    if not arguments.ray and (arguments.replicas or arguments.replica_resources or arguments.ray_block):
        raise ValueError(
            "--replicas, --replica-resources and --ray-block say how a Ray cluster is used: expected --ray"
        )
    limits = worker_limits(arguments)
    fetch = Fetcher(arguments.allow_host, seconds=arguments.limit_seconds, attempts=1 + arguments.retries)
    answering: list[IsolatedReader | RayRunner] = []

    def make_runner() -> Runner:
        if arguments.ray:
            answering.append(runner := _ray_runner(arguments, path, sources, output))
            return runner
        answering.append(reader := IsolatedReader(processor, limits))
        return _engine(arguments, path, processor, reader)

    def stop() -> None:
        for part in (*answering, fetch):
            part.stop()

    options = BatchOptions(
        form=arguments.format,
        defaults=Defaults(
            options={name: value for name, value in generation.items() if name not in SHARED},
            frame_sampling=frame_sampling_of(arguments, processor),
            video_pooling=arguments.pool,
        ),
        media_root=arguments.media_root,
        fetch=fetch if arguments.allow_host else None,
        max_bytes=arguments.limit_bytes,
        max_error_rate=arguments.max_error_rate,
        retry_errors=arguments.retry_errors,
        keep_ledger=arguments.keep_ledger,
        model=str(arguments.model),
        facts=_facts(arguments, path, processor.preset),
        on_stop=stop,
        grace=10.0,  # machines are given 25 to 30 seconds
    )
    try:
        # Ray prints events of its nodes to standard output, which is for the summary.
        with contextlib.redirect_stdout(sys.stderr):
            summary = run_batch(sources, output, make_runner, options)
    except Stopped as stopped:
        print_error(stopped)
        raise SystemExit(128 + stopped.signal) from None
    except MemoryError as error:
        raise OSError(f"{error} What is done is kept: the same command goes on from there") from None
    finally:
        for part in answering:
            part.close()
    if arguments.json:
        print_json({**summary.record(), "output": str(output)})
    else:
        print(f"{summary}\n{output}")


def _job_files(arguments: argparse.Namespace) -> tuple[list[Path], Path]:
    """The files of the input and the output, given without flags or with -i and -o."""
    given = [*arguments.files]
    output = arguments.output_file or (given.pop() if given else None)
    named = [*arguments.input_file, *given]
    if not named or output is None or (arguments.input_file and given):
        raise UsageError("expected an input and an output, as INPUT OUTPUT or -i INPUT -o OUTPUT")
    if "-" in map(str, (*named, output)):
        raise UsageError(
            "expected names of files, got - for standard input or output: a job that was stopped reads its input again "
            "and goes on in its output"
        )
    return [path for name in named for path in _named_files(name)], output


def _named_files(name: Path) -> list[Path]:
    """The files of a name: itself, or those whose names fit its pattern, sorted as a shell does."""
    if name.is_file():
        return [name]
    found = sorted(Path(path) for path in glob.glob(str(name), recursive=True))
    if not found:
        raise ValueError(f"{name}: no such file; expected the questions")
    if folders := [path for path in found if not path.is_file()]:
        raise ValueError(f"{folders[0]}: expected a file of questions, got a directory")
    return found


def _facts(arguments: argparse.Namespace, path: str | Path, preset: Preset) -> dict[str, str]:
    """The part of the job's identity that is about the model: its content or revision, and how it computes."""
    from videollava_jax.hub import Wanted, find_model
    from videollava_jax.weights.fingerprint import model_fingerprint

    if isinstance(path, Path):
        model = model_fingerprint(path)
    else:
        model = {"model": f"{path} at {find_model(path, Wanted.SIDE_FILES).name}"}
    return {
        **model,
        "template": get_template(preset.template).name,
        **{name: str(value) for name, value in preset.to_json().items() if name != "name"},
        "dtype": arguments.dtype or "the checkpoint's",
        "int8 weights": str(arguments.int8_weights),
        "int8 cache": str(arguments.int8_cache),
        **{name: str(value) for name, value in _shared_options(arguments).items()},
    }


def _shared_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that hold for the engine and not for a line."""
    return {name: value for name, value in from_arguments(arguments).items() if name in SHARED}


def _engine(
    arguments: argparse.Namespace, path: str | Path, processor: VideoLlavaProcessor, reader: IsolatedReader
) -> Engine:
    from videollava_jax.engine import Engine
    from videollava_jax.generation.loaded import LoadedModel
    from videollava_jax.model.sharding import make_mesh

    model = LoadedModel.load(
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
        **_shared_options(arguments),
    )


def _ray_runner(arguments: argparse.Namespace, path: str | Path, sources: list[Path], output: Path) -> RayRunner:
    from videollava_jax.batch.ledger import Paths
    from videollava_jax.batch.lines import read_lines, recognise
    from videollava_jax.batch.ray.cluster import RayOptions, RayRunner
    from videollava_jax.hub import BUNDLED

    options: dict[str, Any] = {"replicas": arguments.replicas, "resources": arguments.replica_resources or {}}
    if arguments.mesh is not None:
        options["devices"] = math.prod(arguments.mesh)
    if arguments.ray_block is not None:
        options["block"] = arguments.ray_block
    there = argparse.Namespace(**{**vars(arguments), "run": None})
    if isinstance(path, Path) and there.model != BUNDLED:
        there.model = path  # absolute: replicas have another working directory
    lines = sum(1 for _ in read_lines(sources, arguments.format or recognise(sources)))
    make_engine = functools.partial(_replica_engine, there)
    return RayRunner(make_engine, RayOptions(**options), spool=Paths(output).media, lines=lines)


def _replica_engine(arguments: argparse.Namespace) -> Engine:
    """Makes the engine of a replica."""
    from videollava_jax.batch.media.isolation import IsolatedReader

    path, processor = open_processor(arguments)
    return _engine(arguments, path, processor, IsolatedReader(processor, worker_limits(arguments)))


def _resources(text: str) -> dict[str, float]:
    try:
        found = {name: float(count) for name, count in (part.split("=") for part in text.split(","))}
    except ValueError:
        found = {}
    if not found or not all(name and 0 < count < math.inf for name, count in found.items()):
        raise argparse.ArgumentTypeError(f"expected resources such as TPU=4 or GPU=1,CPU=8, got {text!r}")
    return found
