"""The ids and labels that the authors' training code gives a sample, its masks of whole samples included.

    v1     system prompt, turns, `</s>` after each answer; the answers are learnt (their `preprocess_v1`)
    plain  the media, the answer and a newline; the answer is learnt (their `preprocess_plain`, stage 1)

Control words in a text are special here, as in their code: `</s>` in a question ends a round, and the sample is masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from videollava_jax.processing.prompt import TEMPLATES, Turn
from videollava_jax.processing.segments import Media, SegmentEncoder, Segments, TextIds
from videollava_jax.training.data.skips import SampleError

if TYPE_CHECKING:  # recipes, and so the command's help, know the versions' names without it
    from videollava_jax.processing.processor import VideoLlavaProcessor

Version = Literal["v1", "plain"]
MOST_IDS = 2048
"""Their `model_max_length`: ids, with one for each image and each frame, are cut there before media are spread out."""
_END, _UNKNOWN = "</s>", 0
_TEMPLATE = TEMPLATES["vicuna_v1"]
Parts = tuple[str | Media, ...]


def authors_segments(turns: Sequence[Turn], processor: VideoLlavaProcessor, frames: int, version: Version) -> Segments:
    """Tokenises the turns of a sample as the authors' training code does; text that is learnt is marked as an answer.

    Args:
        turns: of the sample, perhaps after a system prompt; an answer may be empty.
        processor: whose preset tokenises text between media by itself.
        frames: of a video.
        version: theirs, `--version` of their scripts.

    Raises:
        ValueError: the preset tokenises a prompt as a whole.
        SampleError: a sample that their code does not take, or whose cut would reach into a medium.
    """
    if processor.preset.after_media != "anew":
        raise ValueError(
            f"data.version={version} needs the ids of the preset `original`, and this model's preset has after_media="
            f"{processor.preset.after_media!r}: expected 'anew'"
        )
    encode = processor.encoder.encode_verbatim
    if version == "plain":
        if [turn.role for turn in turns] != ["user", "assistant"] or not turns[0].media:
            raise SampleError("version plain: expected a question with its media and one answer")
        media = turns[0].media
        whole = encode((*media, *turns[1].content, "\n"))
        return _marked(whole, _positions(encode(media), frames), None, frames)
    parts = _joined(_conversation(turns))
    whole = encode(parts)
    total = min(_positions(whole, frames), MOST_IDS) if not whole.media else _positions(whole, frames)
    learnt, at = _learnt(parts, processor.encoder, frames)
    unknown = sum(part.ids.count(_UNKNOWN) for part in whole.parts if isinstance(part, TextIds))  # their padding
    if at < MOST_IDS and at != total - unknown:
        learnt = []  # their "tokenization mismatch"
    return _marked(whole, at, learnt, frames)


def _conversation(turns: Sequence[Turn]) -> Iterator[str | Media]:
    """Their prompt: a message that is empty leaves its role open, and nothing ends it."""
    template = _TEMPLATE
    system, rest = (turns[0], turns[1:]) if turns[0].role == "system" else (None, turns)
    yield ("".join(system.texts) if system else template.system) + template.system_end
    for turn in rest:
        opened = template.user if turn.role == "user" else f"{template.assistant} "
        if any(turn.content):
            yield from (opened, *turn.content, template.user_end if turn.role == "user" else _END)
        else:
            yield opened.rstrip()


def _learnt(parts: Parts, encoder: SegmentEncoder, frames: int) -> tuple[list[tuple[int, int]], int]:
    """Returns the positions [start, stop) of what is learnt, and how far their count of rounds comes."""
    asked = f"{_TEMPLATE.user_end}{_TEMPLATE.assistant} "
    at, learnt = 1, []
    for spoken in _split(parts, _END):
        sides = _split(spoken, asked)
        if not spoken or len(sides) != 2:
            break
        length = _positions(encoder.encode_verbatim(spoken), frames)
        question = _positions(encoder.encode_verbatim(_joined((*sides[0], asked))), frames) - 2
        learnt.append((at + question, at + length))
        at += length
    return learnt, at


def _marked(whole: Segments, at: int, learnt: Iterable[tuple[int, int]] | None, frames: int) -> Segments:
    """Cuts ids at `MOST_IDS`, and marks what is learnt.

    Args:
        whole: the sample.
        at: position of the first id after all questions and answers that were counted.
        learnt: positions [start, stop) before `at`; None for everything from `at` on.
        frames: of a video.
    """
    spans = [(at, MOST_IDS)] if learnt is None else [(start, min(stop, at)) for start, stop in learnt]
    parts: list[TextIds | Media] = []
    position = 0
    for part in whole.parts:
        count = len(part.ids) if isinstance(part, TextIds) else _places(part, frames)
        left = max(MOST_IDS - position, 0)
        if isinstance(part, TextIds):
            ids = part.ids[:left]
            answer = tuple(any(start <= position + i < stop for start, stop in spans) for i in range(len(ids)))
            parts.append(TextIds(ids, answer))
        elif count > left:
            raise SampleError(f"a medium reaches over id {MOST_IDS}, where the authors' code cuts a sample")
        else:
            parts.append(part)
        position += count
    return Segments(tuple(parts))


def _places(medium: Media, frames: int) -> int:
    return frames if medium.kind == "video" else 1


def _positions(segments: Segments, frames: int) -> int:
    """Ids as they count them: one for an image, one for each frame of a video."""
    return segments.text_length + sum(_places(medium, frames) for medium in segments.media)


def _joined(parts: Iterable[str | Media]) -> Parts:
    """The same parts with neighbouring texts as one."""
    made: list[str | Media] = []
    for part in parts:
        if made and isinstance(part, str) and isinstance(made[-1], str):
            made[-1] += part
        elif part:
            made.append(part)
    return tuple(made)


def _split(parts: Parts, at: str) -> list[Parts]:
    """Splits texts and media at a word, as `str.split` does: without empty texts, so an empty round is ()."""
    found: list[list[str | Media]] = [[]]
    for part in parts:
        if isinstance(part, str):
            first, *rest = part.split(at)
            found[-1].append(first)
            found += [[text] for text in rest]
        else:
            found[-1].append(part)
    return [_joined(one) for one in found]
