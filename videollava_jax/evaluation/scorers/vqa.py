"""The answer normaliser of the VQA challenges, and accuracy over ten people's answers (VQAv2, VizWiz, TextVQA).

The rules are those of mmf's `EvalAIAnswerProcessor`, which LLaVA's and the authors' programs copy; its odd parts are
kept and named below, as a score must equal theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from videollava_jax.evaluation.question import Mark, Question
from videollava_jax.evaluation.scorers.scorer import Scorer

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32
"""How many full stops are removed: the programs pass `re.UNICODE`, which is 32, where `re.sub` takes a count."""
_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've
'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've
why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_TWO_APOSTROPHES = """
hadn't've he'd've it'd've couldn't've mightn't've shouldn't've she'd've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
"""


def _contractions() -> dict[str, str]:
    """Returns the table of contractions: what people type, with the apostrophes that belong there.

    Most keys are the word without any apostrophe; words with two may lack either one. The exceptions are those of the
    challenge's table; some of them correct nothing.
    """
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, middle, last = word.split("'")
        table |= {f"{first}{middle}'{last}": word, f"{first}'{middle}{last}": word}
    table |= {"somebody'd": "somebodyd", "somebodyll": "somebody'll", "somebodys": "somebody's"}
    table |= {"let's": "let's", "she's": "she's", "yall'll": "y'all'll", "y'allll": "y'all'll"}
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return table | dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")


_CONTRACTIONS = _contractions()


def without_punctuation(text: str) -> str:
    """Removes punctuation, or replaces it by spaces.

    One rule holds for the whole text: a sign is removed everywhere if somewhere it stands next to a space, and every
    sign is if there is a comma between digits. A full stop goes unless a digit follows, whatever stands before it.
    """
    comma = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        removed = comma or f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if removed else " ")
    return _FULL_STOP.sub("", result, count=_MOST_STOPS)


def without_articles(text: str) -> str:
    """Writes number words as digits and contractions with apostrophes, and drops articles; lower case."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalised(text: str) -> str:
    """Returns an answer as the challenges compare it: the whole of `EvalAIAnswerProcessor`."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return without_articles(without_punctuation(text))


def evaluated(text: str) -> str:
    """Returns an answer as the VQA challenge's own program compares it: `normalised` without its first step."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return without_articles(without_punctuation(text))


def agreement(answer: str, given: Sequence[str]) -> float:
    """Returns the accuracy of an answer, 0 to 1: with each of the people left out, a third for each other who agrees.

    Args:
      answer: normalised.
      given: the people's answers, normalised; at least one.
    """
    same = sum(answer == other for other in given)
    return sum(min(1.0, (same - (answer == left_out)) / 3) for left_out in given) / len(given)


def _textvqa(question: Question, text: str) -> Mark:
    answer, given = normalised(text), [normalised(other) for other in question.target or ()]
    return Mark(score=agreement(answer, given) if given else 0.0, parsed=answer)


def _vqa(question: Question, text: str) -> Mark:
    upload = normalised(text)
    if question.target is None:
        return Mark(score=0.0, parsed=upload)
    given = [evaluated(other) for other in question.target]
    raw = agreement(evaluated(text), given)
    return Mark(score=agreement(evaluated(upload), given), parsed=upload, others={"accuracy_unprocessed": raw})


TEXTVQA = Scorer(mark=_textvqa)
"""TextVQA's accuracy, as `TextVQAAccuracyEvaluator`; VizWiz's by lmms-eval is the same."""
VQA = Scorer(mark=_vqa)
"""VQAv2's: of the answers that the authors upload, which are `normalised` before the challenge's program reads them; as
`accuracy_unprocessed` of the answers as the model gave them, which is what lmms-eval computes."""
