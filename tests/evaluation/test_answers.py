"""Answers joined by id: what misses, is double or belongs elsewhere is counted, and nothing is shifted."""

import json

import pytest

from videollava_jax.evaluation.answering import media_root, write_questions
from videollava_jax.evaluation.answers import Answer, join, read_answers
from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.tasks import TASKS, Files

QUESTIONS = [Question(id=name, text=f"{name}?", target=name, cluster=name) for name in "abc"]


def written(path, rows, lines=True):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def test_every_kind_is_counted():
    given = [
        Answer(id="a", text="1"),
        Answer(id="a", text="1"),
        Answer(id="b", text="1"),
        Answer(id="b", text="2"),
        Answer(id="x", text="1"),
    ]
    found = join(QUESTIONS, given)
    assert found.texts == {"a": "1"}
    assert (found.double, found.contradictory, found.foreign, found.missing) == (["a"], ["b"], ["x"], ["c"])
    assert found.unanswered() == 2


def test_answers_shifted_by_one_are_not_taken():
    """The authors' chunks: ids and questions are right, and reference answers those of other questions."""
    shifted = [
        Answer(id=question.id, text=question.id, asked=question.text, expected=QUESTIONS[i - 1].target)
        for i, question in enumerate(QUESTIONS)
    ]
    found = join(QUESTIONS, shifted)
    assert found.texts == {"a": "a", "b": "b", "c": "c"}
    assert found.wrong_reference == ["a", "b", "c"]
    moved = [Answer(id=q.id, text="x", asked=QUESTIONS[i - 1].text) for i, q in enumerate(QUESTIONS)]
    found = join(QUESTIONS, moved)
    assert (found.texts, found.misplaced) == ({}, ["a", "b", "c"])


def test_one_published_id_for_several_questions():
    questions = [Question(id=f"i_{n}", published_id="i", text=text, cluster="i") for n, text in enumerate(["p", "q"])]
    given = [Answer(id="i", text="2", asked="<image>\nq"), Answer(id="i", text="1", asked="p")]
    assert join(questions, given).texts == {"i_0": "1", "i_1": "2"}
    assert join(questions, [Answer(id="i", text="1")]).foreign == ["i"]  # nobody knows for which question


def test_forms_of_files(tmp_path):
    ours = [{"id": "a", "text": "1", "error": None}, {"id": 7, "text": "", "error": "no such file"}]
    assert read_answers(written(tmp_path / "a.jsonl", ours)) == [
        Answer(id="a", text="1"),
        Answer(id="7", text=None, error="no such file"),
    ]
    llava = [{"question_id": 3, "prompt": "a?", "text": "1", "metadata": {}}]
    assert read_answers(written(tmp_path / "b.jsonl", llava)) == [Answer(id="3", text="1", asked="a?")]
    theirs = [{"id": "a", "question": "a?", "answer": "x", "pred": "1"}]
    assert read_answers(written(tmp_path / "c.jsonl", theirs)) == [Answer(id="a", text="1", asked="a?", expected="x")]
    chat = [{"video_name": "v", "Q": "q", "A": "a", "pred": "1"}, {"video_name": "v", "Q": "r", "A": "b", "pred": "2"}]
    assert [answer.id for answer in read_answers(written(tmp_path / "d.json", chat, False))] == ["v_0", "v_1"]
    pair = [{"video_name": "v", "Q1": "q", "Q2": "r", "A": "a", "pred1": "1", "pred2": "2"}]
    found = read_answers(written(tmp_path / "e.json", pair, False))
    assert [(answer.id, answer.text, answer.asked) for answer in found] == [("v_0_1", "1", "q"), ("v_0_2", "2", "r")]


@pytest.mark.parametrize("row", [{"x": 1}, {"id": "a"}, {"id": "a", "text": 3}, {"video_name": "v"}])
def test_records_that_are_none(tmp_path, row):
    with pytest.raises(ValueError, match=r"record 1: expected 'id' or 'question_id'"):
        read_answers(written(tmp_path / "a.jsonl", [row]))


def test_answers_of_other_data_and_too_few_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of its records belongs .* \(3 missing, 1 foreign\)"):
        join(QUESTIONS, [Answer(id="x", text="1")]).require(3, 1.0, tmp_path)
    found = join(QUESTIONS, [Answer(id="a", text="1"), Answer(id="b", text=None, error="no such file")])
    with pytest.raises(ValueError, match=r"2 of 3 questions .* 1 failed, 1 missing.*such as c, b; .*no such file"):
        found.require(3, 0.5, tmp_path)
    found.require(3, 0.67, tmp_path)


def test_what_a_job_is_asked(tmp_path):
    """Placeholders that a question has in its text are text; links out of the data are named by their files."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "videos").symlink_to(tmp_path / "disk")
    questions = [
        Question(id="b", text="what?", media=(("video", "videos/a.mp4"),), cluster="a"),
        Question(id="a", text="is <image> here?", media=(("video", "videos/a.mp4"),), cluster="a"),
    ]
    files = Files(tmp_path / "data", {})
    assert media_root(files, questions) is None
    path = write_questions(tmp_path / "out", TASKS["msvd_qa"], files, questions, {}, None)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    clip = str(tmp_path / "disk" / "a.mp4")
    assert first["conversation"][0]["content"] == [
        {"type": "video", "video": clip},
        {"type": "text", "text": "is <image> here?"},
    ]
    assert second == {"id": "b", "video": [clip], "prompt": "what?"}
    path = write_questions(tmp_path / "two", TASKS["msvd_qa"], files, questions, {}, tmp_path / "data")
    assert json.loads(path.read_text().splitlines()[1])["video"] == ["videos/a.mp4"]
