"""JSON to samples, and samples to tokens and labels. No JAX in here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.config import require_whole_windows
from videollava_jax.processing.given_media import known_frames
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import PromptTemplate, Turn
from videollava_jax.processing.segments import Media, MediaKind
from videollava_jax.training.data.authors import Version, authors_segments
from videollava_jax.training.data.conversations import turns_of
from videollava_jax.training.data.entries import entries
from videollava_jax.training.data.skips import BadSample, SampleError


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from.

    Attributes:
        index: its number in the data, counted from 0 through all files, bad samples included.
        id: the sample's id in the data, as text; empty where it has none.
        turns: the user's and the assistant's in alternation, perhaps after a system prompt; media, as paths, are in the
            user's.
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
    paths: Iterable[str | os.PathLike[str]],
    media_root: str | os.PathLike[str] | None = None,
    *,
    image_root: str | os.PathLike[str] | None = None,
    video_root: str | os.PathLike[str] | None = None,
    keep_empty: bool = False,
) -> Iterator[Sample | BadSample]:
    """Yields the samples of some files, in order, each read when it is asked for.

    The keys of LLaVA, ShareGPT and LLaMA-Factory are read (`conversations.py`). An answer before the first question is
    dropped, as in the authors' training code. The media of a turn stand in the places of their placeholders; the preset
    of the processor may write them before the text. `<image>` in a sample without images is text, unless a question
    begins or ends with it: then the sample has lost its images and is bad, as is a sample without media that names some
    under a key that is not read.

    Args:
        paths: files with a JSON list, or with a JSON object on each line; each may be compressed.
        media_root: the directory that paths of media are relative to; None for that of the file that names them.
        image_root, video_root: the same for images and for videos; None for `media_root`.
        keep_empty: whether a turn may be empty, as in the authors' code; else its sample is bad.

    Raises:
        ValueError: a file is not JSON. A bad line among good ones is a bad sample.
        OSError: a file cannot be read.
    """
    index = 0
    for path in map(Path, paths):
        root = path.parent if media_root is None else Path(media_root)
        given: dict[MediaKind, str | os.PathLike[str] | None] = {"image": image_root, "video": video_root}
        roots = {kind: root if own is None else Path(own) for kind, own in given.items()}
        for entry in entries(path):
            yield _parsed(index, entry, roots, keep_empty)
            index += 1


def _parsed(index: int, entry: Any, root: Mapping[MediaKind, Path], keep_empty: bool) -> Sample | BadSample:
    name = _name(entry)
    if isinstance(entry, SampleError):
        return BadSample(index, name, str(entry))
    try:
        return Sample(index, name, turns_of(entry, root, keep_empty=keep_empty))
    except SampleError as error:
        return BadSample(index, name, str(error))


def _name(entry: Any) -> str:
    """Returns the id of a sample as printable text."""
    given = entry.get("id") if isinstance(entry, Mapping) else None
    text = "" if given is None else str(given)[:200]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


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
    def of(cls, processor: VideoLlavaProcessor, frame_sampling: Any = None) -> MediaTokens:
        """Returns the ids and lengths that a processor gives; its own rule chooses frames where none is given.

        Raises:
            ValueError: the number of frames depends on the video, or the video tower does not take that number.
        """
        frame_sampling = processor.frames(frame_sampling)
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
    frame_sampling: Any = None,
    template: str | PromptTemplate | None = None,
    version: Version | None = None,
) -> Tokens:
    """Tokenises a sample. Its media are counted, not read.

    Args:
        max_tokens: longer samples are cut on the right.
        frame_sampling: the rule that chooses the frames of a video; None for the processor's own, 8 frames.
        template: of the prompt; None for the processor's own.
        version: for the ids and labels of the authors' training code (`authors_segments`), which may leave nothing to
            learn; None for this package's.

    Raises:
        SampleError: the cut would reach into a medium, or leave no answer.
        ValueError: as `MediaTokens.of`.
    """
    media = MediaTokens.of(processor, frame_sampling)
    if version is None:
        segments = processor.encoder.encode(processor.write(sample.turns, template, add_generation_prompt=False))
    else:
        segments = authors_segments(sample.turns, processor, media.frames, version)
    if any(medium.join_ids for medium in segments.media):
        raise ValueError(
            "template: it writes text between the frames of a video, and none is trained; expected another"
        )
    kinds = tuple(medium.kind for medium in segments.media)
    whole = segments.expand([media.lengths[kind] for kind in kinds], media.ids)
    length = len(whole.input_ids)
    end = max((stop for _, stop in whole.media_spans), default=0)
    if length > max_tokens and end > max_tokens:
        raise SampleError(f"its media reach to token {end}, over the {max_tokens} tokens that a sample may have")
    ids, labels = (array[:max_tokens].astype(np.int32) for array in (whole.input_ids, whole.labels))
    if version is None and not whole.answer[:max_tokens].any():
        raise SampleError(f"no answer begins within the first {max_tokens} of its {length} tokens")
    return Tokens(ids, labels, kinds, whole.media_spans, length > max_tokens)
