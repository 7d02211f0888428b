"""The judge: prompts, replies, what is kept on disk, retries that end, and its metrics in the report."""

import json
from collections import Counter

import pytest

from tests.evaluation.fake_judge import FakeJudge, completion, strict
from tests.evaluation.published import answers, right
from videollava_jax.evaluation import world
from videollava_jax.evaluation.answers import join
from videollava_jax.evaluation.judge.endpoint import Item, Judge
from videollava_jax.evaluation.judge.prompts import PROMPTS, Prompt, read_prompt
from videollava_jax.evaluation.judge.replies import Replies, Verdict, parsed
from videollava_jax.evaluation.report import make_report, records, score
from videollava_jax.evaluation.tasks import TASKS

FIELDS = {"question": "What?", "answer": "red", "pred": "red"}


def judge(url, tmp_path, **options):
    prompts = {name: PROMPTS[name] for name in PROMPTS}
    return Judge(**{"url": url, "model": "m", "prompts": prompts, "cache": tmp_path / "j.db", "pause": 0.0, **options})


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("{'pred': 'yes', 'score': 4.8}", Verdict(True, 4)),
        ("{'pred': 'No', 'score': 0}", Verdict(False, 0)),
        ("{'pred': 'yes, it is', 'score': '3'}", Verdict(True, 3)),
        ("{'pred': 'perhaps', 'score': 2}", Verdict(None, 2)),  # neither: in no accuracy, as in the authors' program
        ('Sure! {"pred": "yes", "score": 5}', Verdict(True, 5)),
        ("{'pred': 'yes'}", None),
        ("{'pred': True, 'score': 5}", None),
        ("{'pred': 'yes', 'score': 'high'}", None),
        ("{'pred': 'yes', 'score': 50}", None),
        ("yes", None),
        ("", None),
        ("(" * 5000, None),
        ("{'score': 1e999, 'pred': 'yes'}", None),
    ],
)
def test_replies(reply, expected):
    assert parsed(reply, "match") == expected


def test_a_reply_of_a_score_alone():
    assert parsed("{'score': 3}", "score") == Verdict(None, 3)
    assert parsed("{''score': 4.8}", "score") is None  # what the authors' own example says


@pytest.mark.parametrize(
    ("reply", "reads", "expected"),
    [
        ("0.7", "share", Verdict(None, 0.7)),
        ("1.0 right", "share", Verdict(None, 1.0)),
        ("1.1", "share", None),
        ("right", "share", None),
        ("8 7\nThe first …", "pair", Verdict(None, 7, 8)),
        ("8,7", "pair", Verdict(None, 7, 8)),
        ("8, 7", "pair", None),  # three parts, an empty one among them: an error in the published program too
        ("8", "pair", None),
        ("8 70", "pair", None),
        ("nan 7", "pair", None),
    ],
)
def test_replies_of_numbers(reply, reads, expected):
    assert parsed(reply, reads) == expected


def test_a_judge_is_asked_once_for_the_same_thing(tmp_path):
    items = [Item("a", "match", FIELDS), Item("b", "match", FIELDS | {"pred": "blue"}), Item("c", "match", FIELDS)]
    with FakeJudge(strict).running() as fake:
        first = judge(fake.url, tmp_path, key="secret", workers=1).judged(items)
        again = judge(fake.url, tmp_path, workers=4).judged(items)
    assert len(fake.requests) == 2  # a and c ask the same
    assert first.verdicts == again.verdicts
    assert first.verdicts["a", "match"] == Verdict(True, 5)
    assert first.verdicts["b", "match"] == Verdict(False, 1)
    assert fake.headers[0]["Authorization"] == "Bearer secret"
    assert (fake.requests[0]["model"], fake.requests[0]["temperature"]) == ("m", 0)
    assert first.models == {"judge-2026-01-01"}
    assert b"secret" not in (tmp_path / "j.db").read_bytes()


def test_another_prompt_or_judge_is_asked_anew(tmp_path):
    item = [Item("a", "match", FIELDS)]
    with FakeJudge(strict).running() as fake:
        judge(fake.url, tmp_path).judged(item)
        judge(fake.url, tmp_path, model="other").judged(item)
        judge(fake.url, tmp_path, temperature=None).judged(item)
        other = Prompt((("user", "Correct answer: {answer}\nPredicted answer: {pred}"),), "x", "match")
        judge(fake.url, tmp_path, prompts={"match": other}).judged(item)
    assert len(fake.requests) == 4
    assert "temperature" not in fake.requests[2]


def test_what_cannot_be_read_is_asked_for_again_and_then_counted(tmp_path):
    said = iter(["well", "{'pred': 'yes', 'score': 3}", "no idea", "really", "none"])
    with FakeJudge(lambda body: next(said)).running() as fake:
        found = judge(fake.url, tmp_path, workers=1).judged(
            [Item("a", "match", FIELDS), Item("b", "match", FIELDS | {"pred": "x"})]
        )
    assert found.verdicts == {("a", "match"): Verdict(True, 3), ("b", "match"): None}
    assert found.counts() == {"judged": 2, "asked_again": 1, "unparsed": 1, "refused": 0}
    assert found.replies["b", "match"] == ["no idea", "really", "none"]


def test_failing_requests_are_sent_again_and_not_for_ever(tmp_path):
    said = iter([(500, "busy"), (429, "slow"), (200, completion("{'pred': 'no', 'score': 0}"))])
    with FakeJudge(lambda body: next(said)).running() as fake:
        found = judge(fake.url, tmp_path).judged([Item("a", "match", FIELDS)])
    assert found.verdicts["a", "match"] == Verdict(False, 0)
    with (
        FakeJudge(lambda body: (503, "down")).running() as fake,
        pytest.raises(OSError, match=r"did not answer 3 times; the last: status 503: down"),
    ):
        judge(fake.url, tmp_path / "b", retries=2).judged([Item("a", "match", FIELDS)])
    assert len(fake.requests) == 3
    with pytest.raises(OSError, match="did not answer 1 times"):
        judge("http://127.0.0.1:9/v1", tmp_path / "c", retries=0).judged([Item("a", "match", FIELDS)])


@pytest.mark.parametrize(
    ("said", "message"),
    [((401, "no key"), "refuses with status 401: no key"), ((302, ""), "status 302"), ((200, "[]"), "chat completion")],
)
def test_a_judge_that_refuses_ends_the_run_at_once(tmp_path, said, message):
    with FakeJudge(lambda body: said).running() as fake, pytest.raises(ValueError, match=message):
        judge(fake.url, tmp_path, key="k").judged([Item("a", "match", FIELDS)])
    assert len(fake.requests) == 1


def test_a_request_that_is_refused_for_what_it_says_is_counted(tmp_path):
    def said(body):
        return (400, "too long") if "long" in body["messages"][-1]["content"] else "{'pred': 'yes', 'score': 5}"

    items = [Item("a", "match", FIELDS), Item("b", "match", FIELDS | {"pred": "long"})]
    with FakeJudge(said).running() as fake:
        found = judge(fake.url, tmp_path).judged(items)
        assert found.counts() == {"judged": 2, "asked_again": 0, "unparsed": 0, "refused": 1}
        assert found.verdicts["b", "match"] is None
        with pytest.raises(ValueError, match="refuses with status 400: too long"):
            judge(fake.url, tmp_path).judged(items[1:])  # every one: a wrong setting


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "", "http://", "http://["])
def test_urls_that_are_none(tmp_path, url):
    with pytest.raises(ValueError, match="the judge's URL: expected one such as"):
        judge(url, tmp_path)


def test_a_file_of_replies_that_is_none(tmp_path):
    (tmp_path / "j.db").write_text("x" * 5000)
    with pytest.raises(ValueError, match="expected the replies of a judge"):
        Replies(tmp_path / "j.db")


PROGRAM = """
def annotate():
    raise RuntimeError("is not run")
    completion = openai.ChatCompletion.create(
        model="x",
        messages=[
            {"role": "system", "content": "Grade. " "Be brief."},
            {"role": "user", "content": "Q: " f"{question}\\n" f"A: {answer} {pred}" "such as {'pred': 'yes'}"},
        ],
    )
"""


def test_a_prompt_of_a_program_is_read_and_not_run(tmp_path):
    (tmp_path / "p.py").write_text(PROGRAM)
    prompt = read_prompt(tmp_path / "p.py", "match")
    assert prompt.fill({"question": "{answer}?", "answer": "a", "pred": "p"}) == [
        {"role": "system", "content": "Grade. Be brief."},
        {"role": "user", "content": "Q: {answer}?\nA: a psuch as {'pred': 'yes'}"},
    ]
    assert prompt.source == "p.py"
    assert prompt.digest != PROMPTS["match"].digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "{", "expected a JSON list"),
        ("p.json", '[{"role": "user"}]', "expected a list of messages"),
        ("p.json", '[{"role": "user", "content": "x"}]', "got none of them"),
        ("p.py", "x = (", "not a Python program"),
        ("p.py", "x = 1", "expected a call with messages"),
        ("p.py", "f(messages=[3])", "expected messages with 'role'"),
        ("p.py", "f(messages=[{'role': 'user', 'content': g()}])", "expected texts with question"),
    ],
)
def test_prompts_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompt(tmp_path / name, "score")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    for name in ("msvd_qa", "video_chatgpt", "video_chatgpt_consistency", "mmvet", "llava_bench"):
        world.write(name, root / name, media=3)
    return root


def test_the_judges_metrics_stand_next_to_those_without_one(data, tmp_path):
    task = TASKS["msvd_qa"]
    files, questions = task.questions(data / "msvd_qa")
    first, second, *rest = questions
    said = [*answers(rest), *answers([second], lambda q: "nothing")]  # the first has no answer
    with FakeJudge(strict).running() as fake:
        scored = score(task, files, questions, join(questions, said), judge(fake.url, tmp_path))
        again = score(task, files, questions, join(questions, said), judge(fake.url, tmp_path))
    found = make_report(scored, {})
    share = 100 * len(rest) / len(questions)
    assert found["metric"] == "judge_accuracy"
    assert found["metrics"]["judge_accuracy"]["value"] == pytest.approx(share, abs=1e-3)
    assert found["metrics"]["judge_score"]["value"] == pytest.approx((5 * len(rest) + 1) / len(questions), abs=1e-3)
    assert found["metrics"]["exact"]["value"] == pytest.approx(share, abs=1e-3)
    assert found["judge"]["judged"] == len(questions) - 1
    assert found["judge"]["prompts"]["match"]["digest"] == PROMPTS["match"].digest
    assert found == make_report(again, {})
    kept = {record["id"]: record for record in records(scored)}
    assert kept[first.id]["judge"] == {"match": []}
    assert kept[second.id]["judge"] == {"match": ["{'pred': 'no', 'score': 1.9}"]}


def test_three_dimensions_of_one_answer_and_pairs_as_one(data, tmp_path):
    with FakeJudge(lambda body: "{'score': 4}").running() as fake:
        for name, expected in (("video_chatgpt", 3), ("video_chatgpt_consistency", 1)):
            task = TASKS[name]
            files, questions = task.questions(data / name)
            before = len(fake.requests)
            asked = judge(fake.url, tmp_path / name)
            found = make_report(score(task, files, questions, join(questions, answers(questions, right)), asked), {})
            units = found["counts"]["units"]
            assert len(fake.requests) - before <= expected * units
            assert {f"judge_{prompt}" for prompt in task.judges} <= set(found["metrics"])
            assert found["score"] == 4
    last = json.dumps(fake.requests[-1])
    assert "Question 1: " in last
    assert "Predicted answer 2: " in last


def test_shares_and_grades_next_to_a_reference(data, tmp_path):
    for name, said, expected in (("mmvet", "0.5", 50), ("llava_bench", "8 6\nbecause", 75)):
        task = TASKS[name]
        files, questions = task.questions(data / name)
        with FakeJudge(lambda body, said=said: said).running() as fake:
            asked = judge(fake.url, tmp_path / name)
            found = make_report(score(task, files, questions, join(questions, answers(questions, right)), asked), {})
        assert found["metric"] == f"judge_{task.judges[0]}"
        assert (found["score"], found["interval"]) == (expected, [expected, expected])
        text = fake.requests[0]["messages"][-1]["content"]
        assert questions[0].facts.get("context", "<AND>") in text


def test_several_runs_have_a_mean_and_each_its_score(data, tmp_path):
    seen = Counter()

    def reply(body):
        """The same answer has 1, then 0.5, then nothing that can be read."""
        asked = json.dumps(body["messages"])
        seen[asked] += 1
        return ("1.0", "0.5", "well …")[seen[asked] - 1]

    task = TASKS["mmvet"]
    files, questions = task.questions(data / "mmvet")
    joined = join(questions, answers(questions, right))
    with FakeJudge(reply).running() as fake:
        asked = judge(fake.url, tmp_path, runs=3, tries=1, prompts={name: PROMPTS[name] for name in task.judges})
        report, again = (make_report(score(task, files, questions, joined, asked), {}) for _ in range(2))
    assert report == again
    assert len(fake.requests) == 3 * len(questions)
    assert report["judge"]["score_of_each_run"] == [100, 50, 0]
    assert report["score"] == pytest.approx(50)
    assert report["judge"]["runs"] == 3
    assert report["judge"]["unparsed"] == 0


def test_yes_and_no_have_no_mean(tmp_path):
    with pytest.raises(ValueError, match="yes and no have no mean; expected 1, got 5"):
        judge("http://x/v1", tmp_path, runs=5)
