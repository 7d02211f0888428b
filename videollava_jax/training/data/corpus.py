"""All samples of a run, tokenised once: flat arrays that worker processes share by mapping their files. No JAX in here.

A medium's tokens are not stored: they are thousands of the same id, and their place in the sample is known.

    text_ids      [ sample 0's text │ sample 1's text │ … ]
    text_starts     0                 41                83  …
    media_after     [ 5 │ … ]        text ids of the sample that come before each of its media
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import PromptTemplate
from videollava_jax.processing.segments import IGNORED_LABEL, Media, MediaKind
from videollava_jax.training.data.authors import Version
from videollava_jax.training.data.packing import RowShape, Sizes
from videollava_jax.training.data.samples import MediaTokens, Sample, Tokens, tokenise
from videollava_jax.training.data.skips import BadSample, SampleError, SkipCounter

_KINDS: tuple[MediaKind, ...] = ("image", "video")
_CHUNK = 256
"""Samples that a worker process tokenises at a time."""


@dataclass(frozen=True, eq=False)
class _Arrays:
    """N samples, M media and L text ids, in memory or in files of these names.

    Attributes:
        text_ids: int32 [L]
        answers: bool [L], whether an id belongs to an answer of the assistant.
        text_starts: int64 [N + 1], where in `text_ids` each sample begins.
        media_kinds: uint8 [M], indices into `_KINDS`.
        media_after: int32 [M], the number of text ids of its sample that come before each medium.
        media_starts: int64 [N + 1], where in the media each sample begins.
        paths, path_starts: uint8 and int64 [M + 1], the media's files, UTF-8.
        names, name_starts: uint8 and int64 [N + 1], the samples' ids, UTF-8.
        indices: int64 [N], the samples' places in the data, bad samples counted.
        truncated: bool [N], whether a sample was cut off at the end.
    """

    text_ids: npt.NDArray[np.int32]
    answers: npt.NDArray[np.bool_]
    text_starts: npt.NDArray[np.int64]
    media_kinds: npt.NDArray[np.uint8]
    media_after: npt.NDArray[np.int32]
    media_starts: npt.NDArray[np.int64]
    paths: npt.NDArray[np.uint8]
    path_starts: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]
    name_starts: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


class Corpus:
    """Tokenised samples, numbered from 0 without the bad ones. Made by `build_corpus`.

    Attributes:
        media: token ids and lengths of media.
        digest: a hash, equal for equal samples wherever their media files lie.
    """

    def __init__(self, arrays: _Arrays, media: MediaTokens, digest: str, directory: Path | None = None):
        self._arrays, self._directory = arrays, directory
        self.media, self.digest = media, digest

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes get the names of the files and map them: the arrays are not copied.
        if self._directory is None:
            return Corpus, (self._arrays, self.media, self.digest)
        return _reopened, (self._directory, self.media, self.digest)

    def __len__(self) -> int:
        return len(self._arrays.indices)

    @property
    def truncated(self) -> int:
        """The number of samples that were cut off at the end."""
        return int(self._arrays.truncated.sum())

    @property
    def largest_target(self) -> int:
        """The largest id that is learnt; -1 where none is."""
        return int(self._arrays.text_ids[self._arrays.answers].max(initial=-1))

    @property
    def sizes(self) -> Sizes:
        """The tokens, images and videos that each sample takes of a row."""
        counts = []
        for kind in range(len(_KINDS)):
            before = np.concatenate([[0], np.cumsum(self._arrays.media_kinds == kind)])
            counts.append(np.diff(before[self._arrays.media_starts]).astype(np.int32))
        tokens = np.diff(self._arrays.text_starts)
        text = tokens.astype(np.int32)
        for kind_name, count in zip(_KINDS, counts, strict=True):
            tokens = tokens + count.astype(np.int64) * self.media.lengths[kind_name]
        before = np.concatenate([[0], np.cumsum(self._arrays.answers)])
        targets = np.diff(before[self._arrays.text_starts]).astype(np.int32)
        images, videos = counts
        return Sizes(tokens.astype(np.int32), images, videos, targets, text)

    def tokens(self, number: int) -> Tokens:
        """Returns a sample's tokens, equal to what `tokenise` returned for it."""
        of = self._arrays
        start, stop = of.text_starts[number : number + 2]
        text, answers = of.text_ids[start:stop], of.answers[start:stop]
        first, end = of.media_starts[number : number + 2]
        kinds = tuple(_KINDS[kind] for kind in of.media_kinds[first:end])
        ids, labels, spans = [], [], []
        at = before = 0
        for kind, after in zip((*kinds, None), (*of.media_after[first:end].tolist(), len(text)), strict=True):
            ids.append(text[before:after])
            labels.append(np.where(answers[before:after], text[before:after], np.int32(IGNORED_LABEL)))
            at, before = at + after - before, after
            if kind is not None:
                count = self.media.lengths[kind]
                ids.append(np.full(count, self.media.ids[kind], np.int32))
                labels.append(np.full(count, IGNORED_LABEL, np.int32))
                spans.append((at, at + count))
                at += count
        return Tokens(np.concatenate(ids), np.concatenate(labels), kinds, tuple(spans), bool(of.truncated[number]))

    def media_of(self, number: int) -> tuple[Media, ...]:
        """Returns a sample's media, with their paths."""
        of = self._arrays
        return tuple(
            Media(_KINDS[of.media_kinds[i]], _string(of.paths, of.path_starts, i))
            for i in range(*of.media_starts[number : number + 2].tolist())
        )

    def bad(self, number: int, reason: str) -> BadSample:
        """Returns a sample that turned out to be bad after it was tokenised, with its id and index in the data."""
        name = _string(self._arrays.names, self._arrays.name_starts, number)
        return BadSample(int(self._arrays.indices[number]), name, reason)


def build_corpus(
    samples: Iterable[Sample | BadSample],
    processor: VideoLlavaProcessor,
    row: RowShape,
    skips: SkipCounter,
    *,
    max_tokens: int | None = None,
    frame_sampling: Any = None,
    template: str | PromptTemplate | None = None,
    version: Version | None = None,
    directory: str | os.PathLike[str] | None = None,
    workers: int = 0,
) -> Corpus:
    """Tokenises all samples: about a thousand a second in each worker process.

    Args:
        samples: from `read_samples`.
        row: a sample that does not fit into a row is bad.
        skips: counts the bad samples and keeps their names.
        max_tokens: the length that samples are cut to; by default that of a row, or the model's number of positions
            where that is less.
        frame_sampling, template, version: as in `tokenise`.
        directory: for the arrays' files, which the loader's worker processes map; no other process may write there.
            None keeps the arrays in memory, with a copy in each worker process.
        workers: processes that tokenise; 0 tokenises in this process. Worker processes import the main program, which
            must guard its work with `if __name__ == "__main__"`.

    Raises:
        TooManyBadSamples: more bad samples than `skips` allows.
        ValueError: there is no good sample, `max_tokens` is more than a row or the model takes, or `frame_sampling`
            takes a number of frames that depends on the video.
    """
    positions = processor.max_positions or row.tokens
    limit = min(row.tokens, positions) if max_tokens is None else max_tokens
    if not 0 < limit <= min(row.tokens, positions):
        raise ValueError(
            f"max_tokens: expected 1 to {min(row.tokens, positions)} (a row has {row.tokens} tokens, the model "
            f"{positions} positions), got {limit}"
        )
    media = MediaTokens.of(processor, frame_sampling)
    builder = _Builder()
    for result in _tokenised(samples, _Tokeniser(processor, row, limit, frame_sampling, template, version), workers):
        if isinstance(result, BadSample):
            skips.add(1, [result])
        else:
            skips.add(1)
            builder.add(*result)
    skips.check()
    arrays = builder.arrays()
    if not len(arrays.indices):
        raise ValueError(f"there is nothing to learn from: {skips.seen} samples, and {skips.skipped} of them are bad")
    digest = _digest(arrays, media)
    if directory is None:
        return Corpus(arrays, media, digest)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for field in fields(arrays):
        _save(folder / f"{field.name}.npy", getattr(arrays, field.name))
    return _reopened(folder, media, digest)


Result = tuple[Sample, Tokens] | BadSample


@dataclass(frozen=True)
class _Tokeniser:
    """Tokenises one sample, with the arguments of `build_corpus`."""

    processor: VideoLlavaProcessor
    row: RowShape
    max_tokens: int
    frame_sampling: Any
    template: str | PromptTemplate | None
    version: Version | None

    def __call__(self, sample: Sample | BadSample) -> Result:
        if isinstance(sample, BadSample):
            return sample
        try:
            for kind, slots in (("image", self.row.images), ("video", self.row.videos)):
                count = sum(medium.kind == kind for medium in sample.media)
                if count > slots:
                    raise SampleError(f"it has {count} {kind}s, and a row has room for {slots}")
            options = {"frame_sampling": self.frame_sampling, "template": self.template, "version": self.version}
            return sample, tokenise(sample, self.processor, self.max_tokens, **options)
        except SampleError as error:
            return BadSample(sample.index, sample.id, str(error))


def _tokenised(samples: Iterable[Sample | BadSample], tokeniser: _Tokeniser, workers: int) -> Iterator[Result]:
    """Yields the results in the order of the samples, and reads samples only as fast as the workers tokenise them."""
    if not workers:
        yield from map(tokeniser, samples)
        return
    left = iter(samples)
    pending: deque[Future[list[Result]]] = deque()
    context = get_context("spawn")  # a fork would copy locks that threads of JAX or of the tokenizer hold
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(tokeniser,)) as pool:
        while chunk := list(islice(left, _CHUNK)):
            pending.append(pool.submit(_tokenise_in_worker, chunk))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


_of_this_worker: _Tokeniser


def _start_worker(tokeniser: _Tokeniser) -> None:
    global _of_this_worker
    _of_this_worker = tokeniser


def _tokenise_in_worker(samples: Sequence[Sample | BadSample]) -> list[Result]:
    return [_of_this_worker(sample) for sample in samples]


def _save(file: Path, array: npt.NDArray[Any]) -> None:
    try:
        np.save(file, array)
    except OSError as error:  # NumPy's own says how many values were written, and not why no more
        raise OSError(
            f"{file}: cannot be written ({error.strerror or f'{error}: the disk is full, or fails'})"
        ) from None


def _reopened(directory: Path, media: MediaTokens, digest: str) -> Corpus:
    arrays = _Arrays(*(np.load(directory / f"{field.name}.npy", mmap_mode="r") for field in fields(_Arrays)))
    return Corpus(arrays, media, digest, directory)


def _digest(arrays: _Arrays, media: MediaTokens) -> str:
    digest = hashlib.blake2b(repr(media).encode(), digest_size=16)
    for field in fields(arrays):
        if field.name not in ("paths", "path_starts"):
            digest.update(np.ascontiguousarray(getattr(arrays, field.name)))
    return digest.hexdigest()


def _string(characters: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], i: int) -> str:
    return os.fsdecode(characters[starts[i] : starts[i + 1]].tobytes())


class _Builder:
    """Appends samples to growing arrays: a list of a million small arrays would take twice the memory."""

    def __init__(self) -> None:
        self._ids, self._answers = array("i"), bytearray()
        self._kinds, self._after = bytearray(), array("i")
        self._paths, self._names, self._truncated = bytearray(), bytearray(), bytearray()
        self._text_starts, self._media_starts, self._path_starts, self._name_starts = (
            array("q", [0]) for _ in range(4)
        )
        self._indices = array("q")

    def add(self, sample: Sample, tokens: Tokens) -> None:
        is_text = np.ones(len(tokens.ids), np.bool_)
        media_before = 0
        for kind, (start, stop), medium in zip(tokens.kinds, tokens.spans, sample.media, strict=True):
            is_text[start:stop] = False
            self._kinds.append(_KINDS.index(kind))
            self._after.append(start - media_before)
            media_before += stop - start
            self._paths += os.fsencode(medium.source)
            self._path_starts.append(len(self._paths))
        self._ids.frombytes(tokens.ids[is_text].tobytes())
        self._answers += (tokens.labels[is_text] != IGNORED_LABEL).tobytes()
        self._text_starts.append(len(self._ids))
        self._media_starts.append(len(self._kinds))
        self._names += os.fsencode(sample.id)
        self._name_starts.append(len(self._names))
        self._indices.append(sample.index)
        self._truncated.append(tokens.truncated)

    def arrays(self) -> _Arrays:
        return _Arrays(
            text_ids=np.frombuffer(self._ids, np.int32),
            answers=np.frombuffer(self._answers, np.bool_),
            text_starts=np.frombuffer(self._text_starts, np.int64),
            media_kinds=np.frombuffer(self._kinds, np.uint8),
            media_after=np.frombuffer(self._after, np.int32),
            media_starts=np.frombuffer(self._media_starts, np.int64),
            paths=np.frombuffer(self._paths, np.uint8),
            path_starts=np.frombuffer(self._path_starts, np.int64),
            names=np.frombuffer(self._names, np.uint8),
            name_starts=np.frombuffer(self._name_starts, np.int64),
            indices=np.frombuffer(self._indices, np.int64),
            truncated=np.frombuffer(self._truncated, np.bool_),
        )
