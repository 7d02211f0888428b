"""Every form of a job's input becomes requests, and results become records of the matching form."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.batch.forms.form import JobFacts, Line, Tag
from videollava_jax.batch.lines import count_lines, line_id, read_lines, recognise
from videollava_jax.batch.records import record
from videollava_jax.batch.requests import Defaults, to_request
from videollava_jax.engine import Result

FACTS = JobFacts("tiny", 1_700_000_000, "digest")
ANSWER = Result(id="0", text="up ↑", token_ids=(5, 6, 2), finish_reason="stop", prompt_tokens=150)
FAILED = Result(id="0", finish_reason="error", error="a.mp4: no such file", cause="not_found")

TEXT = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<image>" not in text)
IDS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True)


def request(form, index=0, defaults=Defaults(), **fields):  # noqa: B008
    return to_request(Line(index, index + 1, fields), form, defaults)


def parts(made):
    return made.conversation[-1]["content"]


# ── lines ──


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.jsonl", '{"id": "1", "prompt": "?"}', "jsonl"),
        ("a.jsonl", '\n  \n{"broken\n{"custom_id": "1", "body": {}}', "openai"),
        ("a.txt", '{"question_id": 7, "image": "a.png", "text": "?"}', "llava"),
        ("a.csv", "id,prompt\n", "csv"),
        ("a.parquet", "", "parquet"),
    ],
)
def test_the_form_is_recognised(tmp_path, name, content, form):
    (tmp_path / name).write_text(content)
    assert recognise([tmp_path / name]) == form


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "there are no lines"), ('{"name": 1}', "with the keys 'name'"), ("id,prompt\na,b", "line 1.*got not JSON")],
)
def test_what_has_no_form_is_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        recognise([tmp_path / "a.txt"])


def test_bad_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    deep = b"[" * 200_000
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\n\n[1]\n{"id": \n\xff\n' + deep + b'\n{"id": "last"}')
    lines = list(read_lines([path], "jsonl"))
    assert [(line.index, line.number) for line in lines] == [(0, 1), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)]
    assert [line.error is None for line in lines] == [True, False, False, False, False, True]
    assert lines[3].error == "not UTF-8 at byte 0"


def test_what_lies_too_deep_is_an_error_of_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [f'{{"id": {n}, "conversation": {"[" * n + "]" * n}}}' for n in (98, 99, 100, 900)]
    path.write_text("\n".join([*lines, f'{{"id": 5, "prompt": "{"[" * 500}"}}']))
    errors = [line.error for line in read_lines([path], "jsonl")]
    assert errors[0] is errors[1] is errors[4] is None
    assert errors[2] == errors[3] == "expected at most 100 lists and objects inside each other, got more"


@pytest.mark.parametrize("value", [None, True, 1.5, "", [], {}])
def test_what_is_no_id_is_none(value):
    assert line_id(Line(0, 1, {"id": value}), "jsonl") is None


def test_ids_that_come_twice_are_told_with_their_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": name}) + "\n" for name in ("a", 1, "b", "1", "a", "a")))
    with pytest.raises(ValueError, match=r"2 come more than once: '1' on lines 2, 4; 'a' on lines 1, 5, 6$"):
        count_lines(read_lines([path], "jsonl"), "jsonl")


# ── round trips ──


@settings(deadline=None, max_examples=50)
@given(IDS, st.data())
def test_jsonl_round_trip(tmp_path_factory, ids, data):
    rows = [{"id": name, "prompt": data.draw(TEXT), "video": "a.mp4"} for name in ids]
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    _check_rows(path, "jsonl", rows)


@settings(deadline=None, max_examples=50)
@given(IDS, st.data())
def test_csv_round_trip(tmp_path_factory, ids, data):
    clean = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
    rows = [{"id": name, "video": "a.mp4", "prompt": data.draw(clean)} for name in ids]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "video", "prompt"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        try:
            writer.writerows(rows)
        except UnicodeEncodeError:  # a lone surrogate cannot be written to a file
            return
    _check_rows(path, "csv", rows)


def _check_rows(path, form, rows):
    lines = list(read_lines([path], form))
    assert count_lines(lines, form) == len(rows)
    assert [line_id(line, form) for line in lines] == [row["id"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        if "<video>" in row["prompt"]:
            continue
        assert parts(to_request(line, form)) == [
            {"type": "video", "video": "a.mp4"},
            {"type": "text", "text": row["prompt"]},
        ]


@settings(deadline=None)
@given(st.text(), st.one_of(st.text(min_size=1), st.integers()))
@pytest.mark.parametrize("form", ["jsonl", "openai", "llava"])
def test_records_are_a_line_of_json_whatever_is_said(form, said, name):
    answer = Result(id="0", text=said, finish_reason="length")
    line = record(form, Tag(0, 1, name, said), answer, None, FACTS)
    assert "\n" not in line
    assert "\r" not in line
    line.encode()
    found = json.loads(line)
    key = {"jsonl": "id", "openai": "custom_id", "llava": "question_id"}[form]
    assert found[key] == name
    text = found["response"]["body"]["choices"][0]["message"]["content"] if form == "openai" else found["text"]
    assert text == said


def test_csv_lines_that_are_damaged(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,prompt,video\r\na,"one\r\nquestion",a.mp4\r\nb,few\r\nc,\xff,c.mp4\r\nd,?,\r\n')
    lines = list(read_lines([path], "csv"))
    assert [(line.number, line.error) for line in lines] == [
        (2, None), (4, "expected 3 columns, got 2"), (5, "not UTF-8"), (6, None),
    ]  # fmt: skip
    assert parts(to_request(lines[3], "csv")) == [{"type": "text", "text": "?"}]
    path.write_text("name,prompt\n")
    with pytest.raises(ValueError, match="id and prompt among them"):
        list(read_lines([path], "csv"))


def test_a_quote_that_is_never_closed_costs_its_own_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,prompt\na,"two\nlines"\nb,"never closed\nc,third\n\nd,"open\ne,"closed"\n')
    lines = list(read_lines([path], "csv"))
    assert [(line.index, line.number, line.error, line.fields.get("id")) for line in lines] == [
        (0, 2, None, "a"),
        (1, 4, "not CSV (',' expected after '\"')", None),
        (2, 5, None, "c"),
        (3, 7, "not CSV (',' expected after '\"')", None),
        (4, 8, None, "e"),
    ]
    path.write_text('id,prompt\na,"open\nb,?\nc,!\n')
    lines = list(read_lines([path], "csv"))
    assert [(line.number, line.error, line.fields.get("id")) for line in lines] == [
        (2, "not CSV (unexpected end of data)", None), (3, None, "b"), (4, None, "c"),
    ]  # fmt: skip
    path.write_text('id,"prompt\n')
    with pytest.raises(ValueError, match="line 1: not CSV"):
        list(read_lines([path], "csv"))


def test_parquet_needs_pyarrow_and_says_so(tmp_path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install -e '\.\[parquet\]'"):
            list(read_lines([tmp_path / "a.parquet"], "parquet"))
        return
    rows = [{"id": "a", "video": "a.mp4", "prompt": "?"}, {"id": "b", "video": None, "prompt": "!"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = list(read_lines([tmp_path / "a.parquet"], "parquet"))
    assert parts(to_request(lines[0], "parquet"))[0] == {"type": "video", "video": "a.mp4"}
    assert parts(to_request(lines[1], "parquet")) == [{"type": "text", "text": "!"}]
    (tmp_path / "b.parquet").write_bytes(b"not one")
    with pytest.raises(ValueError, match="not a Parquet file"):
        list(read_lines([tmp_path / "b.parquet"], "parquet"))


# ── ours ──


def test_a_plain_question_gets_the_template_and_a_whole_prompt_does_not():
    plain = request("jsonl", id="a", prompt="Why?", image="a.png", video=["b.mp4", "c.mp4"])
    kinds = [("image", "a.png"), ("video", "b.mp4"), ("video", "c.mp4")]
    assert parts(plain) == [*({"type": k, k: s} for k, s in kinds), {"type": "text", "text": "Why?"}]
    whole = request("jsonl", id="a", prompt="USER: <video>\nWhy? ASSISTANT:", video="b.mp4")
    assert (whole.prompt, whole.videos, whole.images) == ("USER: <video>\nWhy? ASSISTANT:", ["b.mp4"], [])


def test_media_of_both_kinds_in_one_list():
    made = request("jsonl", id="a", prompt="?", media=["a.PNG", "b.mp4", {"image": "c"}, "data:image/png;base64,"])
    assert [part["type"] for part in parts(made)] == ["image", "video", "image", "image", "text"]


def test_a_conversation_stays_as_it_is():
    messages = [{"role": "user", "content": [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "?"}]}]
    assert request("jsonl", id="a", conversation=messages).conversation == messages


def test_options_and_defaults():
    defaults = Defaults(options={"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 10}, video_pooling=2)
    made = request("jsonl", index=3, defaults=defaults, id="a", prompt="?")
    assert (made.id, made.max_new_tokens, made.seed, made.video_pooling) == ("3", 9, 13, 2)
    assert made.options == {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    said = {"temperature": 0, "seed": 1, "frames": 4, "pool": 1, "stop_strings": ["."], "max_new_tokens": 2}
    made = request("jsonl", index=3, defaults=defaults, id="a", prompt="?", options=said)
    assert (made.max_new_tokens, made.seed, made.video_pooling, made.frame_sampling) == (2, 1, 1, 4)
    assert made.options == {"do_sample": False, "stop_strings": (".",)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "?"}, "under 'id', got nothing"),
        ({"id": "a"}, "a 'prompt' or a 'conversation'"),
        ({"id": "a", "prompt": " "}, "expected a question, got ' '"),
        ({"id": "a", "prompt": 3}, "expected a question, got 3"),
        ({"id": "a", "prompt": "?", "video": 3}, "a path or a URL under 'video'"),
        ({"id": "a", "prompt": "?", "media": "a"}, "expected a list under 'media'"),
        ({"id": "a", "prompt": "?", "media": [{"film": "a"}]}, "expected paths under 'media'"),
        ({"id": "a", "prompt": "?", "options": []}, "an object under 'options'"),
        ({"id": "a", "prompt": "?", "options": {"heat": 1}}, "unknown option 'heat'"),
        ({"id": "a", "prompt": "?", "options": {"start": "x"}}, "start: expected a number from 0 to"),
        ({"id": "a", "prompt": "?", "options": {"start": 2, "end": 1}}, "expected 0 <= start < end in seconds, got 2"),
        ({"id": "a", "prompt": "?", "options": {"temperature": -1}}, "temperature: expected"),
        ({"id": "a", "prompt": "?", "options": {"max_new_tokens": "9"}}, "max_new_tokens: expected a whole number"),
        ({"id": "a", "prompt": "?", "max_new_tokens": 9}, "expected it under 'options'"),
        ({"id": "a", "conversation": [], "video": "a"}, "in its messages, got them next to it"),
        ({"id": "a", "conversation": "hello"}, "a list of messages"),
    ],
)
def test_lines_of_ours_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        request("jsonl", **fields)


def test_records_of_ours():
    found = json.loads(record("jsonl", Tag(4, 5, "a", "?"), ANSWER, None, FACTS))
    assert found == {
        "id": "a", "text": "up ↑", "finish_reason": "stop", "error": None, "prompt_tokens": 150, "tokens": 3,
    }  # fmt: skip
    found = json.loads(record("jsonl", Tag(4, 5, None, ""), FAILED, "not_found", FACTS))
    assert (found["id"], found["line"], found["cause"]) == (None, 5, "not_found")
    assert found["error"] == "a.mp4: no such file"


# ── LLaVA ──


def test_llavas_questions_and_answers():
    made = request("llava", question_id=3, image="a.jpg", text="<image>\nWhat colour?", category="conv")
    assert parts(made) == [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What colour?"}]
    found = json.loads(record("llava", Tag(0, 1, 3, "What colour?"), ANSWER, None, FACTS))
    assert {key: found[key] for key in ("question_id", "prompt", "text", "model_id")} == {
        "question_id": 3, "prompt": "What colour?", "text": "up ↑", "model_id": "tiny",
    }  # fmt: skip
    assert found["answer_id"] != json.loads(record("llava", Tag(1, 2, 3, ""), ANSWER, None, FACTS))["answer_id"]
    with pytest.raises(ValueError, match="a string under 'text'"):
        request("llava", question_id=3, image="a.jpg")


# ── media ──


@pytest.mark.parametrize(("form", "asked"), [("jsonl", "prompt"), ("csv", "prompt"), ("llava", "text")])
def test_media_are_under_known_keys(form, asked):
    line = {"id": "a.png", "question_id": "a.png", asked: "Which?"}
    found = parts(request(form, **line, videos=["a.mp4"], image="b.png"))
    assert [part["type"] for part in found] == ["video", "image", "text"]  # as the line has them
    found = parts(request(form, **line, image="b.png", video="a.mp4"))
    assert [part["type"] for part in found] == ["image", "video", "text"]
    for lost in ({"video_path": "a.mp4"}, {"img": ["b.PNG"]}, {"frame": "data:image/png;base64,AAAA"}):
        with pytest.raises(ValueError, match=f"'{next(iter(lost))}' names .*media are read from 'image', 'images'"):
            request(form, **line, **lost)
        assert len(parts(request(form, **line, **lost, image="b.png"))) == 2
    with pytest.raises(ValueError, match="expected media under 'video' or 'videos', got some under both"):
        request(form, **line, video="a.mp4", videos="b.mp4")
    with pytest.raises(ValueError, match="expected a path or a URL under 'images'"):
        request(form, **line, images=[{"path": "b.png"}])
