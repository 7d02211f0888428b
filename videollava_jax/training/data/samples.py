r"""LLaVA's JSON to samples, and samples to tokens and labels. No JAX in here.

    [{"id": …, "image": path or paths, "video": path or paths,
      "conversations": [{"from": "human", "value": "<video>\nWhat is this?"}, {"from": "gpt", "value": …}, …]}, …]

A sample with neither "image" nor "video" is text alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from videollava_jax.config import require_whole_windows
from videollava_jax.processing.given_media import describe, known_frames
from videollava_jax.processing.media_processor import DEFAULT_FRAME_SAMPLING
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import PromptTemplate, Role, Turn, render
from videollava_jax.processing.segments import MEDIA_TOKENS, Media, MediaKind
from videollava_jax.training.data.skips import BadSample, SampleError

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}
_CHUNK = 2**22
"""Characters of a JSON list that are read at a time."""
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from.

    Attributes:
        index: its number in the data, counted from 0 through all files, bad samples included.
        id: the sample's id in the data, as text; empty where it has none.
        turns: the user's and the assistant's in alternation; media, as paths, are in the user's.
    """

    index: int
    id: str
    turns: tuple[Turn, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        """Its media, in the order of their placeholders in the prompt."""
        return tuple(medium for turn in self.turns for medium in turn.media)


# ── JSON to samples ──


def read_samples(
    paths: Iterable[str | os.PathLike[str]], media_root: str | os.PathLike[str] | None = None
) -> Iterator[Sample | BadSample]:
    """Yields the samples of some files, in order, each read when it is asked for.

    As in the authors' training code, an answer before the first question is dropped, and the media of a turn come
    before its text. `<image>` in a sample without images is text, unless a question begins or ends with it:
    then the sample has lost its images and is bad.

    Args:
        paths: files with a JSON list, or with a JSON object on each line.
        media_root: the directory that paths of media are relative to; None for that of the file that names them.

    Raises:
        ValueError: a file is not JSON. A bad line among good ones is a bad sample.
        OSError: a file cannot be read.
    """
    index = 0
    for path in map(Path, paths):
        root = path.parent if media_root is None else Path(media_root)
        for entry in _entries(path):
            yield _parsed(index, entry, root)
            index += 1


def _parsed(index: int, entry: Any, root: Path) -> Sample | BadSample:
    name = _name(entry)
    if isinstance(entry, SampleError):
        return BadSample(index, name, str(entry))
    try:
        return Sample(index, name, _turns(entry, root))
    except SampleError as error:
        return BadSample(index, name, str(error))


def _name(entry: Any) -> str:
    """Returns the id of a sample as printable text."""
    given = entry.get("id") if isinstance(entry, Mapping) else None
    text = "" if given is None else str(given)[:200]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _turns(entry: Any, root: Path) -> tuple[Turn, ...]:
    if not isinstance(entry, Mapping):
        raise SampleError(f"expected an object, got {describe(entry)}")
    messages = _messages(entry.get("conversations"))
    questions = [text for role, text in messages if role == "user"]
    sources = {kind: _sources(entry, kind, root) for kind in MEDIA_TOKENS}
    for kind, given in sources.items():
        _check_placeholders(questions, kind, len(given))
    left = {kind: iter(given) for kind, given in sources.items() if given}
    turns = []
    for i, (role, text) in enumerate(messages):
        media: list[Media] = []
        for kind in left if role == "user" else ():
            placeholder = MEDIA_TOKENS[kind]
            media += [Media(kind, next(left[kind])) for _ in range(text.count(placeholder))]
            text = text.replace(placeholder, "")
        if media:
            text = text.strip()
        elif not text.strip():
            raise SampleError(f"turn {i} of the conversation is empty")
        turns.append(Turn(role, (text,) if text else (), tuple(media)))
    return tuple(turns)


def _messages(given: Any) -> list[tuple[Role, str]]:
    """Returns roles and texts, the user's first, in alternation."""
    if not isinstance(given, list) or not given:
        found = "an empty one" if given == [] else describe(given)
        raise SampleError(f"expected a list of turns under 'conversations', got {found}")
    messages = [_message(message, i) for i, message in enumerate(given)]
    if messages[0][0] == "assistant":
        del messages[0]
    for i, (role, _) in enumerate(messages):
        if role != ("user", "assistant")[i % 2]:
            raise SampleError("expected human and gpt to take turns, got two turns of one of them in a row")
    if len(messages) < 2:
        raise SampleError("there is no answer to learn: expected a turn from gpt after one from human")
    return messages


def _message(message: Any, i: int) -> tuple[Role, str]:
    if not isinstance(message, Mapping):
        raise SampleError(f"turn {i}: expected an object with 'from' and 'value', got {describe(message)}")
    role, text = message.get("from"), message.get("value")
    if not isinstance(role, str) or role not in ROLES:
        raise SampleError(f"turn {i}: expected 'human' or 'gpt' under 'from', got {repr(role)[:80]}")
    if not isinstance(text, str):
        raise SampleError(f"turn {i}: expected a string under 'value', got {describe(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which tokenizers refuse
        raise SampleError(f"turn {i}: the text is not Unicode") from None
    return ROLES[role], text


def _sources(entry: Mapping[str, Any], kind: MediaKind, root: Path) -> list[str]:
    given = entry.get(kind)
    paths = given if isinstance(given, list) else [] if given is None else [given]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise SampleError(f"expected a path under {kind!r}, or a list of them; got {describe(path)}")
    try:
        return [os.fsdecode(os.fsencode(os.path.join(root, path))) for path in paths]
    except UnicodeEncodeError:
        raise SampleError(f"a path under {kind!r} is not Unicode") from None


def _check_placeholders(questions: list[str], kind: MediaKind, media: int) -> None:
    placeholder = MEDIA_TOKENS[kind]
    if media:
        count = sum(text.count(placeholder) for text in questions)
        if count != media:
            raise SampleError(f"expected a {placeholder} for each {kind}, got {count} of them and {media} {kind}s")
    elif any(text.strip().startswith(placeholder) or text.strip().endswith(placeholder) for text in questions):
        raise SampleError(f"a question has a {placeholder}, and there is no path under {kind!r}")


# ── files to entries ──


def _entries(path: Path) -> Iterator[Any]:
    """Yields the elements of a file's list or of its lines, and a `SampleError` for each line that is not JSON."""
    # Bytes that are not UTF-8 become halves of surrogate pairs, so that only the sample that has them is bad.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        text = _Text(file)
        if text.peek() == "[":
            try:
                yield from text.listed()
            except ValueError as error:
                raise ValueError(f"{path}: expected a JSON list, or a JSON object a line; {error}") from None
            return
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _line(line, number)


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return SampleError(f"line {number} is not JSON ({error})")


class _Text:
    """A file's text, read piece by piece: only the value that is being parsed and a piece after it are in memory.

    Parsed as a whole, a list would take several times the memory of its file.
    """

    def __init__(self, file: TextIO):
        self._file, self._text, self._at = file, "", 0

    def peek(self) -> str:
        """Returns the next character that is not a space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def listed(self) -> Iterator[Any]:
        """Yields the elements of the list that begins here.

        Raises:
            ValueError: this is not a list, or something follows it.
        """
        count, expected = 0, "["
        while (found := self.peek()) and found in expected:
            self._at += 1
            if found == "]":
                break
            if self.peek() != "]" or found == ",":
                try:
                    yield self._value()
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"after {count} elements: {error}") from None
                count += 1
            expected = ",]"
        if found != "]" or self.peek():
            raise ValueError(f"after {count} elements: expected {' or '.join(expected)}, or the end after a ]")

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            # A number could continue in the next piece.
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _more(self) -> bool:
        piece = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


def _decode(text: str, at: int) -> tuple[Any, int]:
    return json.JSONDecoder().raw_decode(text, at)


# ── samples to tokens ──


@dataclass(frozen=True, kw_only=True)
class MediaTokens:
    """Token ids and lengths of media in a sample.

    Attributes:
        ids: the token ids of "image" and "video".
        lengths: the number of tokens of an image, and of a video.
        frames: the number of frames of a video.
        frame_sampling: the rule that chooses the frames.
    """

    ids: Mapping[MediaKind, int]
    lengths: Mapping[MediaKind, int]
    frames: int
    frame_sampling: Any

    @classmethod
    def of(cls, processor: VideoLlavaProcessor, frame_sampling: Any = DEFAULT_FRAME_SAMPLING) -> MediaTokens:
        """Returns the ids and lengths that a processor gives.

        Raises:
            ValueError: the number of frames depends on the video, or the video tower does not take that number.
        """
        frames = known_frames("", frame_sampling)
        if frames is None:
            raise ValueError(f"frame_sampling: expected the same number of frames of every video, got {frame_sampling}")
        require_whole_windows("frame_sampling", frames, processor.frame_window)
        lengths: dict[MediaKind, int] = {
            "image": processor.tokens_per_image,
            "video": frames * processor.tokens_per_frame,
        }
        return cls(ids=processor.encoder.media_ids, lengths=lengths, frames=frames, frame_sampling=frame_sampling)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A sample as the decoder reads it.

    Attributes:
        ids: int32 [T], with a media token repeated for each feature vector of a medium.
        labels: int32 [T], equal to `ids` where the assistant speaks, `</s>` included, and -100 elsewhere. They are not
            shifted: the target at position i is the label at i + 1.
        kinds: "image" or "video" for each medium.
        spans: the positions [start, stop) of each medium.
        truncated: whether text was cut off at the end.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    kinds: tuple[MediaKind, ...]
    spans: tuple[tuple[int, int], ...]
    truncated: bool


def tokenise(
    sample: Sample,
    processor: VideoLlavaProcessor,
    max_tokens: int,
    *,
    frame_sampling: Any = DEFAULT_FRAME_SAMPLING,
    template: str | PromptTemplate | None = None,
) -> Tokens:
    """Tokenises a sample. Its media are counted, not read.

    Args:
        max_tokens: longer samples are cut on the right, as in the authors' code.
        frame_sampling: the rule that chooses the frames of a video.
        template: of the prompt; None for the processor's own.

    Raises:
        SampleError: the cut would reach into a medium, or leave no answer.
        ValueError: as `MediaTokens.of`.
    """
    media = MediaTokens.of(processor, frame_sampling)
    pieces = render(sample.turns, template or processor.template, add_generation_prompt=False)
    segments = processor.encoder.encode(pieces)
    kinds = tuple(medium.kind for medium in segments.media)
    whole = segments.expand([media.lengths[kind] for kind in kinds], media.ids)
    length = len(whole.input_ids)
    end = max((stop for _, stop in whole.media_spans), default=0)
    if length > max_tokens and end > max_tokens:
        raise SampleError(f"its media reach to token {end}, over the {max_tokens} tokens that a sample may have")
    ids, labels = (array[:max_tokens].astype(np.int32) for array in (whole.input_ids, whole.labels))
    if not whole.answer[:max_tokens].any():
        raise SampleError(f"no answer begins within the first {max_tokens} of its {length} tokens")
    return Tokens(ids, labels, kinds, whole.media_spans, length > max_tokens)
