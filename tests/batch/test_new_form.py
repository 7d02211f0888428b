"""A form is one object: everything that a job does with its lines follows from its row of the table."""

import json

import pytest

from tests.faults.batch import FakeRunner, mended_answer
from videollava_jax.batch.forms import FORMS, LineForm
from videollava_jax.batch.forms.fields import images_and_videos, question
from videollava_jax.batch.forms.form import Line, RequestParts
from videollava_jax.batch.lines import recognise
from videollava_jax.batch.ray.replica import AnswerLines
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.cli import main


def read_tabs(path):
    for index, text in enumerate(path.read_text().splitlines()):
        key, tab, asked = text.partition("\t")
        yield Line(index, index + 1, {"key": key, "ask": asked} if tab else {}, None if tab else "expected a tab")


def ask(fields):
    return RequestParts(question(fields.get("ask"), images_and_videos(fields)), {"max_new_tokens": 5})


def to_record(tag, result, cause, facts):
    return {"key": tag.id, "asked": tag.prompt, "said": result.text, "why": cause, "by": facts.model, "at": tag.number}


JSON_LINES = LineForm(name="made-up", owner="Nobody", id_key="key", prompt_key="ask", ask=ask, record=to_record)
TABS = LineForm(
    name="tabs", suffixes=(".tab", ".tsv"), id_key="key", prompt_key="ask", read=read_tabs, ask=ask, record=to_record
)


@pytest.fixture(params=[JSON_LINES, TABS], ids=lambda form: form.name)
def form(request, monkeypatch):
    monkeypatch.setitem(FORMS, request.param.name, request.param)
    return request.param


def test_a_job_in_a_new_form(tmp_path, form):
    """Recognised, read, asked with the line's options and answered; one line is damaged, one has no id."""
    source, output = tmp_path / ("in.jsonl" if form.json_lines else "in.TSV"), tmp_path / "out.jsonl"
    rows = [("a", "What is it?"), ("", "Who?"), ("b", "Why?")]
    if form.json_lines:
        lines = [json.dumps({"key": key, "ask": asked, "id": "none of ours"}) for key, asked in rows]
    else:
        lines = [f"{key}\t{asked}" for key, asked in rows]
    source.write_text("\n".join([*lines, "broken"]))
    assert recognise([source]) == form.name
    received = []

    def answer(request):
        received.append((request.id, request.conversation[0]["content"][-1]["text"], request.max_new_tokens))
        return mended_answer(request)

    runner = FakeRunner(tmp_path / "log", 1, answer=answer)
    summary = run_batch(source, output, lambda: runner, BatchOptions(model="tiny", max_error_rate=1))
    assert (summary.answered, summary.errors["invalid_request"]) == (2, 2)
    assert sorted(received) == [("0", "What is it?", 5), ("2", "Why?", 5)]
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(record["key"], record["asked"], record["why"], record["at"]) for record in records] == [
        ("a", "What is it?", None, 1),
        (None, "Who?", "invalid_request", 2),
        ("b", "Why?", None, 3),
        (None, "", "invalid_request", 4),
    ]
    assert all(len(record["said"]) == 64 and record["by"] == "tiny" for record in records[::2])
    assert json.loads((tmp_path / "out.jsonl.job.json").read_text())["fingerprint"]["format"] == form.name


def test_a_new_form_is_named_where_forms_are(tmp_path, form, capsys):
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    assert f"jsonl,openai,llava,csv,parquet,{form.name}" in "".join(capsys.readouterr().out.split())
    source = tmp_path / "in.txt"
    source.write_text('{"name": 1}\n')
    keys = "'id', 'custom_id' (OpenAI) or 'question_id' (LLaVA)"
    if form.json_lines:
        keys = "'id', 'custom_id' (OpenAI), 'question_id' (LLaVA) or 'key' (Nobody)"
    with pytest.raises(ValueError, match="expected a JSON object") as caught:
        recognise([source])
    assert str(caught.value) == (
        f"{source}, line 1: expected a JSON object with {keys}, got an object with the keys 'name'; --format says "
        f"which form it is (jsonl, openai, llava, csv, parquet, {form.name})"
    )


def test_only_forms_of_json_lines_are_answered_line_by_line(form):
    options = BatchOptions(form=form.name)
    if form.json_lines:
        AnswerLines(lambda: None, options)
        return
    with pytest.raises(ValueError, match=r"^form: expected jsonl, openai or llava, as tables are not lines; got tabs$"):
        AnswerLines(lambda: None, options)


def test_a_form_that_is_not_in_the_table():
    with pytest.raises(ValueError, match=r"^form: expected jsonl, openai, llava, csv or parquet, got 'xml'$"):
        BatchOptions(form="xml")
