"""The scorers against vectors of the published programs, whose odd rules are kept."""

import pytest

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.choices import MMBENCH, MVBENCH, NEXTQA, SCIENCEQA, VIDEOMME
from videollava_jax.evaluation.scorers.gqa import GQA, distribution, prediction
from videollava_jax.evaluation.scorers.letters import (
    best_letter,
    mmbench_letter,
    mvbench_letter,
    nextqa_letter,
    science_letter,
)
from videollava_jax.evaluation.scorers.open_answers import LONG, SHORT
from videollava_jax.evaluation.scorers.pope import POPE, says_yes
from videollava_jax.evaluation.scorers.scorer import summed, units
from videollava_jax.evaluation.scorers.vqa import TEXTVQA, VQA, agreement, evaluated, normalised


def question(**fields):
    return Question(**{"id": "1", "text": "?", "cluster": "a", **fields})


def metrics(scorer, marked):
    return scorer.metrics(summed([scorer.counts(unit) for unit in units(marked).values()]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red car.", "red car"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("U.S.A.", "usa"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("two dogs", "2 dogs"),
        ("black-white", "black white"),
        ("none", "0"),
        ("10.", "10"),
        ("a/b", "b"),
        ("3 . 5", "3 5"),
        ("The", ""),
        ("50%", "50%"),
        ("1,000-2", "1000 2"),
        ("eleven", "eleven"),
        ("." * 40 + "x", "." * 8 + "x"),  # the count of re.sub is 32
        ("shouldntve", "shouldntve"),
        ("shouldn'tve", "shouldn't've"),
        ("Im", "im"),  # the table's key has a capital, which is gone by then
    ],
)
def test_the_normaliser(text, expected):
    assert normalised(text) == expected


def test_the_challenges_own_program_does_not_split_off_an_apostrophe_s():
    assert evaluated("It's") == "it's"
    assert normalised("It's") == "it 's"
    assert evaluated("1,000-2") == "10002"  # a comma between digits: every sign is removed


@pytest.mark.parametrize(("same", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_agreement_with_ten_people(same, expected):
    assert agreement("red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(expected)
    target = ["Red."] * same + ["blue"] * (10 - same)
    assert TEXTVQA.mark(question(target=target), "a red").score == pytest.approx(expected)


def test_vqa_as_it_is_uploaded_and_as_the_model_said_it():
    mark = VQA.mark(question(target=["it's"] * 10), "it's")
    assert (mark.score, mark.others["accuracy_unprocessed"]) == (0, 1)  # the upload says "it 's"
    assert VQA.mark(question(target=None), "Two dogs.").parsed == "2 dogs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes", True), ("No", False), ("NO", True), ("no, it is", False), ("Maybe. No", True), ("not there", False)],
)
def test_what_pope_takes_for_yes(text, expected):
    assert says_yes(text) is expected


def test_pope_is_the_mean_f1_of_its_categories():
    rows = [("a", True, "Yes"), ("a", False, "Yes"), ("a", True, "No"), ("b", True, "yes"), ("b", False, "no")]
    marked = [
        POPE.marked(question(id=str(i), target=target, categories={"category": category}), text)
        for i, (category, target, text) in enumerate(rows)
    ]
    found = metrics(POPE, marked)
    assert (found["a/f1"], found["b/f1"], found["f1"]) == (50, 100, 75)
    assert (found["a/precision"], found["a/recall"], found["a/yes_ratio"]) == (50, 50, pytest.approx(200 / 3))
    missing = POPE.marked(question(id="9", target=True, categories={"category": "b"}), None)
    assert metrics(POPE, [*marked, missing])["b/recall"] == 50
    assert metrics(POPE, marked[1:2])["f1"] == 0  # no true yes: the published program divides by zero


def test_gqa_compares_exactly():
    assert prediction("Yes..") == "yes"
    facts = {"structural": "verify", "group": "colour", "choices": None, "common": False}
    marked = [
        GQA.marked(question(id=str(i), target="red", facts=facts), text)
        for i, text in enumerate(["Red.", " red", "blue", None])
    ]
    assert [one.mark.score for one in marked] == [1, 0, 0, 0]
    assert metrics(GQA, marked)["accuracy"] == 25
    assert distribution(marked) == pytest.approx((1 - 4) ** 2 / 4 / 100)
    assert GQA.extras(marked)["binary"] == 25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("A.", "A"),
        ("(B)", "B"),
        ("(B).", "B"),
        (":C", "C"),
        ("E", "E"),
        ("It is A", "A"),
        ("This is A dog", "B"),  # an article among more than three words; the option's text counts
        ("A B", None),
        ("a dog", "B"),
        ("a dog or a cat", None),
        ("*B*", None),
        ("", None),
    ],
)
def test_mmbenchs_letter(text, expected):
    assert mmbench_letter(text, {"A": "cat", "B": "Dog", "C": "bird", "D": "fish"}) == expected


def test_mmbench_is_circular():
    marked = [
        MMBENCH.marked(
            question(id=str(group + turn * 10**6), unit=str(group), target="A", options=("x", "y", "z", "w")), text
        )
        for group, texts in enumerate(["AAAA", "AABA", "BAAA"])
        for turn, text in enumerate(texts)
    ]
    found = metrics(MMBENCH, marked)
    assert found["accuracy"] == pytest.approx(100 / 3)
    assert found["vanilla_accuracy"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("B. because", "B"),
        ("B.", None),
        ("b", None),
        ("so The answer is C.", "C"),
        ("The answer is C. The answer is D.", None),
        ("The answer is Cx", "C"),  # the full stop of its pattern is any character
    ],
)
def test_sciences_letter(text, expected):
    assert science_letter(text) == expected


def test_scienceqa_counts_images_apart():
    rows = [("A", (("image", "a.png"),), "A"), ("B", (), "A"), ("A", (("image", "b.png"),), None), ("E", (), "E")]
    marked = [
        SCIENCEQA.marked(question(id=str(i), target=target, media=media, options=("x", "y")), text)
        for i, (target, media, text) in enumerate(rows)
    ]
    assert metrics(SCIENCEQA, marked) == {"img_accuracy": 50, "accuracy": 25}
    assert marked[-1].mark.parsed is None  # E is no letter of two options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(C)", "C"),
        ("C.", "C"),
        ("(A) not (B)", "B"),  # the last one
        ("the man in it is walking away", "D"),
        ("walking", None),  # too short for an option's text; the published program guesses
        ("", None),
    ],
)
def test_nextqas_letter(text, expected):
    assert nextqa_letter(text, ["sit", "jump", "run", "walking away", "eat"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("(B) left", "B"), ("b. left", "B"), ("a dog", "A"), ("left", None), ("", None)]
)
def test_mvbenchs_letter(text, expected):
    assert mvbench_letter(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B. A red car", "B"),
        ("I think (A), no, the best answer is C because", "C"),
        ("first A: then (B) maybe", "B"),
        ("Dogs", "D"),
        ("none", None),
        (" . ", None),
    ],
)
def test_videommes_letter(text, expected):
    assert best_letter(text, "ABCD") == expected


def test_scores_of_free_answers():
    mark = SHORT.mark(question(target="Two dogs"), "two dogs.")
    assert (mark.score, mark.others) == (1, {"first_word": 1, "contains": 1, "word_f1": 1})
    mark = SHORT.mark(question(target="dog"), "It is a dog on the grass")
    assert (mark.score, mark.others["contains"], mark.others["first_word"]) == (0, 1, 0)
    assert SHORT.mark(question(target="cat"), "a category").others["contains"] == 0
    assert SHORT.mark(question(target="the"), "").others["contains"] == 0
    assert LONG.mark(question(target="A man walks"), "the man runs").score == pytest.approx(0.5)


@pytest.mark.parametrize("scorer", [TEXTVQA, VQA, GQA, MMBENCH, SCIENCEQA, NEXTQA, VIDEOMME, SHORT, LONG])
def test_a_question_without_an_answer_is_wrong(scorer):
    marked = scorer.marked(question(target="A", options=("x",), facts={"structural": "query"}), None)
    assert (marked.mark.score, marked.mark.parsed) == (0, None)
    assert all(value == 0 for value in metrics(scorer, [marked]).values())


def test_mvbench_divides_by_what_was_answered_too():
    rows = [("a", "A", "A"), ("a", "B", ""), ("b", "C", "(C)"), ("b", "D", "A")]
    marked = [
        MVBENCH.marked(question(id=str(i), target=t, categories={"task": c}), x) for i, (c, t, x) in enumerate(rows)
    ]
    assert metrics(MVBENCH, marked)["accuracy"] == 50
    assert MVBENCH.extras(marked) == {"accuracy_of_answered": pytest.approx(200 / 3), "mean_of_tasks": 50}
