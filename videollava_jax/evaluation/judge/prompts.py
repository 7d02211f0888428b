"""What a judge is asked. The words are ours; the authors' own can be read from their programs, which users bring.

A prompt is pinned by its digest, which stands in the report: scores by different prompts are not comparable.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from videollava_jax.evaluation.digests import json_digest

FIELDS = ("question", "answer", "pred", "question1", "question2", "pred1", "pred2", "context")
"""What may stand in braces in a prompt, by the names that the authors' programs give them."""
Reads = Literal["match", "score", "share", "pair"]
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")
_SAY_MATCH = (
    "Reply with a Python dictionary and nothing else, such as {'pred': 'yes', 'score': 4}: 'pred' is 'yes' or 'no'"
)
_PAIR = "Question: {question}\nCorrect answer: {answer}\nPredicted answer: {pred}\n\n"


@dataclass(frozen=True)
class Prompt:
    """A prompt of the judge.

    Attributes:
      messages: roles and texts, with fields in braces.
      source: where it is from, for the report.
      reads: how its replies are read: "match", a dictionary with yes or no and a score; "score", one with a score;
        "share", a number from 0 to 1; "pair", two numbers, of the reference and of the answer.
    """

    messages: tuple[tuple[str, str], ...]
    source: str
    reads: Reads = "score"

    @property
    def digest(self) -> str:
        """The hash of its messages."""
        return json_digest(self.messages)

    def fill(self, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """Returns the messages with fields in their places; braces in the fields' texts mean nothing."""
        return [
            {"role": role, "content": _FIELD.sub(lambda match: fields.get(match[1], ""), text)}
            for role, text in self.messages
        ]


def _scored(what: str, pair: str = _PAIR) -> Prompt:
    return Prompt(
        (
            ("system", f"You grade answers to questions about videos. {what}"),
            (
                "user",
                f"{pair}Grade from 0 to 5, where 5 is best. Reply with a Python dictionary and nothing else, such as "
                "{'score': 4}; 'score' is a whole number.",
            ),
        ),
        "videollava",
    )


PROMPTS: dict[str, Prompt] = {
    "match": Prompt(
        (
            (
                "system",
                "You compare answers to questions about videos. Decide whether the predicted answer means the same as "
                "the correct one; synonyms and other wordings of the same thing match.",
            ),
            ("user", f"{_PAIR}{_SAY_MATCH}, 'score' a whole number from 0 to 5, where 5 is the best match."),
        ),
        "videollava",
        "match",
    ),
    "correctness": _scored("Judge whether what the predicted answer says is true, given the correct answer."),
    "detail": _scored("Judge whether the predicted answer is complete and specific, given the correct answer."),
    "context": _scored("Judge whether the predicted answer fits the context that the correct answer shows."),
    "temporal": _scored("Judge whether the predicted answer has the order and times of events of the correct answer."),
    "consistency": _scored(
        "Judge whether two predicted answers to similar questions agree with each other and with the correct answer.",
        "Question 1: {question1}\nQuestion 2: {question2}\nCorrect answer: {answer}\nPredicted answer 1: {pred1}\n"
        "Predicted answer 2: {pred2}\n\n",
    ),
    "mmvet": Prompt(
        (
            ("system", "You grade answers to questions about images."),
            (
                "user",
                f"{_PAIR}Parts of the correct answer that <AND> joins are all needed; of those that <OR> joins one is "
                "enough. Reply with a number from 0.0 (wrong) over 0.1, 0.2, … to 1.0 (right), and nothing else.",
            ),
        ),
        "videollava",
        "share",
    ),
    "relative": Prompt(
        (
            ("system", "You compare two answers to a question about an image, which is described to you."),
            (
                "user",
                "Description: {context}\nQuestion: {question}\n\nAnswer 1: {answer}\n\nAnswer 2: {pred}\n\nGrade how "
                "helpful, relevant, accurate and detailed each is, from 1 to 10. The first line of your reply has the "
                "two grades alone, with a space between them. Explain them below. Their order must not matter.",
            ),
        ),
        "videollava",
        "pair",
    ),
}
"""By the names that tasks ask for."""


def read_prompt(path: Path, reads: Reads) -> Prompt:
    """Reads a prompt: a JSON list of messages, or one of the authors' programs, which is parsed and not run.

    Args:
      path: of the file.
      reads: how its replies are read.

    Raises:
      ValueError: the file has no messages, or none of their texts has a field.
    """
    text = path.read_text(encoding="utf-8")
    messages = _of_program(text, path) if path.suffix == ".py" else _of_json(text, path)
    if not any(_FIELD.search(content) for _, content in messages):
        raise ValueError(f"{path}: expected {{question}}, {{answer}} and {{pred}} in the messages, got none of them")
    return Prompt(tuple(messages), path.name, reads)


def _of_json(text: str, path: Path) -> list[tuple[str, str]]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON list of messages, got something else ({error})") from None
    if not isinstance(given, list) or not given or not all(_is_message(each) for each in given):
        raise ValueError(
            f'{path}: expected a list of messages such as {{"role": "user", "content": "… {{question}} …"}}'
        )
    return [(each["role"], each["content"]) for each in given]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _of_program(text: str, path: Path) -> list[tuple[str, str]]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path}: not a Python program ({error.msg}, line {error.lineno})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "messages" and isinstance(node.value, ast.List):
            return [_message(item, path) for item in node.value.elts]
    raise ValueError(f"{path}: expected a call with messages=[…], as in the authors' programs, got none")


def _message(node: ast.expr, path: Path) -> tuple[str, str]:
    if isinstance(node, ast.Dict):
        found = {
            key.value: value for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)
        }
        role, content = found.get("role"), found.get("content")
        if isinstance(role, ast.Constant) and content is not None:
            return str(role.value), _content(content, path)
    raise ValueError(f"{path}: expected messages with 'role' and 'content', got {ast.unparse(node)[:100]}")


def _content(node: ast.expr, path: Path) -> str:
    parts: Sequence[ast.expr] = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = []
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            texts.append(part.value)
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id in FIELDS:
            texts.append(f"{{{part.value.id}}}")
        else:
            raise ValueError(f"{path}: expected texts with {', '.join(FIELDS)}, got {ast.unparse(part)[:100]}")
    return "".join(texts)
