"""Jobs from input to output with runners that need no model: resuming, errors, signals."""

import itertools
import json
import os
import signal
import time

import pytest

from tests.faults.batch import FakeRunner, asked, committed, run_job, write_job
from tests.faults.children import Child, Died
from videollava_jax.batch.job_files import LedgerError
from videollava_jax.batch.output import JobMismatch
from videollava_jax.batch.requests import Defaults
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.batch.summary import TooManyErrors
from videollava_jax.engine import Result


class Echo:
    """A runner that answers with the prompt, or with an error for the prompts that `fails` selects."""

    def __init__(self, fails=lambda text: False):
        self.fails, self.seen = fails, []

    def run(self, requests):
        for request in requests:
            text = request.conversation[-1]["content"][-1]["text"]
            self.seen.append(text)
            if self.fails(text):
                yield Result(id=request.id, finish_reason="error", error=f"no {text}", cause="decode_failed")
            else:
                yield Result(id=request.id, text=text, finish_reason="stop")


def write_questions(path, count, **more):
    path.write_text("".join(json.dumps({"id": i, "prompt": f"question {i}", **more}) + "\n" for i in range(count)))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(place, runner, source=None, **options):
    return run_batch(source or place / "in.jsonl", place / "out.jsonl", lambda: runner, BatchOptions(**options))


def test_one_record_for_each_line_in_order(tmp_path):
    write_job(tmp_path / "in.jsonl", 25)
    summary = run(tmp_path, FakeRunner(tmp_path / "log", 3), max_error_rate=1)
    records = read(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == [None if i % 5 == 3 else f"q{i}" for i in range(25)]
    assert records[3]["error"].startswith("not JSON")
    assert records[3]["line"] == 4
    assert (records[2]["cause"], records[2]["error"]) == ("not_found", "missing.mp4: no such file or directory")
    assert summary.done == summary.lines == 25
    assert summary.errors["not_found"] == summary.errors["invalid_request"] == 5
    assert "25 of 25 lines done" in str(summary)
    assert "5 not_found" in str(summary)


def test_a_finished_output_is_left_alone(tmp_path):
    write_questions(tmp_path / "in.jsonl", 3)
    run(tmp_path, Echo())
    before = (tmp_path / "out.jsonl").stat()
    summary = run_batch(tmp_path / "in.jsonl", tmp_path / "out.jsonl", pytest.fail, BatchOptions())
    assert str(summary) == "nothing to do: all 3 lines are done"
    after = (tmp_path / "out.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(JobMismatch, match="max_new_tokens: 128 then, 5 now"):
        run(tmp_path, Echo(), defaults=Defaults(options={"max_new_tokens": 5}))
    write_questions(tmp_path / "in.jsonl", 4)
    with pytest.raises(JobMismatch, match="SHA-256"):
        run(tmp_path, Echo())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.job.json"]


def test_what_failed_in_the_runner_goes_on_from_there(tmp_path):
    write_questions(tmp_path / "in.jsonl", 10)

    class Breaks(Echo):
        def run(self, requests):
            for i, result in enumerate(super().run(requests)):
                if i == 6:
                    raise MemoryError("no more")
                yield result

    with pytest.raises(MemoryError):
        run(tmp_path, Breaks())
    assert committed(tmp_path / "out.jsonl") == set(range(6))
    assert not (tmp_path / "out.jsonl").exists()
    rest = Echo()
    assert run(tmp_path, rest).before == 6
    assert rest.seen == [f"question {i}" for i in range(6, 10)]
    assert [record["text"] for record in read(tmp_path / "out.jsonl")] == [f"question {i}" for i in range(10)]


@pytest.mark.parametrize(
    ("results", "message"),
    [(["0"], "1 requests came back without a result"), (["0", "0"], "has its result already"), (["7"], "not asked")],
)
def test_a_runner_that_miscounts_is_found_out(tmp_path, results, message):
    write_questions(tmp_path / "in.jsonl", 2)

    class Wrong:
        def run(self, requests):
            list(requests)
            yield from (Result(id=name, finish_reason="stop") for name in results)

    with pytest.raises(RuntimeError, match=message):
        run(tmp_path, Wrong())


def test_a_hopeless_run_ends_and_is_mended(tmp_path):
    write_questions(tmp_path / "in.jsonl", 50)
    broken = Echo(fails=lambda text: True)
    with pytest.raises(TooManyErrors, match=r"20 of 20 lines have failed \(20 decode_failed\).*--retry-errors"):
        run(tmp_path, broken)
    assert len(broken.seen) == 20
    mended = Echo(fails=lambda text: text.endswith("7"))
    summary = run(tmp_path, mended, retry_errors=True, keep_ledger=True)
    assert (summary.before, summary.answered, summary.errors.total()) == (0, 45, 5)
    assert (tmp_path / "out.jsonl.partial").exists()
    again = Echo()
    assert run(tmp_path, again, retry_errors=True).before == 45
    assert len(again.seen) == 5
    assert all(record["error"] is None for record in read(tmp_path / "out.jsonl"))


def test_errors_below_the_rate_are_records(tmp_path):
    write_questions(tmp_path / "in.jsonl", 40)
    summary = run(tmp_path, Echo(fails=lambda text: int(text.split()[1]) % 2), max_error_rate=0.5)
    assert summary.errors == {"decode_failed": 20}


class Window(Echo):
    """A runner that takes all requests before it answers the first, like an engine with a large window."""

    def run(self, requests):
        return super().run(list(requests))


def test_lines_that_fail_before_the_first_answer_end_no_run(tmp_path):
    """Lines whose media are missing fail at once, so the error rate must not count only finished lines."""
    lines = [{"id": i, "prompt": f"question {i}", **({"video": f"none{i}"} if i % 2 else {})} for i in range(100)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run(tmp_path, Window(fails=lambda text: text == "question 0"))
    assert summary.errors == {"not_found": 50, "decode_failed": 1}


def test_errors_that_come_before_the_answers_end_no_run(tmp_path):
    """The engine returns errors of media early, before any answer; the rate must not count only finished lines."""
    write_questions(tmp_path / "in.jsonl", 100)

    class ErrorsFirst(Echo):
        def run(self, requests):
            results = list(super().run(requests))
            yield from sorted(results, key=lambda result: result.error is None)

    summary = run(tmp_path, ErrorsFirst(fails=lambda text: int(text.split()[1]) % 2))
    assert summary.errors == {"decode_failed": 50}


def test_a_run_without_media_ends(tmp_path):
    lines = [{"id": i, "prompt": "?", "video": f"none{i}"} for i in range(100)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TooManyErrors, match=r"20 of 20 lines have failed \(20 not_found\).*the last: none19: no such"):
        run(tmp_path, Window())


def test_many_questions_about_one_bad_file_end_no_run(tmp_path):
    (tmp_path / "a.mp4").touch()
    write_questions(tmp_path / "in.jsonl", 50, video="a.mp4")
    summary = run(tmp_path, Echo(fails=lambda text: int(text.split()[1]) < 40), media_root=tmp_path)
    assert summary.errors == {"decode_failed": 40}


def test_questions_about_one_medium_go_to_the_runner_together(tmp_path):
    lines = [{"id": i, "prompt": f"question {i}", "video": f"{i % 40}.mp4"} for i in range(120)]
    for i in range(40):
        (tmp_path / f"{i}.mp4").touch()
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    echo = Echo()
    run(tmp_path, echo, media_root=tmp_path)
    assert echo.seen == [f"question {i + 40 * j}" for i in range(40) for j in range(3)]
    assert [record["text"] for record in read(tmp_path / "out.jsonl")] == [f"question {i}" for i in range(120)]


# ── errors tried again ──


def test_a_retry_that_was_interrupted_is_gone_on_with(tmp_path):
    """A retry that was interrupted is resumed without --retry-errors: no result is lost or computed again."""
    write_questions(tmp_path / "in.jsonl", 10)
    run(tmp_path, Echo(fails=lambda text: int(text.split()[1]) % 2), keep_ledger=True)
    before = (tmp_path / "out.jsonl").read_text()

    class Breaks(Echo):
        def run(self, requests):
            yield from itertools.islice(super().run(requests), 2)
            raise MemoryError("no more")

    with pytest.raises(MemoryError):
        run(tmp_path, Breaks(), retry_errors=True)
    assert (tmp_path / "out.jsonl").read_text() == before
    rest = Echo()
    assert run(tmp_path, rest).before == 7
    assert rest.seen == [f"question {i}" for i in (5, 7, 9)]
    assert [record["text"] for record in read(tmp_path / "out.jsonl")] == [f"question {i}" for i in range(10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.job.json"]
    assert str(run(tmp_path, None)).startswith("nothing to do")


def test_a_kept_ledger_changes_no_finished_output(tmp_path):
    write_questions(tmp_path / "in.jsonl", 3)
    run(tmp_path, Echo(), keep_ledger=True)
    before = (tmp_path / "out.jsonl").stat()
    assert str(run(tmp_path, None, keep_ledger=True)) == "nothing to do: all 3 lines are done"
    after = (tmp_path / "out.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {path.name for path in (tmp_path / "out.jsonl.partial").iterdir()} == {"lock", "ledger.db"}


def test_a_retry_needs_the_ledger(tmp_path):
    write_questions(tmp_path / "in.jsonl", 3)
    run(tmp_path, Echo(fails=lambda text: True))
    with pytest.raises(ValueError, match="--keep-ledger would have kept"):
        run(tmp_path, None, retry_errors=True)


def test_refused_before_anything_runs(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "prompt": "?"}\n{"id": "a", "prompt": "!"}\n')
    with pytest.raises(ValueError, match="'a' on lines 1, 2"):
        run(tmp_path, None)
    with pytest.raises(ValueError, match="take the place of the input"):
        run_batch(source, source, pytest.fail, BatchOptions())
    with pytest.raises(LedgerError, match="no such directory"):
        run_batch(source, tmp_path / "no" / "out", pytest.fail, BatchOptions())
    with pytest.raises(FileNotFoundError):
        run_batch(tmp_path / "none", tmp_path / "out", pytest.fail, BatchOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_second_run_is_refused_while_the_first_is_at_work(tmp_path):
    write_job(tmp_path / "input.jsonl")
    child = Child(run_job, tmp_path, 0, 0.1)
    try:
        while not committed(tmp_path / "output.jsonl"):
            time.sleep(0.02)
        with pytest.raises(LedgerError, match="another run is at work"):
            run_batch(tmp_path / "input.jsonl", tmp_path / "output.jsonl", pytest.fail, BatchOptions())
    finally:
        child.kill()
        child.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_between_two_results(tmp_path, number):
    write_job(tmp_path / "input.jsonl")
    child = Child(_told_when_stopped, tmp_path)
    while not committed(tmp_path / "output.jsonl"):
        time.sleep(0.02)
    os.kill(child.pid, number)
    said, status = child.result()
    done = committed(tmp_path / "output.jsonl")
    assert status == number
    assert f"stopped by {signal.Signals(number).name}: {len(done)} of 60 lines are done and kept" in said
    asked(tmp_path)
    assert run_job(tmp_path, 1).startswith("60 of 60")
    assert not asked(tmp_path) & done


def _told_when_stopped(place):
    from videollava_jax.batch.runner import Stopped

    try:
        return run_job(place, 0, 0.1), 0
    except Stopped as stopped:
        return str(stopped), stopped.signal


def test_a_runner_that_is_busy_is_not_waited_for(tmp_path):
    """A signal comes during something long, such as a compilation."""
    write_job(tmp_path / "input.jsonl")
    child = Child(_busy, tmp_path)
    while len(committed(tmp_path / "output.jsonl")) < 27:  # 24 lines are bad, and 3 were answered
        time.sleep(0.02)
    started = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    with pytest.raises(Died, match=r"status 143: videollava: stopped by SIGTERM: 27 of 60 lines are done and kept"):
        child.receive(60)
    child.close()
    assert time.monotonic() - started < 20
    assert run_job(tmp_path, 1).startswith("60 of 60")


def _busy(place):
    class Busy(FakeRunner):
        def run(self, requests):
            requests = list(requests)
            yield from itertools.islice(super().run(requests), 3)
            time.sleep(60)

    runner = Busy(place / "asked", 0)
    options = BatchOptions(max_error_rate=1, grace=0.5)
    run_batch(place / "input.jsonl", place / "output.jsonl", lambda: runner, options)


def test_sources_are_named_as_the_line_names_them(tmp_path):
    class Names:
        def run(self, requests):
            for request in requests:
                source = request.conversation[0]["content"][0]["image"]
                yield Result(id=request.id, finish_reason="error", error=f"{source}: bad", cause="not_media")

    (tmp_path / "a.png").write_bytes(b"x")
    lines = [
        {"id": 1, "image": "a.png", "prompt": "?"},
        {"id": 2, "image": "data:image/png;base64,AAAA", "prompt": "?"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(tmp_path, Names(), media_root=tmp_path)
    assert [r["error"] for r in read(tmp_path / "out.jsonl")] == ["a.png: bad", "data:image/png;base64,AAAA: bad"]


# ── kills ──


def test_killed_at_random_moments_and_resumed():
    from tests.faults.batch import kill

    kills, jobs = kill(30, seed=1)
    assert kills.violations == jobs.violations == []
    assert kills.outcomes["killed between"] >= 5
    assert jobs.outcomes["as undisturbed"] >= 3


def test_killed_while_errors_are_tried_again():
    from tests.faults.batch import kill_retries

    kills = kill_retries(12, seed=1)
    assert kills.violations == []
    assert kills.outcomes["between"] >= 5


def test_the_kills_would_notice_work_done_again(tmp_path):
    """If the ledger is deleted, every line is answered again, and the logs show it."""
    write_job(tmp_path / "input.jsonl")
    child = Child(run_job, tmp_path, 0, 0.05)
    while len(before := committed(tmp_path / "output.jsonl")) < 5:
        time.sleep(0.02)
    child.kill()
    child.close()
    asked(tmp_path)
    (tmp_path / "output.jsonl.partial" / "ledger.db").unlink()
    (tmp_path / "output.jsonl.partial" / "ledger.db-wal").unlink()
    run_job(tmp_path, 0)
    assert asked(tmp_path) & before
