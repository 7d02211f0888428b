"""`videollava batch` with the tiny model: OpenAI's form, resuming, signals, messages."""

import argparse
import json
import os
import signal
import time

import pytest

from tests.faults.batch import committed
from tests.faults.commands import await_no_process, start_command, write_model_job
from videollava_jax.assets import MEDIA
from videollava_jax.cli import main
from videollava_jax.cli.common import size as parsed_size


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_small_openai_job_with_the_tiny_model(tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_model_job(source, MEDIA)
    assert main(["batch", "-i", str(source), "-o", str(output), "-m", "tiny", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    records = read(output)
    assert [record["custom_id"] for record in records] == [f"q{i}" for i in range(24)]
    for i, record in enumerate(records):
        if i // 3 % 3 == 2:
            assert record["response"]["status_code"] == 400
            assert record["error"]["code"] == "not_found"
        else:
            body = record["response"]["body"]
            assert body["choices"][0]["finish_reason"] == "stop"
            assert body["usage"]["completion_tokens"] == 2
    answers = [r["response"]["body"]["choices"][0]["message"]["content"] for r in records[:3]]
    assert answers == ["up", "triangle", "yes"]
    assert (summary["done"], summary["answered"], summary["errors"]) == (24, 18, {"not_found": 6})
    assert summary["videos"] == 2
    assert main(["batch", str(source), str(output)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["batch", str(source), str(output), "--max-new-tokens", "3"]) == 1
    assert "max_new_tokens: 128 then, 3 now" in capsys.readouterr().err
    assert main(["batch", str(source), str(output), "--suppress-tokens", "3"]) == 1
    assert "suppress_tokens: nothing then, (3,) now" in capsys.readouterr().err


def test_sigterm_says_how_to_go_on(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_model_job(source, MEDIA)
    mark = f"sigterm-{os.getpid()}"
    process = start_command("batch", str(source), str(output), mark=mark)
    ledger = tmp_path / "out.jsonl.partial" / "media"
    while not ledger.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 143, said
    assert f"{len(committed(output))} of 24 lines are done and kept; the same command goes on from there" in said
    assert await_no_process(mark, 10)
    assert not output.exists()


def test_what_went_wrong_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["batch", "none.jsonl", "out.jsonl"]) == 1
    captured = capsys.readouterr()
    assert "none.jsonl" in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * 2**30), ("1.5 kb", 1500), ("7", 7), ("2M", None), ("500MB", 500_000_000)]
)
def test_sizes(text, size):
    if size is None:
        with pytest.raises(argparse.ArgumentTypeError):
            parsed_size(text)
    else:
        assert parsed_size(text) == size


@pytest.mark.parametrize("size", ["0", "x", "-1", "1XB", "1e400"])
def test_sizes_that_are_none(size, capsys):
    with pytest.raises(SystemExit):
        main(["batch", "a", "b", "--memory", size])
    assert "expected a size such as 8GiB" in capsys.readouterr().err
