"""The `videollava` command: `main` runs the command that was asked for and reports an error in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from videollava_jax.cli.ask import add_ask, add_chat, add_demo
from videollava_jax.cli.batch import add_batch
from videollava_jax.cli.checkpoints import add_convert, add_export, add_verify
from videollava_jax.cli.common import print_error
from videollava_jax.cli.finetune import add_finetune, add_train_export
from videollava_jax.cli.plan import add_plan
from videollava_jax.version import __version__

DESCRIPTION = """\
Ask questions about images and videos with Video-LLaVA, in JAX.

  videollava demo                                          what it looks like, with nothing to fetch
  videollava ask clip.mp4 "Which way does it move?"        one answer
  videollava ask clip.mp4 "What is it?" "What colour?"     the clip is read and encoded once for both
  videollava chat clip.mp4                                 a conversation about it
  videollava batch questions.jsonl answers.jsonl           many questions; after a kill the same command resumes
  videollava convert Video-LLaVA-7B-hf 7b-orbax            a checkpoint of any layout to Orbax
  videollava export 7b-orbax 7b-hf --layout hub            and back
  videollava verify 7b-orbax                               is every bit as it was when it was written?
  videollava ask --model 7b-orbax clip.mp4 "Why is this funny?"
  videollava finetune --config lora --model 7b-orbax --output runs/mine --data.train mine.json
  videollava train-export runs/mine mine-hf                the model that this run has made
  videollava plan --topology v5e:2x4 --questions 25        does it fit chips that are not here, and how fast at best?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 0 on success, 1 on errors, 130 on Ctrl-C.

    Args:
      arguments: without the program's name; None for those of this process.

    Raises:
      SystemExit: with 2 for a command line that cannot be parsed, and where a command has an exit status of its own.
    """
    parsed = _parser().parse_args(arguments)
    # transformers would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run: Callable[[argparse.Namespace], None] = parsed.run
    try:
        run(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads the output any more, so no error message is printed either
        sys.stderr.close()
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print_error(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "videollava", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"videollava {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    questions, checkpoints = (add_demo, add_ask, add_chat, add_batch), (add_convert, add_export, add_verify)
    for add in (*questions, *checkpoints, add_finetune, add_train_export, add_plan):
        add(commands)
    return parser
