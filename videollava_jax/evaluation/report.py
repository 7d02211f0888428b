"""Scores a task's answers and reports them: metrics with intervals, categories, settings, a record of each question."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.answers import Joined
from videollava_jax.evaluation.digests import data_fingerprint
from videollava_jax.evaluation.judge.endpoint import Item, Judge, Judged
from videollava_jax.evaluation.judge.prompts import PROMPTS, Reads
from videollava_jax.evaluation.judge.replies import Verdict
from videollava_jax.evaluation.question import Marked, Question
from videollava_jax.evaluation.scorers.scorer import Counts, summed, units
from videollava_jax.evaluation.statistics import DRAWS, SEED, Interval, intervals
from videollava_jax.evaluation.tasks.task import Files, Task
from videollava_jax.version import __version__

REPORT, RECORDS, SUBMISSION = "report.json", "records.jsonl", "submission.json"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A task's answers with their marks.

    Attributes:
      task: of the questions.
      files: of the task.
      marked: every question with its answer and mark, sorted by id.
      joined: how answers were joined to questions.
      judge: that was asked; None without one.
      judged: its verdicts.
    """

    task: Task
    files: Files
    marked: Sequence[Marked]
    joined: Joined
    judge: Judge | None = None
    judged: Judged | None = None

    @functools.cached_property
    def units(self) -> dict[str, list[Marked]]:
        """The questions by unit."""
        return {one[0].question.unit or one[0].question.id: one for one in units(self.marked).values()}

    @functools.cached_property
    def counts(self) -> dict[str, Counts]:
        """What each unit counts, the judge's verdicts included."""
        return {name: self._counts_of(name, unit) for name, unit in self.units.items()}

    def _counts_of(self, name: str, unit: Sequence[Marked]) -> Counts:
        counts = dict(self.task.scorer.counts(unit))
        if self.judged is None:
            return counts
        for prompt in self.task.judges:
            verdict = self.judged.verdicts.get((name, prompt))
            counts |= judge_counts(prompt, PROMPTS[prompt].reads, verdict)
        return counts

    def metrics(self, sums: Counts) -> dict[str, float]:
        """Returns the scorer's metrics and the judge's from sums of counts."""
        found = dict(self.task.scorer.metrics({k: v for k, v in sums.items() if not k.startswith("judge/")}))
        return found | judge_metrics(sums)

    @property
    def metric(self) -> str:
        """The headline metric: the judge's, where the paper's is."""
        if self.judged is None:
            return self.task.scorer.metric
        return "judge_accuracy" if "match" in self.task.judges else f"judge_{self.task.judges[0]}"


def judge_counts(prompt: str, reads: Reads, verdict: Verdict | None) -> dict[str, float]:
    """Returns what a verdict counts; None, where there is no answer or no reply could be read, is "no" and 0."""
    score = float(verdict.score) if verdict is not None else 0.0
    counts = {"judge/all": 1.0, f"judge/{reads}/{prompt}": score}
    if reads == "pair":
        counts["judge/reference"] = verdict.reference if verdict is not None else 10.0
    if reads == "match":
        right = verdict.right if verdict is not None else False
        counts |= {"judge/yes": float(right is True), "judge/no": float(right is False)}
    return counts


def judge_metrics(sums: Counts) -> dict[str, float]:
    """Returns the judge's metrics: accuracy over yes and no, shares and ratios, in percent; mean scores, 0 to 5."""
    found = {}
    if decided := sums.get("judge/yes", 0.0) + sums.get("judge/no", 0.0):
        found["judge_accuracy"] = 100 * sums["judge/yes"] / decided
    for name, value in sums.items():
        if name.count("/") < 2 or not name.startswith("judge/") or not sums["judge/all"]:
            continue
        _, reads, prompt = name.split("/")
        if reads == "pair":
            found[f"judge_{prompt}"] = 100 * value / sums["judge/reference"] if sums["judge/reference"] else 0.0
        elif reads == "share":
            found[f"judge_{prompt}"] = 100 * value / sums["judge/all"]
        else:
            found["judge_score" if reads == "match" else f"judge_{prompt}"] = value / sums["judge/all"]
    return found


def score(
    task: Task,
    files: Files,
    questions: Sequence[Question],
    joined: Joined,
    judge: Judge | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> Scored:
    """Marks all answers, and asks the judge if there is one; `done` gets the number of its verdicts so far."""
    ordered = sorted(questions, key=lambda question: question.id)
    marked = [task.scorer.marked(question, joined.texts.get(question.id)) for question in ordered]
    scored = Scored(task=task, files=files, marked=marked, joined=joined)
    if judge is None or not task.judges:
        return scored
    items = [
        Item(name, prompt, _fields(unit))
        for name, unit in scored.units.items()
        if all(one.text is not None for one in unit)
        for prompt in task.judges
    ]
    return Scored(
        task=task,
        files=files,
        marked=marked,
        joined=joined,
        judge=judge,
        judged=judge.judged(items, done) if items else Judged(),
    )


def _fields(unit: Sequence[Marked]) -> dict[str, str]:
    if len(unit) == 1:
        (one,) = unit
        context = str(one.question.facts.get("context", ""))
        asked = str(one.question.facts.get("asked", one.question.text))
        return {"question": asked, "answer": str(one.question.target), "pred": one.text or "", "context": context}
    fields = {"answer": str(unit[0].question.target)}
    for turn, one in enumerate(unit, 1):
        fields |= {f"question{turn}": one.question.text, f"pred{turn}": one.text or ""}
    return fields


def _clusters(scored: Scored) -> dict[str, list[Counts]]:
    found: dict[str, list[Counts]] = {}
    for name, unit in scored.units.items():
        found.setdefault(unit[0].question.cluster, []).append(scored.counts[name])
    return found


def _categories(scored: Scored) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, list[Counts]]] = {}
    for name, unit in scored.units.items():
        counts = scored.counts[name]
        for kind, category in unit[0].question.categories.items():
            groups.setdefault(kind, {}).setdefault(category, []).append(counts)
    return {
        kind: {
            category: {"units": len(counts), **_rounded(scored.metrics(summed(counts)))}
            for category, counts in sorted(found.items())
        }
        for kind, found in sorted(groups.items())
    }


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in sorted(metrics.items())}


def make_report(scored: Scored, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report, for JSON: the same bytes for the same answers and data.

    Args:
      scored: what is reported.
      settings: of the run that answered: how it asked, its model's fingerprint; empty if they are not known.
    """
    task = scored.task
    known = any(one.question.target is not None for one in scored.marked)
    clusters = _clusters(scored)
    found: dict[str, Interval] = {}
    if known:
        found = intervals([summed(counts) for counts in clusters.values()], scored.metrics)
    answered = [scored.counts[name] for name, unit in scored.units.items() if all(one.text is not None for one in unit)]
    report: dict[str, Any] = {
        "task": task.name,
        "title": task.title,
        "metric": scored.metric,
        "score": round(found[scored.metric].value, 4) if scored.metric in found else None,
        "interval": [round(found[scored.metric].low, 4), round(found[scored.metric].high, 4)]
        if scored.metric in found
        else None,
        "paper": dict(task.paper),
        "metrics": {name: interval.record() for name, interval in sorted(found.items())},
        "of_answered_only": _rounded(scored.metrics(summed(answered))) if known and answered else {},
        "counts": {
            "questions": len(scored.marked),
            **scored.joined.counts(),
            "unparsed": sum(one.text is not None and one.mark.parsed is None for one in scored.marked),
            "units": len(scored.units),
            "clusters": len(clusters),
        },
        "categories": _categories(scored) if known else {},
        "more": task.scorer.extras(scored.marked) if known else {},
        "interval_by": f"bootstrap over {len(clusters)} clusters, {DRAWS} draws, seed {SEED}, 95 %",
        "note": task.note,
        "data": data_fingerprint(scored.files, [one.question for one in scored.marked]),
        "settings": dict(settings),
        "videollava": __version__,
    }
    if scored.judge is not None and scored.judged is not None:
        judged = scored.judged
        said = {"said_to_be": sorted(judged.models), "asked_on": sorted(judged.dates)}
        report["judge"] = {**scored.judge.settings(), **said, **judged.counts()}
        if scored.judge.runs > 1:
            report["judge"]["score_of_each_run"] = [round(score, 4) for score in _by_run(scored)]
    return report


def _by_run(scored: Scored) -> list[float]:
    """Returns the headline metric of each of the judge's runs."""
    assert scored.judge is not None
    assert scored.judged is not None
    found = []
    for run in range(scored.judge.runs):
        verdicts = {key: runs[run] if run < len(runs) else None for key, runs in scored.judged.runs.items()}
        one = dataclasses.replace(scored, judged=dataclasses.replace(scored.judged, verdicts=verdicts))
        found.append(one.metrics(summed(list(one.counts.values())))[one.metric])
    return found


def records(scored: Scored) -> list[dict[str, Any]]:
    """Returns a record for each question, and with the first one of a unit what the unit counts."""
    found = []
    for name, unit in scored.units.items():
        for turn, one in enumerate(unit):
            question = one.question
            record: dict[str, Any] = {
                "id": question.id,
                "unit": name,
                "cluster": question.cluster,
                "categories": dict(question.categories),
                "question": question.text,
                "media": [[kind, source if len(source) < 1000 else "data:"] for kind, source in question.media],
                "expected": question.target,
                "answer": one.text,
                "error": scored.joined.failed.get(question.id),
                "parsed": one.mark.parsed,
                "score": round(one.mark.score, 6),
                "others": {key: round(value, 6) for key, value in sorted(one.mark.others.items())},
            }
            if turn == 0:
                record["counts"] = dict(sorted(scored.counts[name].items()))
                if scored.judged is not None:
                    record["judge"] = {
                        prompt: scored.judged.replies.get((name, prompt), []) for prompt in scored.task.judges
                    }
            found.append(record)
    return sorted(found, key=lambda record: str(record["id"]))


def write_report(out: Path, scored: Scored, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes report.json, records.jsonl and, where a server has the answers, submission.json; returns the report."""
    report = make_report(scored, settings)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _write(out / RECORDS, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records(scored)))
    if scored.task.submission is not None:
        _write(out / SUBMISSION, json.dumps(scored.task.submission(scored.marked, scored.files)) + "\n")
    return report


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Returns the counts of a report that say something, on one line."""
    shown = {name: count for name, count in counts.items() if count and (name, count) != ("units", counts["questions"])}
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.items())


def in_words(report: Mapping[str, Any]) -> str:
    """Returns a report in a few lines."""
    counts = report["counts"]
    lines = [report["title"]]
    paper = dict(report["paper"])
    for name, interval in report["metrics"].items():
        figure = f"   paper: {paper.pop(name):g}" if name in paper else ""
        scores = [f"judge_{prompt}" for prompt, asked in PROMPTS.items() if asked.reads == "score"]
        unit = "" if name in ("judge_score", *scores) else " %"
        head = "* " if name == report["metric"] else "  "
        lines.append(
            f"{head}{name:24} {interval['value']:6.2f}{unit}  [{interval['low']:.2f}, {interval['high']:.2f}]{figure}"
        )
    lines += [f"  {name:24} not scored here   paper: {figure:g}" for name, figure in paper.items()]
    said = counts_in_words(counts)
    return "\n".join([*lines, f"  {said}", *([f"  {report['note']}"] if report["note"] else [])])
