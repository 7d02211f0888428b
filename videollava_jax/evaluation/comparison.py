"""Compares two runs of one task, question by question: a paired test of each metric, and the answers that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.digests import same_data
from videollava_jax.evaluation.report import RECORDS, REPORT, judge_metrics
from videollava_jax.evaluation.scorers.scorer import summed
from videollava_jax.evaluation.statistics import DRAWS, SEED, difference
from videollava_jax.evaluation.tasks import TASKS
from videollava_jax.evaluation.tasks.files import read_json, read_rows


@dataclass(frozen=True)
class Run:
    """A scored run.

    Attributes:
      path: its directory.
      report: of `videollava eval score`.
      records: by the ids of questions.
    """

    path: Path
    report: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Reads a run from the directory that `videollava eval score` wrote.

        Raises:
          ValueError: it is none.
        """
        for name in (REPORT, RECORDS):
            if not (path / name).is_file():
                raise ValueError(f"{path}: expected {name}, as `videollava eval score` writes it")
        report, rows = read_json(path / REPORT), read_rows(path / RECORDS)
        if not _is_report(report) or not all(map(_is_record, rows)):
            raise ValueError(f"{path}: expected the report of a known task, as `videollava eval score` writes it")
        return cls(path, report, {str(row["id"]): row for row in rows})


def _is_report(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("task"), str) or value["task"] not in TASKS:
        return False
    metrics, others = value.get("metrics"), [value.get(name) for name in ("data", "settings")]
    numbers = isinstance(metrics, dict) and all(
        isinstance(m, dict) and _number(m.get("value")) for m in metrics.values()
    )
    return numbers and "metric" in value and all(isinstance(other, dict) for other in others)


def _is_record(row: Mapping[str, Any]) -> bool:
    counts = row.get("counts", {})
    texts = isinstance(row.get("id"), str) and isinstance(row.get("cluster"), str) and _text_or_none(row.get("answer"))
    numbers = _number(row.get("score")) and isinstance(counts, dict) and all(map(_number, counts.values()))
    return texts and numbers and "error" in row


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def compare(a: Run, b: Run) -> dict[str, Any]:
    """Compares two runs.

    Returns:
      For JSON: each metric of both runs with the difference, its interval and its p; and how many units of questions
      A alone and B alone has right.

    Raises:
      ValueError: the runs are of different tasks or data.
    """
    if a.report["task"] != b.report["task"]:
        raise ValueError(f"expected two runs of one task, got {a.report['task']} and {b.report['task']}")
    if not same_data(a.report["data"], b.report["data"]) or a.records.keys() != b.records.keys():
        raise ValueError(f"{a.path} and {b.path}: expected answers to the same questions, but their data differ")
    task = TASKS[a.report["task"]]

    def metrics(sums: Mapping[str, float]) -> dict[str, float]:
        ours = {name: value for name, value in sums.items() if not name.startswith("judge/")}
        return {**task.scorer.metrics(ours), **judge_metrics(sums)}

    one, two = _clusters(a), _clusters(b)
    names = [name for name in a.report["metrics"] if name in b.report["metrics"]]
    table = {}
    for name in names:
        found = difference([one[c] for c in one], [two[c] for c in one], metrics, name)
        values = {side: run.report["metrics"][name]["value"] for side, run in (("a", a), ("b", b))}
        table[name] = {**values, "difference": found.record()}
    changed = [name for name in a.records if a.records[name]["answer"] != b.records[name]["answer"]]
    scores = [(a.records[name]["score"], b.records[name]["score"]) for name in a.records]
    return {
        "task": task.name,
        "metric": a.report["metric"],
        "a": str(a.path),
        "b": str(b.path),
        "metrics": table,
        "questions": len(a.records),
        "answers_that_differ": len(changed),
        "better_in_a": sum(x > y for x, y in scores),
        "better_in_b": sum(y > x for x, y in scores),
        "settings_that_differ": _differing(a.report["settings"], b.report["settings"]),
        "tested_by": f"bootstrap and permutation of {len(one)} clusters, {DRAWS} draws, seed {SEED}",
    }


def _clusters(run: Run) -> dict[str, dict[str, float]]:
    """Returns the sums of each cluster's counts, in an order that both runs have."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for _, record in sorted(run.records.items()):
        if "counts" in record:
            found.setdefault(record["cluster"], []).append(record["counts"])
    return {name: summed(counts) for name, counts in sorted(found.items())}


def _differing(a: Any, b: Any, where: str = "") -> dict[str, Any]:
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, Any] = {}
        for name in dict.fromkeys([*a, *b]):
            found |= _differing(a.get(name), b.get(name), f"{where}.{name}" if where else name)
        return found
    return {} if a == b else {where: [a, b]}


def changed_records(a: Run, b: Run) -> Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Returns the questions whose scores differ, the largest change first, and then those whose answers do."""
    pairs = [(a.records[name], b.records[name]) for name in sorted(a.records)]
    differ = [pair for pair in pairs if pair[0]["answer"] != pair[1]["answer"]]
    return sorted(differ, key=lambda pair: -abs(pair[0]["score"] - pair[1]["score"]))


def in_words(found: Mapping[str, Any]) -> str:
    """Returns a comparison in a few lines."""
    lines = [f"{TASKS[found['task']].title}: A {found['a']}, B {found['b']}"]
    for name, row in found["metrics"].items():
        change = row["difference"]
        lines.append(
            f"{'* ' if name == found['metric'] else '  '}{name:24} {row['a']:6.2f} {row['b']:6.2f}   "
            f"B - A {change['value']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}], p = {change['p']:.3f}"
        )
    lines.append(
        f"  {found['answers_that_differ']} of {found['questions']} answers differ; {found['better_in_a']} are better "
        f"in A, {found['better_in_b']} in B"
    )
    if found["settings_that_differ"]:
        lines.append(f"  settings that differ: {', '.join(found['settings_that_differ'])}")
    return "\n".join(lines)


def write_comparison(path: Path, found: Mapping[str, Any]) -> None:
    """Writes a comparison as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
