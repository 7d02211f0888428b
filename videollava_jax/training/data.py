"""Rows of tokens and pixels for the trainer, loaded by Grain, in worker processes or without. No JAX of ours in here.

    plan, corpus ──micro-batch by number──▶ this process's rows: arrays of tokens, media read ──▶ trainer

A micro-batch depends on its number alone. So where a run goes on is one number, whatever was read ahead, and by how
many workers.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.media import FramePreprocessor, MediaLimits
from videollava_jax.processor import DEFAULT_LIMITS, VideoLlavaProcessor
from videollava_jax.processor_inputs import image_pixels, video_pixels
from videollava_jax.segments import IGNORED_LABEL, Media, MediaKind
from videollava_jax.training.corpus import Corpus
from videollava_jax.training.packing import MicroBatch, Plan
from videollava_jax.training.samples import MediaTokens
from videollava_jax.training.skips import BadSample

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One process's rows of a micro-batch: `R` rows of `T` tokens and at most `K` samples.

    Attributes:
        number: of the micro-batch, from 0 through all steps.
        step: the optimiser step it belongs to, from 0.
        last: whether it is the last of its step.
        arrays: what is computed with:
            input_ids: int32 [R, T].
            positions: int32 [R, T], within each sample.
            segments: int32 [R, T], 1 for the first sample of a row, 2 for the second; 0 is padding.
            targets: int32 [R, T], the id to predict after each token, of the same sample; -100 where nothing is learnt.
            media_index: int32 [R, T], which of the row's feature vectors stands there, -1 for text. These are the
                tokens of image slot 0, of image slot 1, …, then those of video slot 0, ….
            images: uint8 [R, images, S, S, 3], RGB, 0-255; zeros in empty slots.
            videos: uint8 [R, videos, F, S, S, 3], the same.
            samples: int32 [R, K], the samples' numbers in the corpus, -1 for none.
            skipped: bool [R, K], samples with a medium that could not be read: their tokens became padding.
        bad: these samples and the reasons, rows in order.
    """

    number: int
    step: int
    last: bool
    arrays: Arrays
    bad: tuple[BadSample, ...]

    @property
    def seen(self) -> int:
        """Samples in it, skipped ones included."""
        return int((self.arrays["samples"] >= 0).sum())


@dataclass(frozen=True)
class _Reader:
    """Media to pixels, as the processor reads them; without its tokenizer, so that worker processes start fast."""

    preprocess: Mapping[MediaKind, FramePreprocessor]
    tokens: MediaTokens
    limits: MediaLimits

    def __call__(self, medium: Media) -> npt.NDArray[np.uint8]:
        """uint8 [S, S, 3] of an image, [F, S, S, 3] of a video.

        Raises:
            ValueError: it cannot be read (`MediaError`), or has another number of frames.
        """
        preprocess = self.preprocess[medium.kind]
        if medium.kind == "image":
            return image_pixels(medium.source, preprocess, self.limits)
        pixels = video_pixels(medium.source, preprocess, self.tokens.sampling, self.limits)
        if len(pixels) != self.tokens.frames:
            raise ValueError(f"{medium.source}: expected {self.tokens.frames} frames, got {len(pixels)}")
        return pixels


@dataclass(frozen=True)
class _Rows:
    """Loads one process's part of a micro-batch. Worker processes are given a copy.

    Attributes:
        first, count: the rows of every micro-batch that are this process's.
        padding: token id of places without a token.
    """

    plan: Plan
    corpus: Corpus
    reader: _Reader
    first: int
    count: int
    padding: int

    def __call__(self, number: int) -> tuple[Arrays, tuple[BadSample, ...]]:
        micro_batch = self.plan.micro_batch(int(number))
        arrays = self._empty(micro_batch)
        bad: list[BadSample] = []
        for r, row in enumerate(micro_batch.rows[self.first : self.first + self.count]):
            bad += self._fill({name: array[r] for name, array in arrays.items()}, row)
        return arrays, tuple(bad)

    def _empty(self, micro_batch: MicroBatch) -> Arrays:
        rows, shape, row = self.count, self.plan.shape, self.plan.shape.row
        image, video = (self.reader.preprocess[kind].crop_size for kind in ("image", "video"))

        def filled(value: int, *axes: int) -> npt.NDArray[np.int32]:
            return np.full((rows, *axes), value, np.int32)

        return {
            "input_ids": filled(self.padding, micro_batch.tokens),
            "positions": filled(0, micro_batch.tokens),
            "segments": filled(0, micro_batch.tokens),
            "targets": filled(IGNORED_LABEL, micro_batch.tokens),
            "media_index": filled(-1, micro_batch.tokens),
            "images": np.zeros((rows, row.images, image, image, 3), np.uint8),
            "videos": np.zeros((rows, row.videos, self.reader.tokens.frames, video, video, 3), np.uint8),
            "samples": filled(-1, shape.samples_per_row),
            "skipped": np.zeros((rows, shape.samples_per_row), np.bool_),
        }

    def _fill(self, row: Arrays, samples: tuple[int, ...]) -> Iterator[BadSample]:
        """Writes samples into the arrays of their row, one behind the other; yields those that are skipped."""
        at = 0
        slots: dict[MediaKind, int] = {"image": 0, "video": 0}
        for k, sample in enumerate(samples):
            row["samples"][k] = sample
            try:
                pixels = [self.reader(medium) for medium in self.corpus.media_of(sample)]
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
            for kind, (start, end), array in zip(tokens.kinds, tokens.spans, pixels, strict=True):
                row[f"{kind}s"][slots[kind]] = array
                features = self._first_feature(kind, slots[kind]) + np.arange(end - start)
                row["media_index"][at + start : at + end] = features
                slots[kind] += 1
            at = stop

    def _first_feature(self, kind: MediaKind, slot: int) -> int:
        lengths = self.reader.tokens.lengths
        before = 0 if kind == "image" else self.plan.shape.row.images * lengths["image"]
        return before + slot * lengths[kind]


class Loader:
    """The micro-batches of a plan, one process's part of each, in order. Made by `loader`.

    Attributes:
        position: the number of the micro-batch that comes next.
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
            self._iterator = self._read_ahead()
        arrays, bad = next(self._iterator)
        # Out of the memory that is shared with the workers: that is scarce in containers, and free again with the copy.
        arrays = {name: np.array(array, subok=False) for name, array in arrays.items()}
        micro_batch = plan.micro_batch(self.position)
        batch = HostBatch(self.position, micro_batch.step, micro_batch.last, arrays, bad)
        self.position += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where it is, for JSON: of the plan and the data, not of this process or its workers."""
        return {"position": self.position, "plan": self._rows.plan.digest, "corpus": self._rows.corpus.digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, of a loader of any number of processes and workers.

        Raises:
            ValueError: the state is of another plan or other data.
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
        """Ends the workers; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            gc.collect()  # a circle of Grain's keeps each worker's last element, and its shared memory

    def _read_ahead(self) -> Any:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain asks for a flag of its own, which only a program of absl's has parsed
            flags.FLAGS.mark_as_parsed()
        # Grain's own default is to read 500 elements ahead, with 16 threads: of videos that is all the memory there is.
        threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._ahead)
        numbers = grain.MapDataset.range(self.position, len(self._rows.plan))
        return iter(numbers.map(self._rows).to_iter_dataset(threads).mp_prefetch(workers))


def loader(
    plan: Plan,
    corpus: Corpus,
    processor: VideoLlavaProcessor,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    ahead: int = 1,
) -> Loader:
    """Loads the micro-batches of a plan.

    A program that loads with workers has to guard what it does with `if __name__ == "__main__"`: workers import it
    anew. What media several samples of a micro-batch have in common is read for each of them.

    Args:
        corpus: what the plan was made for.
        processor: what the corpus was made with.
        limits: what a media file may cost to open.
        process_index, process_count: of `process_count` equal parts of every micro-batch's rows, this one is loaded.
        workers: processes that read; 0 reads in this one, when a batch is asked for.
        ahead: micro-batches that each worker holds ready; with those on their way, memory is taken for twice as many
            and two.

    Raises:
        ValueError: rows that the processes cannot share equally.
    """
    rows = plan.shape.rows
    if rows % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"expected a process of a number that divides the {rows} rows of a micro-batch, got process "
            f"{process_index} of {process_count}"
        )
    preprocess: dict[MediaKind, FramePreprocessor] = {
        "image": processor.image_processor,
        "video": processor.video_processor,
    }
    count = rows // process_count
    reader = _Reader(preprocess, corpus.media, limits)
    padding = processor.tokenizer.pad_token_id
    return Loader(_Rows(plan, corpus, reader, process_index * count, count, padding), workers, ahead)
