"""Rules that read an option's letter out of an answer: MMBench, ScienceQA, NExT-QA, MVBench, Video-MME.

Each is the rule of one published program. They differ: the same answer can be right for one and wrong for another.
None stands for an answer without a letter, which is wrong: programs that guess a letter then have a random part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCDEFGH"

_MMBENCH_WRAPS = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","), (":", "."),
    (":", ")"), (":", ")."),
)  # fmt: skip


def mmbench_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter by VLMEvalKit's rule: a letter that stands alone, else the only option that the text contains.

    Args:
      text: the answer.
      options: their texts by letter, A to D.
    """
    if "Failed to obtain answer via API" not in text:
        words = text.split()
        found = [letter for letter in "ABCDE" if letter in words]
        article = "A" in words and len(words) > 3
        if len(found) == 1 and not article:
            return found[0]
        for before, after in _MMBENCH_WRAPS:
            wrapped = [letter for letter in "ABCDE" if f"{before}{letter}{after}" in words]
            if len(wrapped) == 1:
                return wrapped[0]
    contained = [letter for letter, option in options.items() if str(option).lower() in text.lower()]
    return contained[0] if len(contained) == 1 else None


def science_letter(text: str) -> str | None:
    """Returns the letter by LLaVA's `eval_science_qa.py`: the text itself, "X. …", or one "The answer is X."."""
    if text in ("A", "B", "C", "D", "E"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def nextqa_letter(text: str, options: Sequence[str]) -> str | None:
    """Returns the letter by MMMU's rule, which lmms-eval takes for NExT-QA; there, an answer without one is guessed.

    Args:
      text: the answer.
      options: their texts, in the order of the letters.
    """
    for sign in ",.!?;:'":
        text = text.strip(sign)
    text = f" {text} "
    letters = LETTERS[: len(options)]
    for form, look in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in letters if form.format(letter) in text]:
            return _last(found, [text.rfind(look.format(letter)) for letter in found])
    if len(text.split()) > 5:
        lower = text.lower()
        named = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in lower]
        if named:
            return _last(named, [lower.rfind(options[LETTERS.index(letter)].lower()) for letter in named])
    return None


def _last(letters: Sequence[str], positions: Sequence[int]) -> str:
    """Returns the letter with the highest position; of equal ones the first."""
    return letters[positions.index(max(positions))]


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def mvbench_letter(text: str) -> str | None:
    """Returns the letter by MVBench's rule in lmms-eval: "X. …", else the first of A to E that is a word in any case.

    The article "a" is such a word, and counts as A.
    """
    if match := re.match(r"^([A-E])\.\s*(.+)$", text.strip(), re.IGNORECASE):
        return match[1].upper()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma = re.search(r"\d,\d", text) is not None
    result = text
    for sign in _PUNCTUATION:
        result = result.replace(sign, "" if comma or f"{sign} " in text or f" {sign}" in text else " ")
    result = re.sub(r"\.(?!\d)", "", result, count=32)
    for sign in "'\")(":
        result = result.strip(sign)
    found = re.search(r"\b([A-E])\b", result.strip().lower(), re.IGNORECASE)
    return found[1].upper() if found else None


_PHRASES = (
    *(f"{which}answer is" for which in ("", "the ", "correct ", "the correct ", "best ", "the best ")),
    *(f"{which}option is" for which in ("correct ", "the correct ", "best ", "the best ")),
    *(f"{which}choice is" for which in ("", "the ", "correct ", "the correct ")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def best_letter(text: str, letters: Sequence[str]) -> str | None:
    """Returns the letter by lmms-eval's ranking of forms, which it takes for Video-MME.

    The order is: at the start; at the end; after a phrase such as "the answer is"; (X); X.; X:; X); X and a space;
    anywhere. Of several in one form the last one in the text counts.
    """
    if not text.strip():
        return None
    text = text.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    text = f" {text} "
    lower, bare = text.lower(), text.strip()
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        if bare.startswith(letter) and (len(bare) == 1 or not bare[1].isalpha()):
            found.append((10, 0, letter))
        if bare.endswith(letter) and (len(bare) == 1 or not bare[-2].isalpha()):
            found.append((9, len(text) - 1, letter))
        for phrase in _PHRASES:
            begin = lower.find(phrase)
            if begin >= 0 and (at := text.find(letter, begin + len(phrase))) >= 0:
                found.append((7, at, letter))
        for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
            if (at := text.rfind(form.format(letter))) >= 0:
                found.append((rank, at, letter))
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda each: each[:2])[2] if found else None
