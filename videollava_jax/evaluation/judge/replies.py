"""Reads a judge's replies, and keeps them on disk by what was asked: nothing is asked twice."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.digests import json_digest


@dataclass(frozen=True)
class Verdict:
    """What a judge says about an answer.

    Attributes:
      right: whether it says yes; None where it says neither yes nor no, or only a score was asked for.
      score: 0 to 5; of 4.8 the authors' programs take 4.
    """

    right: bool | None
    score: int


def parsed(reply: str, *, match: bool) -> Verdict | None:
    """Reads a reply as the authors' programs do, a Python dictionary; else the first one in it, or JSON.

    Args:
      reply: the judge's text.
      match: whether yes or no is expected too.

    Returns:
      The verdict; None if it cannot be read.
    """
    candidates = [reply.strip(), *re.findall(r"\{[^{}]*\}", reply)[:1]]
    for text in candidates:
        for read in (ast.literal_eval, json.loads):
            try:
                found = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
            if isinstance(found, dict) and (verdict := _verdict(found, match)) is not None:
                return verdict
    return None


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
