"""Tokenises prompts into segments, text ids │ media │ text ids, without special tokens in users' texts. No JAX.

    pieces ──encode──▶ segments ──expand──▶ token ids, labels

`<video>` or `</s>` typed by a user are ordinary characters. Media and the ends of answers are separate pieces, so they
are never searched for in strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from videollava_jax.processing.room import TooLong
from videollava_jax.processing.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, PlainEncoder, affixes, require_unicode

MediaKind = Literal["image", "video"]
AfterMedia = Literal["continued", "anew"]
AfterEnd = Literal["continued", "anew", "trimmed"]
MEDIA_TOKENS: dict[MediaKind, str] = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}
IGNORED_LABEL = -100
_Before = Literal["start", "medium", "end"]
"""What a text stands after: the start of a prompt, a medium, or `</s>`."""


@dataclass(frozen=True)
class Media:
    """An image or a video in a prompt.

    Attributes:
        kind: "image" or "video".
        source: a path, an array or frames; None until `Segments.with_sources` sets it.
        frame_join: the text between the frames of a video; usually empty.
        join_ids: its token ids, which `SegmentEncoder.encode` sets.
    """

    kind: MediaKind
    source: Any = None
    frame_join: str = ""
    join_ids: tuple[int, ...] = ()

    def text_tokens(self, frames: int) -> int:
        """Returns how many tokens of text stand between the frames of a video; 0 for an image."""
        return len(self.join_ids) * (frames - 1) if self.kind == "video" else 0


@dataclass(frozen=True)
class Answer:
    """Text that the model must produce."""

    text: str


@dataclass(frozen=True)
class EndOfAnswer:
    """The `</s>` after an answer, which the model must produce too."""


Piece = str | Answer | EndOfAnswer | Media


@dataclass(frozen=True)
class TextIds:
    """Token ids of text without media; `answer[i]` says whether the model must produce `ids[i]`."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]


@dataclass(frozen=True)
class Expanded:
    """A prompt as token ids.

    Attributes:
        input_ids: int64 [T]; a medium is its token, once for each of its features.
        answer: bool [T], whether the assistant said this token, including `</s>`.
        media_spans: the positions [start, stop) of each medium, in order, with the text between its frames.
    """

    input_ids: np.ndarray[Any, np.dtype[np.int64]]
    answer: np.ndarray[Any, np.dtype[np.bool_]]
    media_spans: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Labels for training, int64 [T]: the ids of answers, and -100 for media, questions and the template."""
        return np.where(self.answer, self.input_ids, np.int64(IGNORED_LABEL))


@dataclass(frozen=True)
class Segments:
    """A tokenised prompt: text ids │ media │ text ids. The text ids include special tokens such as BOS."""

    parts: tuple[TextIds | Media, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        """The media, in the order of their placeholders."""
        return tuple(part for part in self.parts if isinstance(part, Media))

    @property
    def text_length(self) -> int:
        """The number of text tokens."""
        return sum(len(part.ids) for part in self.parts if isinstance(part, TextIds))

    def with_sources(self, sources: Iterable[Any]) -> Segments:
        """Returns the same prompt with the sources of its media set, in order."""
        iterator = iter(sources)
        return Segments(
            tuple(replace(part, source=next(iterator)) if isinstance(part, Media) else part for part in self.parts)
        )

    def split(self) -> tuple[Segments, Segments]:
        """Splits after the last medium: returns the part up to it and the text after it. The first may be empty."""
        cut = max((i + 1 for i, part in enumerate(self.parts) if isinstance(part, Media)), default=0)
        return Segments(self.parts[:cut]), Segments(self.parts[cut:])

    def expand(
        self, media_lengths: Sequence[int], media_ids: Mapping[MediaKind, int], frame_tokens: int = 0
    ) -> Expanded:
        """Returns the token ids, with each medium's token repeated to its length.

        Args:
            media_lengths: tokens of each medium, in order, without text between frames.
            media_ids: the token ids of "image" and "video".
            frame_tokens: tokens of one frame of a video, which text between frames needs.

        Raises:
            ValueError: another number of lengths, or text between frames without `frame_tokens`.
        """
        if len(media_lengths) != len(self.media):
            raise ValueError(f"expected {len(self.media)} media lengths, got {len(media_lengths)}")
        lengths = iter(media_lengths)
        ids: list[int] = []
        answer: list[bool] = []
        spans = []
        for part in self.parts:
            if isinstance(part, TextIds):
                ids += part.ids
                answer += part.answer
            else:
                count = next(lengths)
                medium = [media_ids[part.kind]] * count
                if part.kind == "video" and part.join_ids:
                    if not frame_tokens:
                        raise ValueError(f"expected frame_tokens, for {part.frame_join!r} stands between frames; got 0")
                    frame = [*part.join_ids, *medium[:frame_tokens]]
                    medium = (frame * (count // frame_tokens))[len(part.join_ids) :]
                spans.append((len(ids), len(ids) + len(medium)))
                ids += medium
                answer += [False] * len(medium)
        return Expanded(np.asarray(ids, np.int64), np.asarray(answer, np.bool_), tuple(spans))


class SegmentEncoder:
    """Turns pieces into segments with a Hugging Face tokenizer.

    The ids equal those of the tokenizer on the whole prompt string, unless a user's text spells a special token, which
    is encoded as ordinary characters here.

    With `after_media="anew"` each text between media is tokenised as a text of its own, as the authors'
    `tokenizer_image_token` does: with Llama's space before it, a token by itself (29871) before a newline (13).
    `after_end` says the same of text after `</s>`; "trimmed" takes that space away from the first token, so that
    `USER` becomes `US` `ER` (3308 1001) where it is one token (11889) otherwise: their tokenizer with `legacy: false`.

    Args:
        tokenizer: a fast tokenizer that knows `<image>` and `<video>` (see `load_tokenizer`).
        after_media, after_end: how text is tokenised after a medium, and after `</s>`.
    """

    def __init__(self, tokenizer: Any, after_media: AfterMedia = "continued", after_end: AfterEnd = "continued"):
        self._plain = PlainEncoder(tokenizer)
        self._after: dict[_Before, AfterEnd] = {"start": after_media, "medium": after_media, "end": after_end}
        self._prefix, self._suffix = affixes(tokenizer)
        self.affix_lengths = (len(self._prefix), len(self._suffix))
        self.tokenizer = tokenizer
        self.media_ids: dict[MediaKind, int] = {
            kind: tokenizer.convert_tokens_to_ids(token) for kind, token in MEDIA_TOKENS.items()
        }

    def encode(self, pieces: Iterable[Piece], most: int | None = None) -> Segments:
        """Tokenises a rendered prompt, BOS included.

        Args:
            pieces: text, answers and media.
            most: tokens that the prompt may have. Text that needs more is refused before it is tokenised.

        Raises:
            ValueError: text that is not Unicode, or is longer than `most` tokens can be.
        """
        pieces = list(pieces)
        texts = [
            piece.text if isinstance(piece, Answer) else piece for piece in pieces if isinstance(piece, str | Answer)
        ]
        self._require_short(sum(map(len, texts)), most)
        builder = self._builder()
        builder.add_ids(self._prefix, answer=False)
        for piece in pieces:
            if isinstance(piece, str):
                builder.add_text(piece, answer=False)
            elif isinstance(piece, Answer):
                builder.add_text(piece.text, answer=True)
            elif isinstance(piece, EndOfAnswer):
                builder.add_special((self.tokenizer.eos_token_id,), answer=True)
            else:
                builder.add_media(piece)
        builder.flush_text()
        builder.add_ids(self._suffix, answer=False)
        return builder.segments()

    def encode_string(self, prompt: str, most: int | None = None) -> Segments:
        """Tokenises a prompt string like the tokenizer: `<video>` and `</s>` in it are special tokens.

        Args:
            prompt: any text.
            most: as in `encode`.

        Raises:
            ValueError: as `encode`.
        """
        require_unicode(prompt)
        self._require_short(len(prompt), most)
        kinds = {token_id: kind for kind, token_id in self.media_ids.items()}
        builder = self._builder()
        whole = set(self._after.values()) == {"continued"}
        special = {*self.tokenizer.all_special_tokens, *MEDIA_TOKENS.values()}
        if not whole:
            builder.add_ids(self._prefix, answer=False)
        for item in self.tokenizer(prompt)["input_ids"] if whole else self._split(prompt, special):
            if isinstance(item, str):
                builder.add_text(item, answer=False)
            elif item in kinds:
                builder.add_media(Media(kinds[item]))
            elif whole:
                builder.add_ids((item,), answer=False)
            else:
                builder.add_special((item,), answer=False)
        builder.flush_text()
        if not whole:
            builder.add_ids(self._suffix, answer=False)
        return builder.segments()

    def encode_verbatim(self, parts: Iterable[str | Media]) -> Segments:
        """Tokenises texts in which control words such as `</s>` are special, and the media between them.

        Nothing in it is marked as an answer. Unlike in `encode_string`, `<image>` and `<video>` are characters.

        Raises:
            ValueError: text that is not Unicode.
        """
        control = {self.tokenizer.bos_token, self.tokenizer.eos_token, "<unk>"}
        builder = self._builder()
        builder.add_ids(self._prefix, answer=False)
        for part in parts:
            for item in self._split(part, control) if isinstance(part, str) else [part]:
                if isinstance(item, Media):
                    builder.add_media(item)
                elif isinstance(item, str):
                    builder.add_text(item, answer=False)
                else:
                    builder.add_special((item,), answer=False)
        builder.flush_text()
        builder.add_ids(self._suffix, answer=False)
        return builder.segments()

    def _split(self, text: str, control: Iterable[str]) -> list[int | str]:
        """Splits a text at control words, which become ids."""
        special: dict[str, int | str] = {token: self.tokenizer.convert_tokens_to_ids(token) for token in control}
        longest_first = sorted(special, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return [special.get(part, part) for part in parts if part]

    def _builder(self) -> _SegmentBuilder:
        return _SegmentBuilder(self._plain, self._after)

    def _require_short(self, characters: int, most: int | None) -> None:
        longest = self._plain.longest_piece
        if most is not None and longest is not None and characters > most * longest:
            raise TooLong(
                f"a text of {characters} characters is too long: it has at least {-(-characters // longest)} tokens, "
                f"and a prompt may have {most}. Shorten it"
            )

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """Returns the token ids of an answer after a prompt, as a model would write it: with a space at its start."""
        return tuple(self._plain.encode(f" {text}", first=False)[0])


class _SegmentBuilder:
    """Builds segments. It joins neighbouring texts, as a token may span two; special tokens and media separate them."""

    def __init__(self, plain: PlainEncoder, after: Mapping[_Before, AfterEnd]):
        self._plain, self._after = plain, after
        self._parts: list[TextIds | Media] = []
        self._ids: list[int] = []
        self._answer: list[bool] = []
        self._text = ""
        self._answer_spans: list[tuple[int, int]] = []
        self._before: _Before = "start"

    def add_text(self, text: str, answer: bool) -> None:
        if answer:
            self._answer_spans.append((len(self._text), len(self._text) + len(text)))
        self._text += text

    def add_special(self, ids: Iterable[int], answer: bool) -> None:
        self.flush_text()
        self._before = "end"
        self.add_ids(ids, answer)

    def add_ids(self, ids: Iterable[int], answer: bool) -> None:
        for token_id in ids:
            self._ids.append(token_id)
            self._answer.append(answer)

    def add_media(self, media: Media) -> None:
        self.flush_text()
        self._before = "medium"
        if media.frame_join:
            media = replace(media, join_ids=tuple(self._encoded(media.frame_join)[0]))
        self._flush_ids()
        self._parts.append(media)

    def flush_text(self) -> None:
        if not self._text:
            return
        ids, offsets = self._encoded(self._text)
        self._ids += ids
        # A token belongs to the answer if any of its characters does. A token without characters does if both its
        # neighbours do.
        said = bytearray(len(self._text))
        for start, stop in self._answer_spans:
            said[start:stop] = b"\1" * (stop - start)
        self._answer += [
            1 in said[a:b] if a < b else 0 < a < len(said) and said[a - 1 : a + 1] == b"\1\1" for a, b in offsets
        ]
        # Another text can follow only what `add_special` or `add_media` adds.
        self._text, self._answer_spans = "", []

    def _encoded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encodes a text after what was added last: ids, and the characters of each."""
        after = self._after[self._before]
        if after == "continued":
            return self._plain.encode(text, first=self._before == "start")
        return self._plain.encode_anew(text, trimmed=after == "trimmed")

    def _flush_ids(self) -> None:
        if self._ids:
            self._parts.append(TextIds(tuple(self._ids), tuple(self._answer)))
        self._ids, self._answer = [], []

    def segments(self) -> Segments:
        self.flush_text()
        self._flush_ids()
        return Segments(tuple(self._parts))
