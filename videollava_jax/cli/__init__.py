"""The `videollava` command: `main` runs the command that was asked for and reports an error in one line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from videollava_jax.cli.errors import UsageError, closed_pipe, report
from videollava_jax.version import __version__

DESCRIPTION = """\
Ask questions about images and videos with Video-LLaVA, in JAX.

  videollava demo                                          what it looks like, with nothing to fetch
  videollava ask clip.mp4 "Which way does it move?"        one answer
  videollava ask clip.mp4 "What is it?" "What colour?"     the clip is read and encoded once for both
  videollava ask before.png after.png "What has changed?"  several media
  videollava chat clip.mp4                                 a conversation about it
  videollava batch questions.jsonl answers.jsonl           many questions; after a kill the same command resumes
  videollava serve --open                                  a server with OpenAI's protocol, and a page to ask from
  videollava eval list                                     published tasks, what each needs and the paper's figures
  videollava convert Video-LLaVA-7B-hf 7b-orbax            a checkpoint of any layout to Orbax
  videollava export 7b-orbax 7b-hf --layout hub            and back
  videollava assemble 7b-start --llm vicuna-7b-v1.5 ...    a model from a language model, two towers and a projector
  videollava verify 7b-orbax                               is every bit as it was when it was written?
  videollava ask --model 7b-orbax clip.mp4 "Why is this funny?"
  videollava finetune --config lora --model 7b-orbax --output runs/mine --data.train mine.json
  videollava train-export runs/mine mine-hf                the model that this run has made
  videollava plan --topology v5e:2x4 --questions 25        does it fit chips that are not here, and how fast at best?
"""
EPILOG = """\
videollava COMMAND --help shows a command's options and examples. Exit status: 0 success, 1 an error, 2 a command line
that cannot be parsed, 70 a fault of this program, 130 Ctrl-C. With VIDEOLLAVA_DEBUG=1 errors come with their traceback.
"""


@dataclass(frozen=True)
class _Command:
    """A command in the list of `videollava --help`. The rest of it is imported when it is asked for.

    Attributes:
      name: as it is typed.
      module: of `videollava_jax.cli`, with a function `add_NAME` that gives a parser the command's arguments.
      about: what it does, in a line.
      parser: options of its parser.
    """

    name: str
    module: str
    about: str
    parser: dict[str, Any] = field(default_factory=dict)

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's description and arguments to its parser."""
        getattr(import_module(f"videollava_jax.cli.{self.module}"), f"add_{self.name.replace('-', '_')}")(parser)


# All arguments of `finetune`, options too, are collected for the recipe's own parser.
_COLLECTED: dict[str, Any] = {"add_help": False, "prefix_chars": "\0"}
_COMMANDS = (
    _Command("demo", "ask", "convert the bundled tiny model, ask it about bundled files, draw the answers"),
    _Command("ask", "ask", "answer questions about images and videos"),
    _Command("chat", "ask", "hold a conversation about images and videos"),
    _Command(
        "batch", "batch", "answer a file of questions, one record for each line, on a machine that may be taken away"
    ),
    _Command("serve", "serve", "answer requests in OpenAI's protocol over HTTP, and show a page to ask from"),
    _Command("eval", "evaluation", "score answers on published tasks: list them, answer, score, compare"),
    _Command("convert", "checkpoints", "convert a checkpoint to Orbax, losing nothing"),
    _Command("export", "checkpoints", "write a checkpoint as safetensors, for transformers or for the authors' code"),
    _Command("assemble", "checkpoints", "make a model of a language model, two vision towers and a projector"),
    _Command("verify", "checkpoints", "compare a checkpoint with its manifest, or with another one"),
    _Command("finetune", "finetune", "train by a recipe: projector, decoder, LoRA, LoRA on int8", _COLLECTED),
    _Command("train-export", "finetune", "write what a fine-tuning run has learnt: a model, or an adapter for PEFT"),
    _Command("plan", "plan", "find what fits chips that are not here, and how fast it can be at best"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 0 on success, 1 on errors, 70 on faults, 130 on Ctrl-C.

    Args:
      arguments: without the program's name; None for those of this process.

    Raises:
      SystemExit: with 2 for a command line that cannot be parsed, and where a command has an exit status of its own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            _run(given)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a closed pipe and a full disk are answered
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return closed_pipe()
    except Exception as error:
        return report(error, given)
    return 0


def _run(given: list[str]) -> None:
    # A file's name may hold bytes that are no text: they are shown as escapes, which JSON reads back.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # transformers would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    parsed = parse(given)
    try:
        parsed.run(parsed)
    except UsageError as error:
        parsed.parser.error(str(error))


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Parses a command line.

    Returns:
      The command's arguments, with its function as `run` and its parser as `parser`.

    Raises:
      SystemExit: with 2 for a line that cannot be parsed, with 0 after `--help` and `--version`.
    """
    parsed, rest = _parser(given).parse_known_args(given)
    # argparse takes one run of positional arguments; those after an option are left over.
    if hasattr(parsed, "words") and not any(word.startswith("-") and word != "-" for word in rest):
        parsed.words += rest
    elif rest:
        parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


class _Parser(argparse.ArgumentParser):
    """An argument parser that takes -1e5, -inf and -1,2 for values, as it takes -1."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser. Only the commands that are named have arguments: the others would cost their imports."""
    parser = _Parser(
        "videollava",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"videollava {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        made = commands.add_parser(
            command.name,
            help=command.about,
            description=f"{command.about[0].upper()}{command.about[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **command.parser,
        )
        made.set_defaults(parser=made)
        if command.name in given:
            command.fill(made)
    return parser
