"""What a job's input may be: a file or several, as they are or compressed."""

import argparse
import gzip
import itertools
import json
import sys
from pathlib import Path

import pytest

from tests.batch.test_runner import Echo, read, run
from videollava_jax.batch.identity import job_identity
from videollava_jax.batch.lines import count_lines, read_lines, recognise
from videollava_jax.batch.output import JobMismatch
from videollava_jax.batch.requests import Defaults
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.cli.batch import _job_files

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSONL = "".join(json.dumps({"id": f"q{i}", "prompt": f"question {i}"}) + "\n" for i in range(2000)).encode()
CSV = b'id,prompt\na,"two\nlines"\nb,?\n'


def write(path, first, count, key="id"):
    path.write_text(
        "".join(json.dumps({key: i, "prompt": f"question {i}"}) + "\n" for i in range(first, first + count))
    )
    return path


# ── compressed ──


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
@pytest.mark.parametrize(
    ("name", "content", "form"),
    [("a.jsonl", JSONL, "jsonl"), ("a.CSV", CSV, "csv"), ("a", JSONL, "jsonl")],
)
def test_compressed_lines_are_the_same_lines(tmp_path, compress, name, content, form):
    """The content tells; two members, as appending writes them, are one file; and it is the same job."""
    plain = tmp_path / name
    plain.write_bytes(content)
    for suffix in (".gz", ".ZST", ".zstd", ""):
        packed = tmp_path / "packed" / f"{name}{suffix}"
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(compress(content[:15]) + compress(content[15:]))
        if suffix or form == "jsonl":
            assert recognise([packed]) == form
        assert list(read_lines([packed], form)) == list(read_lines([plain], form))
        assert job_identity([packed], form, Defaults()) == job_identity([plain], form, Defaults())


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-3], lambda b: b[:200] + b"\xff" * 99])
def test_what_is_cut_short_or_damaged_is_refused_before_anything_runs(tmp_path, compress, damage):
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(damage(compress(JSONL)))
    with pytest.raises(ValueError, match=r"in.jsonl.gz: compressed, and damaged or cut short \("):
        run_batch(source, tmp_path / "out.jsonl", pytest.fail, BatchOptions())
    assert not (tmp_path / "out.jsonl").exists()


def test_without_zstandard_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compression" if sys.version_info >= (3, 14) else "backports", None)
    (tmp_path / "a.jsonl").write_bytes(zstd.compress(JSONL))
    with pytest.raises(ValueError, match=r"a.jsonl: compressed with Zstandard.*pip install -e '\.\[zstd\]'"):
        recognise([tmp_path / "a.jsonl"])


# ── several ──


def test_several_files_are_one_job_that_is_resumed(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", first, 5) for name, first in (("b", 0), ("a", 5), ("c", 10))]
    files.insert(1, tmp_path / "none.jsonl")
    files[1].touch()
    files[2].write_bytes(gzip.compress(files[2].read_bytes()))

    class Breaks(Echo):
        def run(self, requests):
            yield from itertools.islice(super().run(requests), 7)
            raise MemoryError("no more")

    with pytest.raises(MemoryError):
        run(tmp_path, Breaks(), files)
    for others in (files[::-1], files[:3], [*files, write(tmp_path / "d.jsonl", 20, 1)]):
        with pytest.raises(JobMismatch, match="SHA-256"):
            run(tmp_path, Echo(), others)
    rest = Echo()
    assert run(tmp_path, rest, files).before == 7
    assert rest.seen == [f"question {i}" for i in range(7, 15)]
    assert [record["text"] for record in read(tmp_path / "out.jsonl")] == [f"question {i}" for i in range(15)]
    assert str(run(tmp_path, None, files)).startswith("nothing to do")


def test_ids_differ_in_all_files(tmp_path):
    a, b = write(tmp_path / "a.jsonl", 0, 3), write(tmp_path / "b.jsonl", 2, 2)
    with pytest.raises(ValueError, match=r"1 come more than once: '2' on line 3 of .*a.jsonl, line 1 of .*b.jsonl$"):
        count_lines(read_lines([a, b], "jsonl"), "jsonl")
    with pytest.raises(ValueError, match=r"3 come more than once: '0' on line 1 of .*a.jsonl, line 1 of .*a.jsonl"):
        count_lines(read_lines([a, a], "jsonl"), "jsonl")


def test_records_name_the_file_of_a_line_without_an_id(tmp_path):
    files = [write(tmp_path / "a.jsonl", 0, 2), tmp_path / "b.jsonl"]
    files[1].write_text('{"id": 9, "prompt": "?"}\n{"prompt": "?"}\n')
    run(tmp_path, Echo(), files)
    (record,) = (record for record in read(tmp_path / "out.jsonl") if record["error"])
    assert (record["file"], record["line"]) == (str(files[1]), 2)
    (tmp_path / "out.jsonl").unlink()
    files[0].write_text(
        '{"custom_id": "a", "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}}'
    )
    files[1].write_text('\n{"body": {}}\n')
    run(tmp_path, Echo(), files, form="openai")
    assert read(tmp_path / "out.jsonl")[1]["error"]["message"].startswith(f"{files[1]}, line 2: expected a string")


def test_inputs_that_are_refused(tmp_path):
    files = [write(tmp_path / "a.jsonl", 0, 2), write(tmp_path / "b.jsonl", 2, 2, key="question_id")]
    with pytest.raises(
        ValueError, match=r"b.jsonl: expected lines in one form.* got llava here and jsonl in .*a.jsonl"
    ):
        run(tmp_path, None, files)
    with pytest.raises(ValueError, match="take the place of the input"):
        run_batch([files[0], write(tmp_path / "c.jsonl", 5, 1)], tmp_path / "c.jsonl", pytest.fail, BatchOptions())
    for path in files:
        path.write_text("\n")
    with pytest.raises(
        ValueError, match=r"a.jsonl, .*b.jsonl: expected a question on each line, but there are no lines"
    ):
        run(tmp_path, None, files)


@pytest.mark.parametrize(
    ("said", "inputs", "output"),
    [
        ({"files": ["a", "out"]}, ["a"], "out"),
        ({"files": ["b", "a", "out"]}, ["b", "a"], "out"),
        ({"files": ["part-*", "out"]}, ["part-1", "part-10", "part-2"], "out"),
        ({"files": ["**/deep", "a", "out"]}, ["in/deep", "a"], "out"),
        ({"files": ["a[1]", "out"]}, ["a[1]"], "out"),
        ({"input_file": ["a", "part-?"], "output_file": "out"}, ["a", "part-1", "part-2"], "out"),
        ({"files": ["a", "b"], "output_file": "out"}, ["a", "b"], "out"),
        ({"files": ["out"], "input_file": ["a"]}, ["a"], "out"),
    ],
)
def test_files_and_patterns_on_the_command_line(tmp_path, monkeypatch, said, inputs, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a", "a1", "a[1]", "b", "part-1", "part-2", "part-10", "in/deep"):
        (tmp_path / name).touch()
    given = {"files": [], "input_file": [], **said}
    found = _job_files(
        argparse.Namespace(
            files=[Path(name) for name in given["files"]],
            input_file=[Path(name) for name in given["input_file"]],
            output_file=Path(output) if "output_file" in said else None,
        )
    )
    assert found == ([Path(name) for name in inputs], Path(output))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["part-*", "out"], r"part-\*: no such file"),
        (["in", "out"], "in: expected a file of questions, got a directory"),
    ],
)
def test_names_of_no_file(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=message):
        _job_files(argparse.Namespace(files=[Path(name) for name in files], input_file=[], output_file=None))
