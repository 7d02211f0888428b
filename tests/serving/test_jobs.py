"""A job through the server answers as a job on an engine does."""

import json

from videollava_jax.assets import MEDIA
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.batch.servers import ServerOptions, ServersRunner
from videollava_jax.cli import main
from videollava_jax.engine import Engine

QUESTIONS = ("Which way does it move?", "What shape is it?", "Does it change colour?")


def write_job(path):
    lines = [
        {"id": f"{name}-{i}", kind: name, "prompt": question, "options": {"max_new_tokens": 6, **options}}
        for kind, name in (("video", "rising-triangle.mp4"), ("image", "three-triangles.png"))
        for i, question in enumerate(QUESTIONS)
        for options in [{"temperature": 0.7, "seed": 5} if i == 2 else {}]
    ]
    lines += [
        {"id": "missing", "video": "none.mp4", "prompt": "What?"},
        {"id": "text", "prompt": "What is blue?", "options": {"max_new_tokens": 6}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_job_through_the_server_equals_one_here(tmp_path, served, tiny_model, tiny_processor, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path / "in.jsonl")
    engine = Engine(tiny_model, tiny_processor)
    options = BatchOptions(media_root=MEDIA)
    run_batch(tmp_path / "in.jsonl", tmp_path / "here.jsonl", lambda: engine, options)
    main(["batch", "in.jsonl", "there.jsonl", "--server", served.url, "--media-root", str(MEDIA)])
    here, there = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("here.jsonl", "there.jsonl")
    )
    assert here == there
    assert [record["id"] for record in here if record.get("error")] == ["missing"]
    assert "8 lines" in capsys.readouterr().out
    served.wait_until_idle()
    assert served.server.media.uploads.all() == []  # those of the job are deleted


def test_flags_that_servers_have_themselves(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path / "in.jsonl")
    for flags, code, message in (
        (["--server", served.url, "--int8-cache"], 2, "--int8-cache: a server has its own"),
        (["--server", served.url, "--model", "7b-orbax"], 2, "--model: the servers have 'tiny'"),
        (["--server", served.url, "--ray"], 2, "--ray and --server: expected one of them"),
        (["--server", served.url, "--pool", "2"], 2, "--pool: a server has its own"),
        (["--at-once", "3"], 2, "expected --server"),
        (["--server", "http://127.0.0.1:9"], 1, "start one with `videollava serve`"),
    ):
        try:
            got = main(["batch", "in.jsonl", "out.jsonl", *flags])
        except SystemExit as end:
            got = end.code
        said = capsys.readouterr().err
        assert message in said
        assert got == code, said
    assert not (tmp_path / "out.jsonl").exists()


def test_several_jobs_share_one_server(served, tmp_path):
    """Each has its own connections; the runner by itself, as a program would use it."""
    write_job(tmp_path / "in.jsonl")
    runner = ServersRunner([served.url], ServerOptions(at_once=3))
    summary = run_batch(tmp_path / "in.jsonl", tmp_path / "out.jsonl", lambda: runner, BatchOptions(media_root=MEDIA))
    assert summary.answered == 7
