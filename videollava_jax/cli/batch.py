"""`videollava batch`: a file of questions, here or on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import glob
import math
import sys
from pathlib import Path

from videollava_jax.cli.common import (
    KEY,
    add_device_arguments,
    add_media_arguments,
    add_model_arguments,
    argument_type,
    begin_command,
    print_json,
)
from videollava_jax.cli.errors import UsageError, print_error
from videollava_jax.generation.kinds import number, whole
from videollava_jax.generation.options import SHARED, from_arguments

DETAILS = """\
INPUT holds one question per line. OUTPUT appears when every line has a record, with the records in the same order:

  {"id": "a1", "video": "clips/a.mp4", "prompt": "Which way does it move?"}
  {"id": "a2", "video": "clips/a.mp4", "prompt": "What shape is it?", "options": {"max_new_tokens": 16}}
  {"id": "b1", "image": "b.png", "prompt": "How many shapes are there?"}

  videollava batch questions.jsonl answers.jsonl --model 7b-orbax --media-root /data

OpenAI's batch lines (custom_id, body.messages), LLaVA's question files (question_id, text), CSV and Parquet (id,
video or image, prompt) are recognised by their keys. Several files of one form, and files compressed with gzip or
Zstandard, are one input: no id may come twice in it. Questions about one video may be anywhere in the file: the video
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
    machines.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="answer through a running `videollava serve`, which has the model; can be given several times: all "
        f"questions about one medium go to one server. The key, if they ask for one: {KEY} in the environment",
    )
    machines.add_argument(
        "--at-once",
        type=argument_type(whole(1)),
        metavar="N",
        help="requests that one server has at a time; default: 16",
    )
    add_model_arguments(made)


def batch(arguments: argparse.Namespace) -> None:
    """Runs a job, or what is left of it.

    Raises:
      SystemExit: with 128 plus the signal's number, if a signal stopped the job.
    """
    from videollava_jax.batch.requests import Defaults
    from videollava_jax.batch.runner import BatchOptions, Stopped, run_batch
    from videollava_jax.cli.answering import choose_answering
    from videollava_jax.media.remote import Fetcher

    sources, output = _job_files(arguments)
    generation = from_arguments(arguments)
    answering = choose_answering(arguments, sources, output)
    fetch = Fetcher(arguments.allow_host, seconds=arguments.limit_seconds, attempts=1 + arguments.retries)

    def stop() -> None:
        answering.stop()
        fetch.stop()

    options = BatchOptions(
        form=arguments.format,
        defaults=Defaults(
            options={name: value for name, value in generation.items() if name not in SHARED},
            frame_sampling=answering.frame_sampling,
            video_pooling=arguments.pool,
        ),
        media_root=arguments.media_root,
        fetch=fetch if arguments.allow_host else None,
        max_bytes=arguments.limit_bytes,
        max_error_rate=arguments.max_error_rate,
        retry_errors=arguments.retry_errors,
        keep_ledger=arguments.keep_ledger,
        model=answering.model,
        facts=answering.facts,
        on_stop=stop,
        grace=10.0,  # machines are given 25 to 30 seconds
    )
    try:
        # Ray prints events of its nodes to standard output, which is for the summary.
        with contextlib.redirect_stdout(sys.stderr):
            summary = run_batch(sources, output, answering.runner, options)
    except Stopped as stopped:
        print_error(stopped)
        raise SystemExit(128 + stopped.signal) from None
    except MemoryError as error:
        raise OSError(f"{error} What is done is kept: the same command goes on from there") from None
    finally:
        answering.close()
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


def _resources(text: str) -> dict[str, float]:
    try:
        found = {name: float(count) for name, count in (part.split("=") for part in text.split(","))}
    except ValueError:
        found = {}
    if not found or not all(name and 0 < count < math.inf for name, count in found.items()):
        raise argparse.ArgumentTypeError(f"expected resources such as TPU=4 or GPU=1,CPU=8, got {text!r}")
    return found
