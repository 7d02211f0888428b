"""The judge of free answers on the command line: its arguments, and the judge that they ask for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from videollava_jax.cli.common import argument_type
from videollava_jax.generation.kinds import number, whole

if TYPE_CHECKING:
    from videollava_jax.evaluation.judge.endpoint import Judge
    from videollava_jax.evaluation.tasks import Task


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which judge marks free answers, and how it is asked."""
    judge = parser.add_argument_group("a judge of free answers")
    judge.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible API, such as http://localhost:8000/v1")
    judge.add_argument("--judge-model", metavar="NAME", help="the judge's name there; a dated one does not change")
    judge.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that has the key, if one is needed; default: %(default)s",
    )
    judge.add_argument(
        "--judge-prompt",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="messages in JSON, or one of the authors' judge programs, whose messages are read; can be given several "
        "times; default: our own words",
    )
    judge.add_argument(
        "--judge-temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="`none` sends none, as the authors' programs do; default: %(default)g",
    )
    judge.add_argument(
        "--judge-runs",
        type=argument_type(whole(1)),
        default=1,
        metavar="N",
        help="times that each answer is judged: its score is the mean, and the report has each run's; "
        "default: %(default)s",
    )
    judge.add_argument(
        "--judge-tries",
        type=argument_type(whole(1)),
        default=3,
        metavar="N",
        help="times to ask in all where a reply cannot be read; default: %(default)s",
    )
    judge.add_argument(
        "--judge-max-tokens",
        type=argument_type(whole(1)),
        default=256,
        metavar="N",
        help="of a reply; default: %(default)s",
    )
    judge.add_argument(
        "--judge-workers",
        type=argument_type(whole(1)),
        default=8,
        metavar="N",
        help="requests at a time; default: %(default)s",
    )
    judge.add_argument(
        "--judge-cache", type=Path, metavar="FILE", help="replies so far; default: judge.db in the report's directory"
    )


def _temperature(text: str) -> float | None:
    if text == "none":
        return None
    found: float = argument_type(number(0, 2))(text)
    return found


def judge_of(arguments: argparse.Namespace, task: Task, out: Path) -> Judge | None:
    """Returns the judge that was asked for, with its prompts; None without one.

    Args:
      arguments: parsed by a parser with `add_judge_arguments`.
      task: whose answers are marked.
      out: directory of the report, where the judge's replies are kept.

    Raises:
      ValueError: arguments that contradict each other or the task.
    """
    from videollava_jax.evaluation.judge.endpoint import Judge
    from videollava_jax.evaluation.judge.prompts import PROMPTS, read_prompt

    if arguments.judge_url is None:
        if arguments.judge_model or arguments.judge_prompt:
            raise ValueError("--judge-model and --judge-prompt say how a judge is asked: expected --judge-url")
        return None
    if not task.judges:
        raise ValueError(f"{task.title} is scored without a judge; expected no --judge-url")
    if not arguments.judge_model:
        raise ValueError("--judge-url: expected --judge-model, as a score means nothing without its judge")
    prompts = {name: PROMPTS[name] for name in task.judges}
    for given in arguments.judge_prompt:
        name, _, file = given.rpartition("=")
        if not name and len(task.judges) > 1:
            raise ValueError(f"--judge-prompt {given}: expected NAME=FILE, NAME one of {', '.join(task.judges)}")
        name = name or task.judges[0]
        if name not in prompts:
            raise ValueError(f"--judge-prompt {given}: {task.title} has {', '.join(task.judges)}, not {name!r}")
        prompts[name] = read_prompt(Path(file), PROMPTS[name].reads)
    return Judge(
        url=arguments.judge_url,
        model=arguments.judge_model,
        prompts=prompts,
        cache=arguments.judge_cache or out / "judge.db",
        key=os.environ.get(arguments.judge_key_variable, ""),
        temperature=arguments.judge_temperature,
        max_tokens=arguments.judge_max_tokens,
        runs=arguments.judge_runs,
        tries=arguments.judge_tries,
        workers=arguments.judge_workers,
    )
