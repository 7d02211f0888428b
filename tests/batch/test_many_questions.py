"""Many questions about many clips in a random order: `benchmarks/batch.py` on a small scale."""

import re
from collections import Counter

import numpy as np
import pytest

import videollava_jax.batch.runner as runner
from benchmarks.batch import Bench, accuracy_table, write_job
from videollava_jax.generation.text import answer_text

CLIPS, QUESTIONS, WINDOW = 12, 5, 15
ONCE = Counter({f"{clip}.mp4": 1 for clip in range(CLIPS)})


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_model, tiny_processor):
    """The lines of a job, and the bench that answers it."""
    place = tmp_path_factory.mktemp("job")
    asked = write_job(place, CLIPS, QUESTIONS, seed=0)
    bench = Bench(place, tiny_model, tiny_processor, WINDOW)
    yield asked, bench
    bench.reader.close()


@pytest.fixture(scope="module")
def answered(job):
    """Runs `run_batch` with an engine that sees a quarter of the job at a time: (answers, counts)."""
    answers, counts, _ = job[1].batch(0)
    return answers, counts


def test_each_clip_is_decoded_and_encoded_once(answered):
    assert Counter(answered[1].decoded) == ONCE
    assert answered[1].encoded == CLIPS


def test_the_counts_notice_clips_that_are_read_again(job, monkeypatch):
    """Without grouping, a window does not hold all questions about a clip."""
    monkeypatch.setattr(runner, "grouped_by_media", lambda lines: lines)
    _, counts, _ = job[1].batch(1)
    assert len(counts.decoded) > CLIPS
    assert counts.encoded > CLIPS


def test_answers_are_those_of_the_engine_and_of_generate(job, answered, tiny_model, tiny_processor):
    asked, bench = job
    by_engine, counts, _ = bench.threads(0)
    assert Counter(counts.decoded) == ONCE
    assert answered[0] == by_engine
    names = list(asked)
    generated = []
    for part in np.array_split(np.array(names), 3):
        prompts = [f"USER: <video>\n{asked[name].question.text} ASSISTANT:" for name in part]
        videos = [str(bench.place / "media" / f"{asked[name].clip}.mp4") for name in part]
        inputs = tiny_processor(text=prompts, videos=videos, padding=True)
        ids = tiny_model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        generated += [answer_text(tiny_processor.tokenizer, tuple(row)) for row in np.asarray(ids).tolist()]
    assert [answered[0][name] for name in names] == generated


def test_right_answers_are_counted_by_kind(job):
    asked, _ = job

    def rows(answers):
        lines = accuracy_table(asked, answers).splitlines()
        return {re.split("  +", line)[0]: re.split("  +", line)[1:] for line in lines}

    right = {name: line.question.answer for name, line in asked.items()}
    assert rows(right)["all"] == ["298 of 300", *["12 of 12, 100.0%"] * 2, "43 of 43, 100.0%"]
    wrong = next(name for name, line in asked.items() if line.number == 0 and line.question.kind == "order")
    assert rows(right | {wrong: "no"})["order"] == ["43 of 43", *["1 of 2, 50.0%"] * 2, "3 of 4, 75.0%"]
    assert rows(right | {wrong: "no"})["all"] == ["298 of 300", *["11 of 12, 91.7%"] * 2, "42 of 43, 97.7%"]
