"""A task of `videollava eval`, answered and scored during a run by the same code, with the parameters of a step.

    questions ─▶ requests ─▶ the engine, on the run's mesh ─▶ answers.jsonl ─▶ report.json, records.jsonl ─▶ metrics

All processes answer the same questions together; the first one scores and writes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from tqdm import tqdm

from videollava_jax.batch.forms.form import JobFacts, Tag
from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.batch.media.spool import Resolver, Spool
from videollava_jax.batch.pending import grouped_by_media, pending_lines
from videollava_jax.batch.records import record
from videollava_jax.batch.requests import Defaults, with_sources
from videollava_jax.engine import Engine, Request, Result
from videollava_jax.evaluation.answering import (
    ANSWERS,
    WAYS,
    first_media,
    longest_answer,
    media_root,
    require_media,
    write_questions,
)
from videollava_jax.evaluation.answers import join, read_answers
from videollava_jax.evaluation.digests import data_fingerprint
from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.report import score, write_report
from videollava_jax.evaluation.tasks import TASKS, Files, Task
from videollava_jax.generation.loaded import LoadedModel, read_generation_config
from videollava_jax.model.sharding import Placement
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.run.guards import Watchdog
from videollava_jax.training.run.processes import gathered
from videollava_jax.training.run.recipe import Data, Recipe
from videollava_jax.training.update.inference import inference_model
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.parameters import Parameters

DIRECTORY = "evaluations"
"""In the run's directory: evaluations/TASK/STEP has what `videollava eval answer` and `score` write."""
_TOGETHER = 32
"""Answers between two times at which the processes tell each other of signals."""
_MAX_BYTES = 2**30
_READERS = 4
"""Threads that read media where the recipe has no processes for it."""


@dataclass(frozen=True)
class HeldOutTask:
    """What a run is asked: a task's questions, all there before the run begins.

    Attributes:
      task, files, questions: of the task; the questions that are asked.
      processor: makes prompts, frames and pixels.
      root: the directory that no medium is outside of; None where links lead out of the task's.
      asked: how it is asked, for the report.
      frames: of a video.
    """

    task: Task
    files: Files
    questions: Sequence[Question]
    processor: VideoLlavaProcessor
    root: Path | None
    asked: dict[str, Any]
    frames: int

    @classmethod
    def open(cls, data: Data, checkpoint: Path, trained_with: VideoLlavaProcessor) -> HeldOutTask | None:
        """Reads the questions that a recipe names, and looks for their media; None where it names no task.

        Args:
          data: of the recipe.
          checkpoint: the directory of the model, for another processor.
          trained_with: the run's own processor.

        Raises:
          ValueError: files or media are missing, or the task's answers are not published.
        """
        if data.evaluate is None or data.evaluate_data is None:
            return None
        task, way = TASKS[data.evaluate], WAYS[data.evaluate_as]
        files, questions = task.questions(Path(data.evaluate_data))
        questions = first_media(questions, data.evaluate_limit)
        if all(question.target is None for question in questions):
            here = ", ".join(name for name in (f"{task.name}_val",) if name in TASKS)
            raise ValueError(
                f"data.evaluate: the answers of {task.title} are not published, so that nothing can be scored here; "
                f"expected another task{f', such as {here}' if here else ''}"
            )
        require_media(files, questions, data.evaluate_max_missing, "data.evaluate_max_missing")
        processor = trained_with
        if way.preset is not None:
            changes: dict[str, Any] = {"name": way.preset}
            if way.as_task:
                changes |= {"template": task.template, "pad_to_square": task.pads}
            processor = VideoLlavaProcessor.from_pretrained(checkpoint, preset=changes)
        asked = {"as": way.name, "limit": data.evaluate_limit}
        return cls(task, files, questions, processor, media_root(files, questions), asked, data.frames)

    @property
    def facts(self) -> dict[str, Any]:
        """What all processes of a run must have in common."""
        return {"task": self.task.name, "asked": self.asked, "data": data_fingerprint(self.files, self.questions)}

    @property
    def description(self) -> str:
        """A line that says what is asked and how it is scored."""
        media = len({question.cluster for question in self.questions})
        judge = ", without the judge that the paper's figure is from" if self.task.judges else ""
        return (
            f"{self.task.title}: {len(self.questions)} questions about {media} videos or images, scored by "
            f"{self.task.scorer.metric}{judge}"
        )


class TaskEvaluator:
    """Answers and scores a held-out task with the parameters of a step.

    Args:
      held_out: the task.
      recipe: of the run.
      checkpoint: the directory of the model that the run began with.
      model, placement: of the run.
      watchdog: gets a sign of life for each answer.

    Attributes:
      name: of the task among a run's metrics, `evaluate/TASK`; its scores are `evaluate/TASK/SCORE`.
    """

    def __init__(
        self,
        held_out: HeldOutTask,
        recipe: Recipe,
        checkpoint: Path,
        model: TrainingModel,
        placement: Placement,
        watchdog: Watchdog,
    ):
        self._held_out, self._workers, self._output = held_out, recipe.data.workers, Path(recipe.output)
        self._model, self._placement, self._watchdog = model, placement, watchdog
        self._generation_config = read_generation_config(checkpoint)
        self._memory: int | None = None
        self.name = f"evaluate/{held_out.task.name}"

    def __call__(self, parameters: Parameters, step: int, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """Returns the task's metrics, in their order of the report; None if the run is to stop.

        All processes call this together; those but the first return no metrics.

        Args:
          parameters: all of the model's, layers stacked.
          step: that they are of.
          stopped: whether a process has received a signal to stop; all processes call it together.

        Raises:
          ValueError: the devices have too little memory.
        """
        task, first = self._held_out.task, jax.process_index() == 0
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="videollava-")))
            if first:
                out = self._output / DIRECTORY / task.name / str(step)
                shutil.rmtree(out, ignore_errors=True)  # of an earlier start that was stopped there
            else:
                out = place / "out"
            model = stack.enter_context(
                inference_model(self._model, parameters, self._placement, self._generation_config)
            )
            try:
                lines = self._answers(model, out, place / "media", step, stopped)
            except MemoryError as error:
                raise ValueError(f"data.evaluate: {error}") from None
        if lines is None:
            shutil.rmtree(out, ignore_errors=True)
            return None
        if not first:
            return {}
        (out / ANSWERS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
        return self._scores(out, step)

    def _scores(self, out: Path, step: int) -> dict[str, float]:
        """Scores the answers in a directory, and writes the report there."""
        held_out = self._held_out
        joined = join(held_out.questions, read_answers(out / ANSWERS))
        scored = score(held_out.task, held_out.files, held_out.questions, joined)
        report = write_report(out, scored, {"asked": held_out.asked, "step": step})
        if unanswered := joined.unanswered():
            error = f"; the first error: {next(iter(joined.failed.values()))}" if joined.failed else ""
            print(f"step {step}: {unanswered} questions have no answer and count as wrong{error}", file=sys.stderr)
        metrics: Mapping[str, Mapping[str, float]] = report["metrics"]
        names = [scored.metric, *(name for name in metrics if name != scored.metric)]
        return {name: metrics[name]["value"] for name in names}

    def _answers(
        self, model: LoadedModel, out: Path, media: Path, step: int, stopped: Callable[[], bool]
    ) -> list[str] | None:
        """Returns the records of all questions as `videollava eval answer` writes them; None if the run is to stop."""
        held_out = self._held_out
        file = write_questions(out, held_out.task, held_out.files, held_out.questions, held_out.asked, held_out.root)
        options = {"max_new_tokens": longest_answer(held_out.task, held_out.processor.max_positions)}
        defaults = Defaults(options=options, frame_sampling=held_out.processor.frames(held_out.frames))
        facts = JobFacts(model="", created=0, digest="")
        tags: dict[str, Tag] = {}
        records: dict[int, str] = {}

        def keep(tag: Tag, result: Result) -> None:
            cause = None if result.error is None else result.cause or "invalid_request"
            records[tag.index] = record("jsonl", tag, result, cause, facts)

        def requests(resolve: Resolver) -> Iterator[Request]:
            for line in grouped_by_media(pending_lines([file], "jsonl", defaults, ())):
                try:
                    if isinstance(line.request, ValueError):
                        raise line.request
                    request = with_sources(line.request, resolve)
                except (ValueError, OSError) as error:
                    keep(line.tag, Result(id="", finish_reason="error", error=" ".join(str(error).split())))
                    continue
                tags[request.id] = line.tag
                yield request

        with ExitStack() as stack:
            spool = Spool(media)
            stack.callback(spool.close)
            reader = None
            if self._workers:
                reader = IsolatedReader(held_out.processor)
                stack.callback(reader.close)
            engine = Engine(
                model, held_out.processor, memory=self._memory, readers=self._workers or _READERS, reader=reader
            )
            self._memory = engine.memory = _least(engine.memory)
            resolver = Resolver(spool, root=held_out.root, fetch=None, max_bytes=_MAX_BYTES)
            results = cast(Generator[Result], engine.run(requests(resolver)))
            stack.callback(results.close)
            bar = tqdm(
                results,
                desc=held_out.task.name,
                total=len(held_out.questions),
                unit="answer",
                leave=False,
                disable=None if jax.process_index() == 0 else True,
            )
            stack.callback(bar.close)
            for number, result in enumerate(bar, 1):
                self._watchdog.alive(f"evaluating {held_out.task.name} after step {step}")
                keep(tags[result.id], result)
                if number % (_TOGETHER if jax.process_count() > 1 else 1) == 0 and stopped():
                    return None
        return [records[index] for index in sorted(records)]


def _least(size: int) -> int:
    """Returns the least number of bytes that a process has, as all decide by it which grid is made."""
    mebibytes = gathered(np.asarray([size >> 20], np.int32))
    return int(mebibytes.min()) << 20
