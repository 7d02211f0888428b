"""Reads a judge's replies, and keeps them on disk by what was asked: nothing is asked twice."""

from __future__ import annotations

import ast
import json
import math
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.digests import json_digest
from videollava_jax.evaluation.judge.prompts import Reads


@dataclass(frozen=True)
class Verdict:
    """What a judge says about an answer.

    Attributes:
      right: whether it says yes; None where it says neither yes nor no, or is not asked.
      score: 0 to 5, where of 4.8 the authors' programs take 4; or a share, 0 to 1; or of a pair, 0 to 10.
      reference: the score of the reference in a pair.
    """

    right: bool | None
    score: float
    reference: float = 0.0


def mean(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """Returns the mean of several verdicts of one answer; a single one unchanged, with its yes or no.

    One that could not be read counts as everywhere: 0, next to a reference's 10. None where none could be read.
    """
    if len(verdicts) == 1 or not any(verdicts):
        return verdicts[0] if verdicts else None
    scores = [(one.score, one.reference) if one is not None else (0.0, 10.0) for one in verdicts]
    score, reference = (sum(values) / len(scores) for values in zip(*scores, strict=True))
    return Verdict(None, score, reference)


def parsed(reply: str, reads: Reads) -> Verdict | None:
    """Reads a reply as the authors' programs do; of a dictionary also the first one in the text, or JSON.

    Args:
      reply: the judge's text.
      reads: what is expected, see `Prompt`.

    Returns:
      The verdict; None if it cannot be read.
    """
    if reads == "share":
        share = _number(reply.split(" ")[0].strip())
        return Verdict(None, share) if share is not None and 0 <= share <= 1 else None
    if reads == "pair":
        grades = [_number(part) for part in reply.split("\n")[0].replace(",", " ").split(" ")]
        if len(grades) != 2 or grades[0] is None or grades[1] is None or not all(0 <= g <= 10 for g in grades if g):
            return None
        return Verdict(None, grades[1], grades[0])
    candidates = [reply.strip(), *re.findall(r"\{[^{}]*\}", reply)[:1]]
    for text in candidates:
        for read in (ast.literal_eval, json.loads):
            try:
                found = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
            if isinstance(found, dict) and (verdict := _verdict(found, reads == "match")) is not None:
                return verdict
    return None


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _verdict(found: Mapping[Any, Any], match: bool) -> Verdict | None:
    said, score = found.get("pred"), found.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float, str)):
        return None
    try:
        grade = int(score)
    except (ValueError, OverflowError):
        return None
    if not 0 <= grade <= 5 or (match and not isinstance(said, str)):
        return None
    if not match:
        return Verdict(None, grade)
    lower = str(said).lower()
    return Verdict(True if "yes" in lower else False if "no" in lower else None, grade)


class Replies:
    """Replies in an SQLite file, by the hash of what was asked: judge, messages, settings and the turn of asking."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._lock = path, threading.Lock()
        try:
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
                database.commit()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: expected the replies of a judge, got something else ({error})") from None

    def _open(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._path, timeout=60))

    def get(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the reply to what is asked, with its model and date; None if it was not asked before."""
        with self._lock, self._open() as database:
            row = database.execute("SELECT reply FROM replies WHERE key = ?", [json_digest(dict(asked))]).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put(self, asked: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        """Keeps a reply; it is on disk when this returns."""
        with self._lock, self._open() as database:
            values = [json_digest(dict(asked)), json.dumps(reply)]
            database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", values)
            database.commit()
