"""Every task's reader on the drawn world in its published form, and its scorer from there to the report."""

import json
import random
import shutil

import pytest

from tests.evaluation.published import BY_POSITION, CHOICES, NAMES, answers, right, shuffle, wrong
from videollava_jax.evaluation import world
from videollava_jax.evaluation.answers import join
from videollava_jax.evaluation.digests import data_fingerprint, same_data
from videollava_jax.evaluation.report import in_words, make_report, records, score, write_report
from videollava_jax.evaluation.tasks import TASKS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in NAMES:
        world.write(name, root / name, media=5)
    return root


def report_of(name, root, say=right, keep=lambda question: True):
    files, questions = TASKS[name].questions(root / name)
    joined = join(questions, answers([q for q in questions if keep(q)], say))
    return make_report(score(TASKS[name], files, questions, joined), {})


@pytest.mark.parametrize("name", NAMES)
def test_questions_have_their_media_and_texts(data, name):
    files, questions = TASKS[name].questions(data / name)
    assert len(questions) >= 5
    for question in questions:
        assert question.text.strip()
        for _, source in question.media:
            assert source.startswith("data:image/png;base64,") or (files.root / source).is_file()
    assert len({question.cluster for question in questions}) == (4 if name == "mvbench" else 5)  # not every kind


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_have_the_full_score_and_wrong_ones_none(data, name):
    found = report_of(name, data)
    if name in ("vqav2", "vizwiz"):
        assert (found["score"], found["metrics"]) == (None, {})
        return
    assert found["score"] == 100
    if name != "pope":  # F1 is 0 in a draw without a yes, and there are 5 images
        assert found["interval"] == [100, 100]
    assert found["counts"]["unparsed"] == 0
    wrongly = report_of(name, data, wrong)
    assert wrongly["score"] == 0
    assert in_words(found).startswith(TASKS[name].title)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vqav2", "vizwiz")])
def test_a_missing_answer_is_wrong_and_the_authors_way_is_said_too(data, name):
    _, questions = TASKS[name].questions(data / name)
    with_image = next(question for question in questions if question.media)
    left_out = with_image.unit or with_image.id
    found = report_of(name, data, keep=lambda question: (question.unit or question.id) != left_out)
    assert 0 < found["score"] < 100
    assert found["of_answered_only"][found["metric"]] == 100
    assert found["counts"]["missing"] >= 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_POSITION])
def test_the_order_of_the_files_changes_nothing(data, name, tmp_path):
    shutil.copytree(data / name, tmp_path / name)
    shuffle(tmp_path / name)
    one, other = (root / name for root in (data, tmp_path))
    (files, questions), (files2, questions2) = (TASKS[name].questions(root) for root in (one, other))
    assert sorted(questions, key=lambda q: q.id) == sorted(questions2, key=lambda q: q.id)
    assert same_data(data_fingerprint(files, questions), data_fingerprint(files2, questions2))
    first, second = report_of(name, data), report_of(name, tmp_path)
    first["data"].pop("files")
    second["data"].pop("files")
    assert first == second


def test_the_same_answers_give_the_same_bytes(data, tmp_path):
    files, questions = TASKS["msvd_qa"].questions(data / "msvd_qa")
    for out, order in (("a", questions), ("b", questions[::-1])):
        joined = join(questions, answers(order, lambda q: "red"))
        write_report(tmp_path / out, score(TASKS["msvd_qa"], files, order, joined), {"model": "x"})
    for name in ("report.json", "records.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_drawn_world_is_the_same_wherever_it_is_drawn(data, tmp_path):
    world.write("mmbench", tmp_path / "again", media=5)
    one, two = (root / "mmbench_dev_20230712.tsv" for root in (data / "mmbench", tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="expected an empty directory"):
        world.write("mmbench", tmp_path / "again")
    with pytest.raises(ValueError, match="unknown task 'x'"):
        world.write("x", tmp_path / "x")


def test_what_is_uploaded(data, tmp_path):
    files, questions = TASKS["vqav2"].questions(data / "vqav2")
    joined = join(questions, answers(questions[1:], lambda q: "Two shapes."))
    write_report(tmp_path, score(TASKS["vqav2"], files, questions, joined), {})
    upload = json.loads((tmp_path / "submission.json").read_text())
    assert len(upload) == len(questions) + 1  # the split has a question that is not asked
    said = {entry["question_id"]: entry["answer"] for entry in upload}
    assert (said[10**9], said[int(questions[0].id)], said[int(questions[1].id)]) == ("", "", "2 shapes")
    files, questions = TASKS["vizwiz"].questions(data / "vizwiz")
    write_report(tmp_path / "v", score(TASKS["vizwiz"], files, questions, join(questions, answers(questions))), {})
    assert json.loads((tmp_path / "v" / "submission.json").read_text())[0] == {
        "image": questions[0].cluster,
        "answer": "2",
    }


def test_mmbenchs_cells(data):
    _, questions = TASKS["mmbench"].questions(data / "mmbench")
    assert {len(question.options) for question in questions} == {3, 4}  # an empty cell ends the options
    hinted = [question for question in questions if question.text.startswith("The shapes are flat.\n")]
    assert 0 < len(hinted) < len(questions)
    assert questions[0].text.endswith("\nAnswer with the option's letter from the given choices directly.")
    assert len({question.unit for question in questions}) == 5


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "None", "none", "NA", "null"])
def test_cells_that_pandas_takes_for_empty(data, tmp_path, cell):
    shutil.copytree(data / "mmbench", tmp_path / "m")
    table = tmp_path / "m" / "mmbench_dev_20230712.tsv"
    head, first, *_ = table.read_text().splitlines()
    cells = dict(zip(head.split("\t"), first.split("\t"), strict=True)) | {"C": cell, "D": "Na", "hint": cell}
    table.write_text(f"{head}\n" + "\t".join(cells.values()) + "\n")
    (question,) = TASKS["mmbench"].questions(tmp_path / "m")[1]
    assert len(question.options) == 2
    cells["C"], cells["D"] = "Na", "K"  # sodium, and not a cell without a value
    table.write_text(f"{head}\n" + "\t".join(cells.values()) + "\n")
    (question,) = TASKS["mmbench"].questions(tmp_path / "m")[1]
    assert question.options[2:] == ("Na", "K")


def test_textvqas_questions_have_one_published_id_for_an_image(data):
    _, questions = TASKS["textvqa"].questions(data / "textvqa")
    first = [question for question in questions if question.published_id == questions[0].published_id]
    assert len(first) > 1
    assert len({question.id for question in questions}) == len(questions)


@pytest.mark.parametrize("name", CHOICES)
def test_an_answer_without_a_letter_is_counted(data, name):
    found = report_of(name, data, lambda question: "hm")
    assert found["counts"]["unparsed"] == found["counts"]["questions"]


def test_video_mme_in_parquet(data, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    shutil.copytree(data / "videomme", tmp_path / "v")
    rows = json.loads((tmp_path / "v" / "test.json").read_text())
    (tmp_path / "v" / "test.json").unlink()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "v" / "test-00000-of-00001.parquet")
    assert TASKS["videomme"].questions(tmp_path / "v")[1] == TASKS["videomme"].questions(data / "videomme")[1]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("msvd_qa", "test_q.json", None, "MSVD-QA needs test_q.json"),
        ("msvd_qa", "test_q.json", "[]", "its files hold none"),
        ("msvd_qa", "test_q.json", "{", "line 1: expected a JSON object"),
        ("msvd_qa", "test_q.json", "[1]", "entry 1: expected an object, got a int"),
        ("msvd_qa", "test_q.json", '[{"question_id": null}]', "expected a text under 'question_id', got nothing"),
        ("msvd_qa", "test_a.json", "[]", "no answer to question"),
        ("gqa", "data/testdev_balanced_questions.json", "{}", "no question '0000'"),
        ("pope", "coco/coco_pope_random.json", "", "no label for it in coco_pope_random.json"),
        ("mmbench", "mmbench_dev_20230712.tsv", "index\tquestion\n1\tx\n", "expected a column 'image'"),
        ("mmbench", "mmbench_dev_20230712.tsv", "index\tquestion\n1\n", "line 2: expected 2 fields"),
        ("textvqa", "TextVQA_0.5.1_val.json", '{"data": []}', "no annotation of image"),
        ("scienceqa_img", "pid_splits.json", '{"test": ["99"]}', "no problem '99'"),
        (
            "nextqa",
            "test.csv",
            "video,question,answer,type,a0,a1,a2,a3,a4\nv,q,7,CW,a,b,c,d,e\n",
            "from 0 to 4 under 'answer', got '7'",
        ),
        ("mvbench", "json/moving_count.json", '[{"video": "a", "candidates": ["x"], "answer": "y"}]', "one of the"),
        ("videomme", "test.json", '[{"videoID": "a", "options": "A"}]', "expected a list of 4 texts"),
    ],
)
def test_files_that_are_not_as_published(data, tmp_path, name, file, text, message):
    shutil.copytree(data / name, tmp_path / name)
    if text is None:
        (tmp_path / name / file).unlink()
    else:
        (tmp_path / name / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        TASKS[name].questions(tmp_path / name)


def test_a_record_for_each_question(data):
    files, questions = TASKS["mmbench"].questions(data / "mmbench")
    scored = score(TASKS["mmbench"], files, questions, join(questions, answers(questions)))
    found = records(scored)
    assert [record["id"] for record in found] == sorted(question.id for question in questions)
    assert sum("counts" in record for record in found) == 5  # once for a question with all its rotations
    assert found[0]["media"] == [["image", "data:"]]


JUNK = (None, 3, -1, 1.5, "", "x", [], {}, [1], {"a": 1}, True, [None], "\ud800", 10**30, "../../x.png", "/etc/x.png")
BYTES = (b"", b"\xff\xfe", b"null", b"3", b"[]", b"{}", b"[[]]", b"[" * 5000, b"a\tb\n1\n", b"\x00" * 9)


def places(value, at=()):
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def spoil(value, rng):
    """Puts something that makes no sense into a random place of a JSON value."""
    at = rng.choice(list(places(value)))
    if not at:
        return rng.choice(JUNK)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if isinstance(inner, dict) and rng.random() < 0.25:
        del inner[at[-1]]
    else:
        inner[at[-1]] = rng.choice(JUNK)
    return value


def refusal(name, root):
    """Returns why a task cannot be read or scored, or its directory where it can; a fault is raised."""
    try:
        files, questions = TASKS[name].questions(root)
        said = answers(questions, lambda q: "A")
        write_report(root / "report", score(TASKS[name], files, questions, join(questions, said)), {})
    except ValueError as error:
        return str(error)
    return str(root)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_in_the_files_is_read_or_refused_by_file(data, tmp_path, name):
    rng = random.Random(name)
    for turn in range(40):
        root = tmp_path / str(turn)
        shutil.copytree(data / name, root, ignore=shutil.ignore_patterns("*.mp4", "*.png", "*.jpg"))
        path = rng.choice(sorted(p for p in root.rglob("*.*") if p.is_file()))
        text = path.read_text()
        if rng.random() < 0.2:
            path.write_bytes(rng.choice(BYTES))
        elif path.suffix in (".tsv", ".csv"):
            cells = text.split("\t" if path.suffix == ".tsv" else ",")
            cells[rng.randrange(len(cells))] = rng.choice(["", "x", '"', "-1", "nan", "\x00"])
            path.write_text(("\t" if path.suffix == ".tsv" else ",").join(cells))
        elif path.suffix == ".jsonl" or path.parent.name == "coco":
            rows = [json.loads(line) for line in text.splitlines()]
            spoiled = spoil(rows, rng)
            path.write_text("\n".join(map(json.dumps, spoiled if isinstance(spoiled, list) else [spoiled])))
        else:
            path.write_text(json.dumps(spoil(json.loads(text), rng)))
        assert str(root) in refusal(name, root)
