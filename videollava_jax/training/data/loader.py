"""Rows of tokens and media for the trainer, loaded by Grain in worker processes or in this one. No JAX in here.

    plan, corpus ──micro-batch by number──▶ this process's rows: arrays of tokens, media read ──▶ trainer

Media are read as pixels, or as features that a frozen tower computed before, from disk.

A micro-batch depends on its number alone. So the state of a loader is that number, whatever was read ahead and by
whatever number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.media import MediaLimits, Preprocessor
from videollava_jax.processing.given_media import image_pixels, video_pixels
from videollava_jax.processing.media_processor import DEFAULT_LIMITS
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import IGNORED_LABEL, Media, MediaKind
from videollava_jax.training.data.corpus import Corpus
from videollava_jax.training.data.features import FeatureStore
from videollava_jax.training.data.packing import MicroBatch, PackingPlan
from videollava_jax.training.data.samples import MediaTokens
from videollava_jax.training.data.skips import BadSample
from videollava_jax.training.data.workers import end_reading, read_ahead

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One process's rows of a micro-batch: `R` rows of `T` tokens and at most `K` samples.

    Attributes:
        number: of the micro-batch, from 0 through all steps.
        step: the optimiser step that it belongs to, from 0.
        last: whether it is the last micro-batch of its step.
        arrays: by name:
            input_ids: int32 [R, T].
            positions: int32 [R, T], within each sample.
            segments: int32 [R, T], 1 for the first sample of a row, 2 for the second; 0 is padding.
            targets: int32 [R, T], the next id of the same sample where it is to be learnt, -100 elsewhere.
            media_index: int32 [R, T], the index of the feature vector at each position, -1 for text. A row's feature
                vectors are those of image slot 0, of image slot 1, …, then those of video slot 0, ….
            images: [R, images, S, S, 3], uint8 or float32, RGB, 0-255; or features from disk [R, images, tokens,
                width]. Empty slots are zeros.
            videos: [R, videos, F, S, S, 3], likewise; or features [R, videos, tokens, width]. Empty slots are zeros.
            samples: int32 [R, K], the samples' numbers in the corpus, -1 for none.
            weights: float32 [R, T], of each target in the loss; only where the plan has weights.
            skipped: bool [R, K], samples with a medium that could not be read: their tokens are padding.
        bad: these samples with the reasons, in the order of the rows.
    """

    number: int
    step: int
    last: bool
    arrays: Arrays
    bad: tuple[BadSample, ...]

    @property
    def seen(self) -> int:
        """The number of samples, skipped ones included."""
        return int((self.arrays["samples"] >= 0).sum())


@dataclass(frozen=True)
class PixelReader:
    """Reads media as the processor does, to pixels; it has no tokenizer, so that worker processes start fast.

    Attributes:
        preprocess: how images and how frames of videos are resized and cropped.
        tokens: the number of frames of a video, and the rule that chooses them.
        limits: what a media file may cost to open.
    """

    preprocess: Mapping[MediaKind, Preprocessor]
    tokens: MediaTokens
    limits: MediaLimits

    @classmethod
    def of(cls, processor: VideoLlavaProcessor, tokens: MediaTokens, limits: MediaLimits) -> PixelReader:
        """Returns a reader with the preprocessing of a processor."""
        return cls(processor.preprocessors, tokens, limits)

    def empty(self, kind: MediaKind, *axes: int) -> npt.NDArray[Any]:
        """Returns zeros [*axes, S, S, 3] for images, [*axes, F, S, S, 3] for videos, of the preprocessor's dtype."""
        S, frames = self.preprocess[kind].crop_size, () if kind == "image" else (self.tokens.frames,)
        return np.zeros((*axes, *frames, S, S, 3), self.preprocess[kind].dtype)

    def __call__(self, medium: Media) -> npt.NDArray[Any]:
        """Returns [S, S, 3] of an image, [F, S, S, 3] of a video, of the preprocessor's dtype, 0-255.

        Raises:
            ValueError: the medium cannot be read (`MediaError`), or has another number of frames.
        """
        preprocess = self.preprocess[medium.kind]
        if medium.kind == "image":
            return image_pixels(medium.source, preprocess, self.limits)
        pixels = video_pixels(medium.source, preprocess, self.tokens.frame_sampling, self.limits)
        if len(pixels) != self.tokens.frames:
            raise ValueError(f"{medium.source}: expected {self.tokens.frames} frames, got {len(pixels)}")
        return pixels


@dataclass(frozen=True)
class FeatureReader:
    """Reads precomputed tower features from disk.

    Attributes:
        store: the files.
        pixels: reads a medium without features, to say what is wrong with it.
    """

    store: FeatureStore
    pixels: PixelReader

    def empty(self, kind: MediaKind, *axes: int) -> npt.NDArray[Any]:
        """Returns zeros [*axes, tokens, width]."""
        return self.store.empty(kind, *axes)

    def __call__(self, medium: Media) -> npt.NDArray[Any]:
        """Returns features [tokens, width], in the dtype of the files.

        Raises:
            ValueError: the medium cannot be read, or has changed since the run began.
        """
        features = self.store.read(medium)
        if features is not None:
            return features
        self.pixels(medium)  # raises the error that kept the medium from being encoded
        raise ValueError(
            f"{medium.source}: it can be read, and has no features in {self.store.directory}: it has changed since "
            "this run began; the next start of the run encodes it"
        )


@dataclass(frozen=True)
class MediaBatches:
    """Pixels of media of one kind, in numbered batches of equal size. Each worker process gets a copy.

    Attributes:
        count: media in a batch; the last batch is filled up with empty media.
    """

    kind: MediaKind
    media: tuple[Media, ...]
    count: int
    read: PixelReader

    def __call__(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Returns pixels [count, …], and bool [count]: whether each medium could be read."""
        pixels, found = self.read.empty(self.kind, self.count), np.zeros(self.count, np.bool_)
        for i, medium in enumerate(self.media[int(number) * self.count : (int(number) + 1) * self.count]):
            with suppress(ValueError, OSError):  # the loader reads it again, and reports what is wrong with it
                pixels[i] = self.read(medium)
                found[i] = True
        return pixels, found


@dataclass(frozen=True)
class _Rows:
    """Loads one process's rows of a micro-batch. Each worker process gets a copy.

    Attributes:
        read: returns the pixels or the features of a medium.
        first, count: the rows of every micro-batch that this process loads.
        padding: the token id of padding.
    """

    plan: PackingPlan
    corpus: Corpus
    read: PixelReader | FeatureReader
    first: int
    count: int
    padding: int

    def __call__(self, number: int) -> tuple[Arrays, tuple[BadSample, ...]]:
        micro_batch = self.plan.micro_batch(int(number))
        arrays = self._empty(micro_batch)
        bad: list[BadSample] = []
        for r, row in enumerate(micro_batch.rows[self.first : self.first + self.count]):
            weights = None if micro_batch.weights is None else micro_batch.weights[self.first + r]
            bad += self._fill({name: array[r] for name, array in arrays.items()}, row, weights)
        return arrays, tuple(bad)

    def _empty(self, micro_batch: MicroBatch) -> Arrays:
        rows, shape, row = self.count, self.plan.shape, self.plan.shape.row

        def filled(value: int, *axes: int) -> npt.NDArray[np.int32]:
            return np.full((rows, *axes), value, np.int32)

        weights = {"weights": np.zeros((rows, micro_batch.tokens), np.float32)}
        return {
            **({} if micro_batch.weights is None else weights),
            "input_ids": filled(self.padding, micro_batch.tokens),
            "positions": filled(0, micro_batch.tokens),
            "segments": filled(0, micro_batch.tokens),
            "targets": filled(IGNORED_LABEL, micro_batch.tokens),
            "media_index": filled(-1, micro_batch.tokens),
            "images": self.read.empty("image", rows, row.images),
            "videos": self.read.empty("video", rows, row.videos),
            "samples": filled(-1, shape.samples_per_row),
            "skipped": np.zeros((rows, shape.samples_per_row), np.bool_),
        }

    def _fill(self, row: Arrays, samples: tuple[int, ...], weights: tuple[float, ...] | None) -> Iterator[BadSample]:
        """Writes samples one after the other into the arrays of their row; yields those that are skipped."""
        at = 0
        slots: dict[MediaKind, int] = {"image": 0, "video": 0}
        for k, sample in enumerate(samples):
            row["samples"][k] = sample
            try:
                media = [self.read(medium) for medium in self.corpus.media_of(sample)]
            except (ValueError, OSError) as error:
                row["skipped"][k] = True
                yield self.corpus.bad(sample, str(error))
                continue
            tokens = self.corpus.tokens(sample)
            stop = at + len(tokens.ids)
            row["input_ids"][at:stop] = tokens.ids
            row["positions"][at:stop] = np.arange(stop - at)
            row["segments"][at:stop] = k + 1
            row["targets"][at : stop - 1] = tokens.labels[1:]
            if weights is not None:
                row["weights"][at:stop] = weights[k]
            for kind, (start, end), array in zip(tokens.kinds, tokens.spans, media, strict=True):
                row[f"{kind}s"][slots[kind]] = array
                features = self._first_feature(kind, slots[kind]) + np.arange(end - start)
                row["media_index"][at + start : at + end] = features
                slots[kind] += 1
            at = stop

    def _first_feature(self, kind: MediaKind, slot: int) -> int:
        lengths = self.corpus.media.lengths
        before = 0 if kind == "image" else self.plan.shape.row.images * lengths["image"]
        return before + slot * lengths[kind]


class Loader:
    """Iterates over one process's rows of a plan's micro-batches, in order. Made by `loader`.

    Attributes:
        position: the number of the next micro-batch.
    """

    def __init__(self, rows: _Rows, workers: int, ahead: int):
        self._rows, self._workers, self._ahead = rows, workers, ahead
        self._iterator: Any = None
        self.position = 0

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> HostBatch:
        plan = self._rows.plan
        if self.position == len(plan):
            self.close()
            raise StopIteration
        if self._iterator is None:
            self._iterator = read_ahead(self._rows, self.position, len(plan), workers=self._workers, ahead=self._ahead)
        arrays, bad = next(self._iterator)
        arrays = {name: np.array(array, subok=False) for name, array in arrays.items()}  # copied out of shared memory
        micro_batch = plan.micro_batch(self.position)
        batch = HostBatch(self.position, micro_batch.step, micro_batch.last, arrays, bad)
        self.position += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the position with digests of plan and data, for JSON: the same in all processes."""
        return {"position": self.position, "plan": self._rows.plan.digest, "corpus": self._rows.corpus.digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, which a loader with another number of processes and workers may have saved.

        Raises:
            ValueError: the state belongs to another plan or other data.
        """
        for name, ours in self.state().items():
            if name != "position" and state.get(name) != ours:
                raise ValueError(
                    f"{name}: this state belongs to another run ({state.get(name)}, here {ours}); expected the same "
                    "data, processor, shapes, steps and seed"
                )
        self.close()
        self.position = int(state["position"])

    def close(self) -> None:
        """Ends the workers; the next micro-batch starts new ones."""
        if self._iterator is not None:
            end_reading(self._iterator)
            self._iterator = None


def loader(
    plan: PackingPlan,
    corpus: Corpus,
    processor: VideoLlavaProcessor,
    *,
    features: FeatureStore | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    ahead: int = 1,
) -> Loader:
    """Returns a loader of one process's rows of all micro-batches of a plan.

    Worker processes import the main program, which must guard its work with `if __name__ == "__main__"`. A medium that
    several samples of a micro-batch share is read for each of them.

    Args:
        corpus: that the plan was made for.
        processor: that the corpus was made with.
        features: the store of precomputed tower features; None reads pixels.
        limits: what a media file may cost to open.
        process_index, process_count: which of the equal shares of every micro-batch's rows is loaded.
        workers: processes that read media; 0 reads in this process, when a micro-batch is asked for.
        ahead: micro-batches that each worker holds ready. With those in transfer, a worker takes memory for
            2 × ahead + 2 of them.

    Raises:
        ValueError: the rows of a micro-batch do not split evenly over the processes.
    """
    rows = plan.shape.rows
    if rows % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"expected a number of processes that divides the {rows} rows of a micro-batch, got process "
            f"{process_index} of {process_count}"
        )
    count = rows // process_count
    pixels = PixelReader.of(processor, corpus.media, limits)
    read = pixels if features is None else FeatureReader(features, pixels)
    padding = processor.light_tokenizer.pad_token_id
    return Loader(_Rows(plan, corpus, read, process_index * count, count, padding), workers, ahead)
