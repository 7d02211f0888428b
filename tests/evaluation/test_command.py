"""`videollava eval` with the tiny model on the drawn world: answered, killed and resumed, scored, compared, refused."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from tests.evaluation.fake_judge import FakeJudge, strict
from tests.evaluation.published import shuffle
from tests.faults.batch import committed
from tests.faults.commands import await_no_process, start_command
from videollava_jax.assets.world import FPS, encode_mp4, sample_clip
from videollava_jax.cli import main
from videollava_jax.evaluation.tasks import TASKS


def run(*arguments):
    return main(["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of MSVD-QA's form, and the tiny model's answers to it."""
    root = tmp_path_factory.mktemp("eval")
    assert run("world", "msvd_qa", "--data", root / "data", "--media", 6) == 0
    assert run("answer", "msvd_qa", "--data", root / "data", "-o", root / "out", "--as", "hf") == 0
    return root


def scored(out, data, *more):
    assert run("score", "msvd_qa", "--data", data, "--answers", out, *more) == 0
    return json.loads((out / "report.json").read_text())


def test_answers_are_scored(place, capsys):
    report = scored(place / "out", place / "data")
    said = capsys.readouterr().out
    assert f"* exact                    {report['score']:6.2f} %" in said
    assert "judge_accuracy           not scored here   paper: 70.7" in said
    assert report["score"] >= 90
    assert report["settings"]["asked"] == {"as": "hf", "limit": None}
    job = report["settings"]["job"]
    assert (job["frames"], job["template"], job["resize"]) == ("Uniform(num_frames=8)", "hf", "pil")
    assert len(job["model's weights"]) == 32
    first = {name: (place / "out" / name).read_bytes() for name in ("report.json", "records.jsonl", "page.html")}
    scored(place / "out", place / "data")
    assert first == {name: (place / "out" / name).read_bytes() for name in first}


def test_a_kill_in_the_middle_changes_nothing(place, tmp_path):
    out, mark = tmp_path / "out", f"evalkill-{os.getpid()}"
    line = ["eval", "answer", "msvd_qa", "--data", str(place / "data"), "-o", str(out), "--as", "hf", "--max-rows", "2"]
    process = start_command(*line, mark=mark)
    while process.poll() is None and not committed(out / "answers.jsonl"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert await_no_process(mark, 10)
    assert main(line) == 0
    assert (out / "answers.jsonl").read_bytes() == (place / "out" / "answers.jsonl").read_bytes()
    scored(place / "out", place / "data")
    scored(out, place / "data")
    assert (out / "report.json").read_bytes() == (place / "out" / "report.json").read_bytes()


def test_data_in_another_order_have_the_same_score(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "out", tmp_path / "out")
    shuffle(tmp_path / "data")
    one, two = scored(place / "out", place / "data"), scored(tmp_path / "out", tmp_path / "data")
    for report in (one, two):
        report["data"].pop("files")
    assert one == two


def test_answers_of_other_data_are_refused(place, tmp_path, capsys):
    assert run("world", "msvd_qa", "--data", tmp_path / "data", "--media", 6, "--seed", 50) == 0
    assert run("score", "msvd_qa", "--data", tmp_path / "data", "--answers", place / "out") == 1
    assert "answers to other data than" in capsys.readouterr().err
    assert run("score", "tgif_qa", "--data", place / "data", "--answers", place / "out") == 1
    assert "answers to msvd_qa, expected those to tgif_qa" in capsys.readouterr().err
    assert run("answer", "msvd_qa", "--data", tmp_path / "data", "-o", place / "out", "--as", "hf") == 1
    assert "expected the run that was begun there, but its data is not the same now" in capsys.readouterr().err
    assert run("answer", "msvd_qa", "--data", place / "data", "-o", place / "out") == 1
    assert "its asked is not the same now" in capsys.readouterr().err


def test_missing_videos_fail_the_run_unless_they_may_miss(place, tmp_path, capsys):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "videos" / "clip0.mp4").unlink()
    line = ["answer", "msvd_qa", "--data", tmp_path / "data", "-o", tmp_path / "out", "--as", "hf"]
    assert run(*line) == 1
    assert "1 media of 4 of 21 questions are missing, more than --max-missing 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*line, "--max-missing", "0.2") == 0
    assert run("score", "msvd_qa", "--data", tmp_path / "data", "--answers", tmp_path / "out") == 1
    assert "4 of 21 questions have no answer" in capsys.readouterr().err
    report = scored(tmp_path / "out", tmp_path / "data", "--max-missing", "0.2")
    assert (report["counts"]["failed"], report["counts"]["answered"]) == (4, 17)
    assert report["score"] < report["of_answered_only"]["exact"]


def test_videos_on_another_disk(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "videos").rename(tmp_path / "disk")
    (tmp_path / "data" / "videos").symlink_to(tmp_path / "disk")
    line = ["answer", "msvd_qa", "--data", tmp_path / "data", "-o", tmp_path / "out", "--as", "hf", "--limit", 2]
    assert run(*line) == 0
    report = scored(tmp_path / "out", tmp_path / "data")
    assert (report["counts"]["clusters"], report["counts"]["failed"]) == (2, 0)


def test_mvbench_asks_about_parts_of_whole_videos(tmp_path, capsys):
    """Two clips in one video: the rows ask about the second, by its times, as the first release has them."""
    place = tmp_path / "video" / "star" / "Charades_v1_480"
    place.mkdir(parents=True)
    rows = []
    for seed in range(700_000, 700_006, 2):
        first, second = sample_clip(seed), sample_clip(seed + 1)
        (place / f"{seed}.mp4").write_bytes(encode_mp4(np.concatenate([first.frames, second.frames])))
        part = {"start": len(first.frames) / FPS, "end": 99.0}
        for question in second.questions:
            choice = {"candidates": [question.answer, "xyzzy"], "answer": question.answer}
            rows.append({"video": f"{seed}.mp4", "question": question.text, **choice, **part})
    (tmp_path / "action_sequence.json").write_text(json.dumps(rows))
    line = ["answer", "mvbench", "--data", tmp_path, "--as", "hf"]
    assert run(*line, "-o", tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    assert all(line["options"] == part for line in lines)
    # The model knows the drawn world, and no letters: it is asked the bare questions.
    videos = [f"video/star/Charades_v1_480/{row['video']}" for row in rows]
    bare = [
        {"id": str(i), "video": video, "prompt": row["question"], "options": {"start": row["start"]}}
        for i, (row, video) in enumerate(zip(rows, videos, strict=True))
    ]
    (tmp_path / "bare.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in bare))
    assert main(["batch", f"{tmp_path}/bare.jsonl", f"{tmp_path}/answers.jsonl", "--media-root", f"{tmp_path}"]) == 0
    answers = [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    right = [text == row["answer"] for text, row in zip(answers, rows, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    rows[0]["end"] = rows[0]["start"]
    (tmp_path / "action_sequence.json").write_text(json.dumps(rows))
    assert run(*line, "-o", tmp_path / "other") == 1
    assert (
        "action_sequence.json, entry 1: expected seconds under 'start' and, after that, 'end'"
        in capsys.readouterr().err
    )


def test_answers_of_the_authors_program_with_a_judge(place, tmp_path, monkeypatch, capsys):
    _, questions = TASKS["msvd_qa"].questions(place / "data")
    rows = [{"id": q.id, "question": q.text, "answer": q.target, "pred": q.target} for q in questions]
    (tmp_path / "merge.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("JUDGE_KEY", "k1")
    said = "Correct answer: {answer}\nPredicted answer: {pred}\nby somebody else"
    (tmp_path / "prompt.json").write_text(json.dumps([{"role": "user", "content": said}]))
    with FakeJudge(strict).running() as fake:
        line = ["score", "msvd_qa", "--data", place / "data", "--answers", tmp_path / "merge.jsonl", "--no-page"]
        line += ["--judge-url", fake.url, "--judge-model", "m", "--judge-key-variable", "JUDGE_KEY", "--json"]
        assert run(*line) == 0
        assert run(*line) == 0
        assert len(fake.requests) <= len(questions)
        assert run(*line, "--judge-prompt", f"match={tmp_path / 'prompt.json'}") == 0
        assert fake.requests[-1]["messages"][0]["content"].endswith("by somebody else")
    assert fake.headers[0]["Authorization"] == "Bearer k1"
    one, two, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert one == two
    assert other["judge"]["prompts"]["match"]["source"] == "prompt.json"
    assert other["judge"]["prompts"]["match"]["digest"] != one["judge"]["prompts"]["match"]["digest"]
    assert (one["metric"], one["score"]) == ("judge_accuracy", 100)
    assert (tmp_path / "merge-report" / "judge.db").is_file()


def test_two_runs_are_compared_on_a_page(place, tmp_path, capsys):
    scored(place / "out", place / "data")
    line = ["compare", place / "out", place / "out", "--data", place / "data", "-o", tmp_path]
    assert run(*line) == 0
    assert "B - A +0.00" in capsys.readouterr().out
    assert "Changed answers" in (tmp_path / "comparison.html").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["answers_that_differ"] == 0


def test_the_list(capsys):
    assert run("list") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TASKS)
    assert run("list", "gqa", "--json") == 0
    assert json.loads(capsys.readouterr().out)["paper"] == {"accuracy": 60.3}
    assert run("list", "gqa") == 0
    assert "questions1.2.zip of GQA" in capsys.readouterr().out
    assert run("list", "gpa") == 1
    assert "unknown task 'gpa'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge-model", "m"], "expected --judge-url"),
        (["--judge-url", "http://localhost:1"], "expected --judge-model"),
        (["--judge-url", "x", "--judge-model", "m"], "expected one such as http"),
        (
            ["--judge-url", "http://x", "--judge-model", "m", "--judge-prompt", "detail=a.json"],
            "has match, not 'detail'",
        ),
        (["--judge-url", "http://x", "--judge-model", "m", "--judge-prompt", "none.json"], "none.json"),
    ],
)
def test_judges_that_make_no_sense(place, capsys, more, message):
    assert run("score", "msvd_qa", "--data", place / "data", "--answers", place / "out", *more) == 1
    assert message in capsys.readouterr().err


def test_what_is_not_there(place, tmp_path, capsys):
    assert run("score", "msvd_qa", "--data", tmp_path / "no", "--answers", place / "out") == 1
    assert "no such directory; expected the data of MSVD-QA" in capsys.readouterr().err
    assert run("score", "msvd_qa", "--data", place / "data", "--answers", tmp_path) == 1
    assert "expected answers.jsonl" in capsys.readouterr().err
    assert run("score", "msvd_qa", "--data", place / "data", "--answers", tmp_path / "no") == 1
    assert "no such file or directory; expected answers" in capsys.readouterr().err
    assert run("compare", tmp_path, tmp_path) == 1
    assert "expected report.json" in capsys.readouterr().err
