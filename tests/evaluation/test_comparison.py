"""Intervals, paired tests, the comparison of two runs, and the pages."""

import shutil

import pytest

from tests.evaluation.published import answers, right, wrong
from videollava_jax.evaluation import world
from videollava_jax.evaluation.answers import join
from videollava_jax.evaluation.comparison import Run, changed_records, compare, in_words
from videollava_jax.evaluation.page import comparison_page, frames_of, score_page
from videollava_jax.evaluation.report import records, score, write_report
from videollava_jax.evaluation.scorers.scorer import percentages
from videollava_jax.evaluation.statistics import difference, intervals
from videollava_jax.evaluation.tasks import TASKS


def test_an_interval_of_independent_questions_is_that_of_the_binomial():
    clusters = [{"right": float(i % 4 == 0), "all": 1.0} for i in range(400)]
    found = intervals(clusters, percentages)["right"]
    assert found.value == 25
    assert found.error == pytest.approx(100 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)
    assert found.low == pytest.approx(25 - 1.96 * found.error, abs=0.8)


def test_an_interval_of_clusters_is_wider():
    """Four questions that are right together tell as much as one."""
    alone = intervals([{"right": float(i % 4 == 0), "all": 1.0} for i in range(400)], percentages)["right"]
    together = intervals([{"right": 4.0 * (i % 4 == 0), "all": 4.0} for i in range(100)], percentages)["right"]
    assert together.value == alone.value
    assert together.error == pytest.approx(2 * alone.error, rel=0.15)


def test_a_difference_and_its_p():
    a = [{"right": float(i % 2), "all": 1.0} for i in range(200)]
    better = [{"right": float(i % 2 or i % 10 == 0), "all": 1.0} for i in range(200)]
    found = difference(a, better, percentages, "right")
    assert found.value == pytest.approx(10)
    assert found.low > 0
    assert found.p < 0.005
    same = difference(a, a, percentages, "right")
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    coin = [{"right": float((i + i // 2) % 2), "all": 1.0} for i in range(200)]
    assert difference(a, coin, percentages, "right").p > 0.5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    world.write("nextqa", root / "data", media=4)
    world.write("nextqa", root / "other", media=4, seed=50)
    task = TASKS["nextqa"]
    for name, data, say in (
        ("right", "data", right),
        ("mixed", "data", lambda q: right(q) if q.id < "2" else "<b>hm</b>"),
        ("other", "other", wrong),
    ):
        files, questions = task.questions(root / data)
        scored = score(task, files, questions, join(questions, answers(questions, say)))
        write_report(root / name, scored, {"model": name})
    return root


def test_two_runs_are_compared(place):
    a, b = Run.read(place / "right"), Run.read(place / "mixed")
    found = compare(a, b)
    row = found["metrics"]["accuracy"]
    assert row["a"] == 100
    assert row["difference"]["value"] == pytest.approx(row["b"] - 100, abs=1e-3)
    assert found["better_in_a"] == found["answers_that_differ"] > 0
    assert found["settings_that_differ"] == {"model": ["right", "mixed"]}
    assert "B - A" in in_words(found)
    assert compare(a, a)["metrics"]["accuracy"]["difference"] == {"value": 0, "low": 0, "high": 0, "p": 1}


def test_runs_of_other_data_and_no_runs(place, tmp_path):
    with pytest.raises(ValueError, match="expected answers to the same questions"):
        compare(Run.read(place / "right"), Run.read(place / "other"))
    with pytest.raises(ValueError, match=r"expected report\.json"):
        Run.read(tmp_path)


def test_the_pages_hold_frames_and_escape_what_was_said(place):
    task = TASKS["nextqa"]
    files, questions = task.questions(place / "data")
    by_id = {question.id: question for question in questions}
    a, b = Run.read(place / "right"), Run.read(place / "mixed")
    page = score_page(b.report, list(b.records.values()), by_id, frames_of(files.root))
    assert page.count("data:image/jpeg;base64,") == 4 * page.count("<article>") > 0
    assert "<b>hm" not in page
    assert "&lt;b&gt;hm" in page
    assert "http" not in page
    other = comparison_page(compare(a, b), changed_records(a, b), by_id, frames_of(files.root))
    assert other.count("<article>") == min(12, sum(q.id >= "2" for q in questions))


def test_a_page_without_media(place, tmp_path):
    task = TASKS["nextqa"]
    files, questions = task.questions(place / "data")
    scored = score(task, files, questions, join(questions, answers(questions)))
    report = write_report(tmp_path, scored, {})
    page = score_page(report, records(scored), {q.id: q for q in questions}, frames_of(tmp_path))
    assert "<article>" in page
    assert "data:image" not in page


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("report.json", '"task": "nextqa"', '"task": ["nextqa"]'),
        ("report.json", '"settings": {', '"settings": [], "more": {'),
        ("report.json", '"value": 100.0', '"value": "100"'),
        ("records.jsonl", '"score": 1.0', '"score": null'),
        ("records.jsonl", '"counts": {"accuracy": 1.0', '"counts": {"accuracy": "1"'),
        ("records.jsonl", '"cluster": "0"', '"cluster": 0'),
    ],
)
def test_runs_that_somebody_has_changed(place, tmp_path, file, old, new):
    shutil.copytree(place / "right", tmp_path / "r")
    text = (tmp_path / "r" / file).read_text()
    assert old in text
    (tmp_path / "r" / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="expected the report of a known task"):
        Run.read(tmp_path / "r")
