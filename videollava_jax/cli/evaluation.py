"""`videollava eval`: lists the tasks, answers one on the batch job, scores answers, compares runs, draws the world."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollava_jax.cli.batch import add_job_arguments, batch
from videollava_jax.cli.common import argument_type, begin_command, open_processor, print_json
from videollava_jax.cli.judging import add_judge_arguments, judge_of
from videollava_jax.generation.kinds import number, whole
from videollava_jax.hub import local_path

if TYPE_CHECKING:
    from videollava_jax.evaluation.tasks import Task

DETAILS = """\
  videollava eval list
  videollava eval answer msvd_qa --data MSVD_Zero_Shot_QA --model 7b-orbax -o runs/msvd
  videollava eval score msvd_qa --data MSVD_Zero_Shot_QA --answers runs/msvd
  videollava eval compare runs/msvd runs/msvd-tuned

Answering is a batch job: after a kill the same command resumes. Scoring needs no model and no device. Answers are
joined to questions by their ids, never by position. docs/evaluation.md has every row of the paper's tables.
"""


def add_eval(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `eval`."""
    from videollava_jax.evaluation.answering import WAYS
    from videollava_jax.evaluation.tasks import TASKS

    made.description = f"{made.description}\n\n{DETAILS}"
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, about: str, run: Any, details: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(parser=parser)
        begin_command(parser, run, details)
        return parser

    listed = command("list", "list the tasks, the files that each needs and the paper's figures", list_tasks, "")
    listed.add_argument("tasks", nargs="*", metavar="TASK", help="list these alone, with where each file may be")

    answer = command("answer", "answer a task's questions, resuming what was begun", answer_task, ANSWERING)
    _add_task(answer, tuple(TASKS))
    _add_max_missing(answer)
    answer.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory of the answers")
    answer.add_argument(
        "--as",
        dest="way",
        choices=tuple(WAYS),
        default="paper",
        help="how to ask: " + "; ".join(f"{way.name}: {way.about}" for way in WAYS.values())
        + "; default: %(default)s",
    )  # fmt: skip
    answer.add_argument(
        "--limit", type=argument_type(whole(1)), metavar="N", help="ask only about the first N videos or images"
    )
    add_job_arguments(answer, places=False)

    score = command("score", "score answers and report them", score_task, SCORING)
    _add_task(score, tuple(TASKS))
    _add_max_missing(score)
    score.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="OUT",
        help="directory of `eval answer`, or a file: ours, LLaVA's, or what the authors' programs wrote",
    )
    score.add_argument("-o", "--output", type=Path, metavar="DIR", help="directory of the report; default: OUT")
    score.add_argument("--no-page", action="store_true", help="write no page.html, which reads media for its frames")
    add_judge_arguments(score)

    compare = command("compare", "compare two scored runs of one task, by a paired test", compare_runs, "")
    compare.add_argument("a", type=Path, metavar="A", help="directory of `eval score`")
    compare.add_argument("b", type=Path, metavar="B", help="another one")
    compare.add_argument("--data", type=local_path, metavar="DIR", help="the task's data, for the frames of a page")
    compare.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write comparison.json there, and with --data comparison.html"
    )

    drawn = command("world", "write the tiny model's drawn world as a task's data", write_world, WORLD)
    _add_task(drawn, tuple(TASKS))
    drawn.add_argument(
        "--media", type=argument_type(whole(1)), default=8, metavar="N", help="clips or images; default: %(default)s"
    )
    drawn.add_argument(
        "--seed", type=argument_type(whole(0)), default=0, metavar="N", help="of the first one; default: %(default)s"
    )


ANSWERING = """\
Writes questions.jsonl and run.json, and by the batch job answers.jsonl. Each video or image is decoded and encoded once
for all its questions. All options of `videollava batch` are here; --preset and its fields, rules of frames and
--max-new-tokens given by hand go before what --as says.
"""
SCORING = """\
Writes report.json, records.jsonl with a record for each question, page.html with the worst and the best answers, and
for tasks whose answers are not published submission.json. Without --judge-url nothing leaves this machine.
"""
WORLD = """\
Clips or images that the tiny model has not seen, with their questions, in the form in which the task's data are
published.
"""


def _add_task(parser: argparse.ArgumentParser, tasks: tuple[str, ...]) -> None:
    parser.add_argument("task", choices=tasks, metavar="TASK", help=f"one of {', '.join(tasks)}")
    parser.add_argument("--data", type=local_path, required=True, metavar="DIR", help="directory of the task's files")


def _add_max_missing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-missing",
        type=argument_type(number(0, 1)),
        default=0.0,
        metavar="SHARE",
        help="share of questions that may lack their media, or an answer; these count as wrong; default: none",
    )


def list_tasks(arguments: argparse.Namespace) -> None:
    """Prints the tasks."""
    from videollava_jax.evaluation.tasks import TASKS

    for name in arguments.tasks:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    for task in TASKS.values():
        if arguments.tasks and task.name not in arguments.tasks:
            continue
        if arguments.json:
            print_json(_listed(task))
        elif arguments.tasks:
            print(_in_full(task))
        else:
            paper = ", ".join(f"{name} {figure:g}" for name, figure in task.paper.items())
            print(f"{task.name:26} {task.title:46} {paper or '-'}")


def _listed(task: Task) -> dict[str, Any]:
    files = [{"paths": list(f.paths), "about": f.about, "optional": f.optional} for f in task.files]
    return {
        "task": task.name,
        "title": task.title,
        "files": files,
        "media": task.media,
        "metric": task.scorer.metric,
        "judged": list(task.judges),
        "paper": dict(task.paper),
        "note": task.note,
    }


def _in_full(task: Task) -> str:
    lines = [f"{task.name}: {task.title}"]
    for needed in task.files:
        optional = ", optional" if needed.optional else ""
        lines.append(f"  {' or '.join(needed.paths)}  ({needed.about}{optional})")
    lines.append(f"  media: {task.media}")
    judged = f"; by a judge: {', '.join(task.judges)}" if task.judges else ""
    lines.append(f"  score: {task.scorer.metric}{judged}")
    if task.paper:
        lines.append(f"  paper: {', '.join(f'{name} {figure:g}' for name, figure in task.paper.items())}")
    return "\n".join([*lines, *([f"  {task.note}"] if task.note else [])])


def answer_task(arguments: argparse.Namespace) -> None:
    """Answers a task as a batch job."""
    from videollava_jax.evaluation.answering import (
        ANSWERS,
        WAYS,
        first_media,
        longest_answer,
        media_root,
        require_media,
        write_questions,
    )
    from videollava_jax.evaluation.tasks import TASKS

    task, way = TASKS[arguments.task], WAYS[arguments.way]
    files, questions = task.questions(arguments.data)
    questions = first_media(questions, arguments.limit)
    missing = require_media(files, questions, arguments.max_missing)
    if arguments.preset is None:
        arguments.preset = way.preset
        if way.as_task:
            arguments.template = arguments.template or task.template
            arguments.pad_to_square = task.pads if arguments.pad_to_square is None else arguments.pad_to_square
    if arguments.max_new_tokens is None:
        _, processor = open_processor(arguments)
        arguments.max_new_tokens = longest_answer(task, processor.max_positions)
    root = media_root(files, questions)
    asked = {"as": way.name, "limit": arguments.limit}
    arguments.files = [
        write_questions(arguments.output, task, files, questions, asked, root),
        arguments.output / ANSWERS,
    ]
    arguments.input_file, arguments.output_file, arguments.format = [], None, "jsonl"
    arguments.media_root, arguments.allow_host = root, []
    if missing and not arguments.json:
        print(f"{len(missing)} media are missing, such as {missing[0]}: their questions count as wrong")
    batch(arguments)


def score_task(arguments: argparse.Namespace) -> None:
    """Scores answers."""
    from tqdm import tqdm

    from videollava_jax.evaluation.answering import ANSWERS, RUN, first_media, read_run
    from videollava_jax.evaluation.answers import join, read_answers
    from videollava_jax.evaluation.digests import data_fingerprint, same_data
    from videollava_jax.evaluation.page import frames_of, score_page
    from videollava_jax.evaluation.report import in_words, records, score, write_report
    from videollava_jax.evaluation.tasks import TASKS
    from videollava_jax.evaluation.tasks.files import read_json

    task, given = TASKS[arguments.task], arguments.answers
    files, questions = task.questions(arguments.data)
    settings: dict[str, Any] = {}
    if given.is_dir():
        path, out = given / ANSWERS, arguments.output or given
        if not path.is_file():
            raise ValueError(
                f"{given}: expected {ANSWERS}; `videollava eval answer` writes it when every question is done"
            )
        run = read_run(given) if (given / RUN).is_file() else {}
        if run:
            if run["task"] != task.name:
                raise ValueError(f"{given}: answers to {run['task']}, expected those to {task.name}")
            questions = first_media(questions, run.get("asked", {}).get("limit"))
            if not same_data(run.get("data"), data_fingerprint(files, questions)):
                raise ValueError(
                    f"{given}: answers to other data than {arguments.data} has; expected the same questions"
                )
            settings = {"asked": run.get("asked", {})}
        receipt = path.with_name(f"{path.name}.job.json")
        if receipt.is_file():
            settings["job"] = read_json(receipt).get("fingerprint", {})
    elif given.is_file():
        path, out = given, arguments.output or given.with_name(f"{given.stem}-report")
    else:
        raise ValueError(f"{given}: no such file or directory; expected answers")
    joined = join(questions, read_answers(path))
    joined.require(len(questions), arguments.max_missing, path)
    judge = judge_of(arguments, task, out)
    with tqdm(unit="reply", disable=True if judge is None else None) as bar:
        scored = score(task, files, questions, joined, judge, lambda done: _moved(bar, done))
    report = write_report(out, scored, settings)
    if not arguments.no_page:
        by_id = {question.id: question for question in questions}
        page = score_page(report, records(scored), by_id, frames_of(files.root))
        (out / "page.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    if arguments.json:
        print_json(report)
    else:
        print(f"{in_words(report)}\n{out}")


def _moved(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def compare_runs(arguments: argparse.Namespace) -> None:
    """Compares two runs."""
    from videollava_jax.evaluation.comparison import Run, changed_records, compare, in_words, write_comparison
    from videollava_jax.evaluation.digests import data_fingerprint, same_data
    from videollava_jax.evaluation.page import comparison_page, frames_of
    from videollava_jax.evaluation.tasks import TASKS

    a, b = Run.read(arguments.a), Run.read(arguments.b)
    found = compare(a, b)
    if arguments.output is not None:
        write_comparison(arguments.output / "comparison.json", found)
        if arguments.data is not None:
            files, questions = TASKS[found["task"]].questions(arguments.data)
            questions = [question for question in questions if question.id in a.records]
            if not same_data(a.report["data"], data_fingerprint(files, questions)):
                raise ValueError(f"{arguments.data}: expected the data of the two runs, got other questions")
            by_id = {question.id: question for question in questions}
            page = comparison_page(found, changed_records(a, b), by_id, frames_of(files.root))
            (arguments.output / "comparison.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    elif arguments.data is not None:
        raise ValueError("--data is for the page of a comparison: expected -o DIR too")
    if arguments.json:
        print_json(found)
    else:
        print(in_words(found))


def write_world(arguments: argparse.Namespace) -> None:
    """Writes the drawn world."""
    from videollava_jax.evaluation.tasks import TASKS
    from videollava_jax.evaluation.world import write

    write(arguments.task, arguments.data, arguments.media, arguments.seed)
    _, questions = TASKS[arguments.task].questions(arguments.data)
    counts = {"questions": len(questions), "media": arguments.media, "data": str(arguments.data)}
    if arguments.json:
        print_json(counts)
    else:
        print(f"{counts['questions']} questions about {arguments.media} clips or images\n{arguments.data}")
