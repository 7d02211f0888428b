r"""The turns of a sample from its JSON, by the keys of LLaVA, ShareGPT and LLaMA-Factory. No JAX in here.

    {"image": path or paths, "video": …, "conversations": [{"from": "human", "value": "<video>\nWhat?"}, …]}
    {"images": paths, "videos": paths, "system": …, "messages": [{"role": "user", "content": "<video>What?"}, …]}

What would change the meaning of a sample and is not read is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from videollava_jax.processing.given_media import describe
from videollava_jax.processing.media_fields import media_under, require_no_other_media
from videollava_jax.processing.prompt import Role, Turn
from videollava_jax.processing.segments import MEDIA_TOKENS, Media, MediaKind
from videollava_jax.training.data.skips import SampleError

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_REFUSED = ("tools", "functions", "audio", "audios", "chosen", "rejected", "kto_tag")
"""Keys of samples that ask for what is not learnt here: tools, sound, preferences."""
_TEXTS = ("id", "conversations", "messages", "system")


def turns_of(entry: Any, root: Path | Mapping[MediaKind, Path], *, keep_empty: bool = False) -> tuple[Turn, ...]:
    """Returns the checked turns of a sample: the user's and the assistant's in alternation, perhaps after a system's.

    Args:
        entry: the sample's JSON.
        root: the directory that paths of media are relative to; or one for each kind.
        keep_empty: whether a turn may be empty.

    Raises:
        SampleError: the sample cannot be learnt from.
    """
    if not isinstance(entry, Mapping):
        raise SampleError(f"expected an object, got {describe(entry)}")
    for key in _REFUSED:
        if entry.get(key) not in (None, "", [], "[]"):
            raise SampleError(f"{key!r} is not learnt here: expected it to be left out")
    messages = _messages(entry)
    sources = {kind: _sources(entry, kind, root if isinstance(root, Path) else root[kind]) for kind in MEDIA_TOKENS}
    if not any(sources.values()):
        _as_sample_error(require_no_other_media, entry, _TEXTS)
    questions = [text for role, text in messages if role == "user"]
    for kind, given in sources.items():
        _check_placeholders(questions, kind, len(given))
    left = {kind: iter(given) for kind, given in sources.items() if given}
    return tuple(_turn(i, role, text, left, keep_empty) for i, (role, text) in enumerate(messages))


def _turn(i: int, role: Role, text: str, left: Mapping[MediaKind, Iterator[str]], keep_empty: bool) -> Turn:
    """A turn whose media, of the kinds that the sample has, stand in the places of their placeholders."""
    kinds = {MEDIA_TOKENS[kind]: kind for kind in left} if role == "user" else {}
    if not kinds or not any(placeholder in text for placeholder in kinds):
        if not text.strip() and not keep_empty:
            raise SampleError(f"turn {i} of the conversation is empty")
        return Turn(role, (text,))
    parts = re.split(f"({'|'.join(kinds)})", text)
    content = [Media(kinds[part], next(left[kinds[part]])) if part in kinds else part for part in parts]
    return Turn(role, tuple(part for part in content if part), verbatim=True)


# ── messages ──


def _messages(entry: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """Returns roles and texts: a system prompt if there is one, then the user's first, in alternation."""
    keys = [key for key in ("conversations", "messages") if entry.get(key) is not None] or ["conversations"]
    given = entry.get(keys[0])
    if len(keys) > 1:
        raise SampleError("expected turns under 'conversations' or 'messages', got both")
    if not isinstance(given, list) or not given:
        keys_found = f"an object with the keys {', '.join(map(repr, entry))[:200] or '(none)'}"
        found = "an empty one" if given == [] else keys_found if given is None else describe(given)
        raise SampleError(f"expected a list of turns under 'conversations' or 'messages', got {found}")
    messages = [_message(message, i) for i, message in enumerate(given)]
    if system := entry.get("system"):
        messages.insert(0, ("system", _checked(system, "'system'")))
    start = int(messages[0][0] == "system")
    if len(messages) > start and messages[start][0] == "assistant":
        del messages[start]
    for i, (role, _) in enumerate(messages[start:]):
        if role == "system":
            raise SampleError("expected one system prompt at most, and before all turns")
        if role != ("user", "assistant")[i % 2]:
            raise SampleError("expected human and gpt to take turns, got two turns of one of them in a row")
    if len(messages) < start + 2:
        raise SampleError("there is no answer to learn: expected a turn from gpt after one from human")
    return messages


def _message(message: Any, i: int) -> tuple[Role, str]:
    if not isinstance(message, Mapping):
        raise SampleError(f"turn {i}: expected an object with 'from' and 'value', got {describe(message)}")
    said, text = ("role", "content") if "role" in message or "content" in message else ("from", "value")
    role = message.get(said)
    if not isinstance(role, str) or role not in ROLES:
        names = "'user', 'assistant' or 'system'" if said == "role" else "'human', 'gpt' or 'system'"
        raise SampleError(f"turn {i}: expected {names} under {said!r}, got {repr(role)[:80]}")
    if message.get("tool_calls") or message.get("weight", 1) not in (1, None):
        raise SampleError(f"turn {i}: 'tool_calls' and 'weight' are not learnt here: expected them to be left out")
    value = message.get(text)
    if not isinstance(value, str):
        raise SampleError(f"turn {i}: expected a string under {text!r}, got {describe(value)}")
    return ROLES[role], _checked(value, f"turn {i}: the text")


def _checked(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise SampleError(f"expected a string under {what}, got {describe(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which tokenizers refuse
        raise SampleError(f"{what} is not Unicode") from None
    return text


# ── media ──


def _sources(entry: Mapping[str, Any], kind: MediaKind, root: Path) -> list[str]:
    key, paths = _as_sample_error(media_under, entry, kind)
    for path in paths:
        if not isinstance(path, str) or not path:
            raise SampleError(f"expected a path under {key!r}, or a list of them; got {describe(path)}")
    try:
        return [os.fsdecode(os.fsencode(os.path.join(root, path))) for path in paths]
    except UnicodeEncodeError:
        raise SampleError(f"a path under {key!r} is not Unicode") from None


def _as_sample_error(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        raise SampleError(str(error)) from None


def _check_placeholders(questions: list[str], kind: MediaKind, media: int) -> None:
    placeholder = MEDIA_TOKENS[kind]
    if media:
        count = sum(text.count(placeholder) for text in questions)
        if count != media:
            raise SampleError(f"expected a {placeholder} for each {kind}, got {count} of them and {media} {kind}s")
    elif any(text.strip().startswith(placeholder) or text.strip().endswith(placeholder) for text in questions):
        raise SampleError(f"a question has a {placeholder}, and there is no path under {kind!r} or '{kind}s'")
