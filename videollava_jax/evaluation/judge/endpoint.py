"""Asks a judge over HTTP: an endpoint of OpenAI's chat completions, with bounded retries."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.judge.prompts import Prompt
from videollava_jax.evaluation.judge.replies import Replies, Verdict, mean, parsed

_MOST_BYTES = 2**20
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same request may succeed."""
_REFUSED = (400, 413, 422)
"""Statuses of a request that is refused for what it says: a prompt that is too long, or that a filter stops."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Item:
    """An answer to be judged.

    Attributes:
      unit: whose it is.
      prompt: the name of the prompt.
      fields: what the prompt's fields hold.
    """

    unit: str
    prompt: str
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge, pinned.

    Attributes:
      url: of the API, such as https://api.openai.com/v1; `/chat/completions` is added.
      model: the judge's name there.
      prompts: by the names that tasks ask for.
      cache: the file of replies.
      key: sent as a bearer token; "" for none. It is in no file.
      temperature: of the judge; None sends none, as the authors' programs do.
      max_tokens: of a reply.
      runs: how often each answer is judged; its score is the mean.
      tries: how often a reply that cannot be read is asked for again, in all.
      retries: how often a request that failed is sent again.
      seconds: that a request may take.
      workers: how many requests are under way at a time.
      pause: seconds before the first request is sent again; doubled each time.
    """

    url: str
    model: str
    prompts: Mapping[str, Prompt]
    cache: Path
    key: str = field(default="", repr=False)
    temperature: float | None = 0.0
    max_tokens: int = 256
    runs: int = 1
    tries: int = 3
    retries: int = 5
    seconds: float = 60.0
    workers: int = 8
    pause: float = 1.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.netloc)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"the judge's URL: expected one such as http://localhost:8000/v1, got {self.url!r}")
        if self.runs > 1 and any(prompt.reads == "match" for prompt in self.prompts.values()):
            raise ValueError(f"the judge's runs: yes and no have no mean; expected 1, got {self.runs}")

    def settings(self) -> dict[str, Any]:
        """Returns what is pinned, for the report."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "tries": self.tries,
            **({"runs": self.runs} if self.runs > 1 else {}),
            "prompts": {name: {"digest": p.digest, "source": p.source} for name, p in sorted(self.prompts.items())},
        }

    def judged(self, items: Sequence[Item], done: Callable[[int], None] = lambda _: None) -> Judged:
        """Judges answers; what was asked before is read from disk.

        Args:
          items: with different units for each prompt.
          done: called with the number of items that are done.

        Raises:
          OSError: the endpoint does not answer; replies so far are kept.
          ValueError: it refuses, or answers in another protocol.
        """
        replies = Replies(self.cache)
        result = Judged()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="judge")
        try:
            found = pool.map(lambda item: self._judge(item, replies), items)
            for number, (item, one) in enumerate(zip(items, found, strict=True), 1):
                result.add(item, one)
                done(number)
            if items and len(result.refused) == len(items):
                raise ValueError(next(iter(result.refused.values())))
        finally:
            pool.shutdown(cancel_futures=True)
        return result

    def _judge(self, item: Item, replies: Replies) -> _Asked:
        prompt = self.prompts[item.prompt]
        request = {"model": self.model, "messages": prompt.fill(item.fields), "max_tokens": self.max_tokens}
        if self.temperature is not None:
            request["temperature"] = self.temperature
        asked = _Asked()
        for run in range(self.runs):
            try:
                asked.runs.append(self._verdict(request, prompt, run, replies, asked.replies))
            except _Refused as error:
                asked.refused = str(error)
                break
        return asked

    def _verdict(
        self, request: Mapping[str, Any], prompt: Prompt, run: int, replies: Replies, given: list[Mapping[str, Any]]
    ) -> Verdict | None:
        """Returns the verdict of one run, None where no reply could be read; adds the replies to `given`."""
        for turn in range(self.tries):
            asked = {**request, "turn": turn, **({"run": run} if run else {})}
            reply = replies.get(asked)
            if reply is None:
                reply = self._ask(request)
                replies.put(asked, reply)
            given.append(reply)
            if (verdict := parsed(reply["text"], prompt.reads)) is not None:
                return verdict
        return None

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json", "User-Agent": "videollava"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        opener = urllib.request.build_opener(_NoRedirects)
        last = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.pause * 2 ** (attempt - 1), 60.0))
            try:
                sent = urllib.request.Request(url, json.dumps(request).encode(), headers, method="POST")
                with opener.open(sent, timeout=self.seconds) as response:
                    return self._reply(response.read(_MOST_BYTES), url)
            except urllib.error.HTTPError as error:
                last = f"status {error.code}: {error.read(2000).decode('utf-8', 'replace').strip()[:300]}"
                if error.code in _REFUSED:
                    raise _Refused(f"the judge at {url} refuses with {last}") from None
                if error.code not in _AGAIN:
                    raise ValueError(f"the judge at {url} refuses with {last}") from None
            except (OSError, http.client.HTTPException) as error:
                last = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise OSError(
            f"the judge at {url} did not answer {self.retries + 1} times; the last: {last}. Its replies so far are "
            "kept: the same command goes on from there"
        )

    def _reply(self, body: bytes, url: str) -> dict[str, Any]:
        try:
            found = json.loads(body)
            text = found["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            got = body[:200].decode("utf-8", "replace")
            raise ValueError(f"the judge at {url}: expected a chat completion, got {got!r}") from None
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        return {"text": text if isinstance(text, str) else "", "model": str(found.get("model", "")), "date": date}


class _Refused(ValueError):
    """One request is refused; others may be answered."""


@dataclass
class _Asked:
    runs: list[Verdict | None] = field(default_factory=list)
    replies: list[Mapping[str, Any]] = field(default_factory=list)
    refused: str = ""


@dataclass
class Judged:
    """The verdicts of a judge.

    Attributes:
      verdicts: by unit and prompt, the means of all runs; None where no reply could be read.
      runs: the verdicts of each run, likewise.
      replies: the raw replies, likewise.
      refused: why the endpoint refused to judge, likewise.
      models, dates: that the endpoint said, and on which it was asked.
    """

    verdicts: dict[tuple[str, str], Verdict | None] = field(default_factory=dict)
    runs: dict[tuple[str, str], list[Verdict | None]] = field(default_factory=dict)
    replies: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)

    def add(self, item: Item, asked: _Asked) -> None:
        """Adds what was said about an answer."""
        self.verdicts[item.unit, item.prompt] = None if asked.refused else mean(asked.runs)
        self.runs[item.unit, item.prompt] = asked.runs
        self.replies[item.unit, item.prompt] = [reply["text"] for reply in asked.replies]
        if asked.refused:
            self.refused[item.unit, item.prompt] = asked.refused
        self.models |= {reply["model"] for reply in asked.replies}
        self.dates |= {reply["date"] for reply in asked.replies}

    def counts(self) -> dict[str, int]:
        """Returns how many answers were judged, how many replies were read late or not at all, how many refused."""
        read = {key for key, verdict in self.verdicts.items() if verdict is not None}
        late = sum(len(self.replies[key]) > len(self.runs[key]) for key in read)
        unread = sum(verdict is None for verdict in self.verdicts.values()) - len(self.refused)
        refused = len(self.refused)
        return {"judged": len(self.verdicts), "asked_again": late, "unparsed": unread, "refused": refused}
