"""The plan of a training run: the samples of every row, the rows of every micro-batch, the micro-batches of every step.

    samples in the epoch's order ──`batch` at a time──▶ step ──packed──▶ rows ──`rows` at a time──▶ micro-batches

                  a row of packed samples                              one of padded samples
    tokens        [ sample 7        │ sample 2 │ sample 9 │ padding ]  [ sample 7              │ padding ]
    segments        1 1 1 1 1 1 1 1   2 2 2 2 2  3 3 3 3 3  0 0 0 0      1 1 1 1 1 1 1 1 1 1 1   0 0 0 0

Computed from lengths and a seed alone, so that every host has the same plan, and any micro-batch can be loaded without
those before it. No JAX in here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from videollava_jax.training.data.grouping import grouped_order

Order = Literal["random", "modality"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """The capacity of a row.

    Attributes:
        tokens: of text and media together.
        images, videos: the number of image slots and video slots, whose pixels every row has, filled or not.
        samples: the largest number of conversations.
    """

    tokens: int
    images: int = 1
    videos: int = 1
    samples: int = 32

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("images", 0), ("videos", 0), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a row: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The static shape of the arrays of a step.

    Attributes:
        batch: samples of an optimiser step, on all hosts together: the paper's 128.
        rows: of a micro-batch, on all hosts together.
        row: what a row holds.
        buckets: empty for packed rows, each of `row.tokens`. Otherwise every sample has a row of its own, samples of
            similar lengths are put together, and a micro-batch is padded to the smallest bucket that holds it.
    """

    batch: int
    rows: int
    row: RowShape
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.buckets and (sorted(set(self.buckets)) != list(self.buckets) or self.buckets[-1] != self.row.tokens):
            raise ValueError(
                f"buckets: expected ascending lengths, the last one the {self.row.tokens} tokens of a row; "
                f"got {self.buckets}"
            )

    @property
    def samples_per_row(self) -> int:
        """The number of samples that a row can hold: 1 where rows are padded."""
        return 1 if self.buckets else self.row.samples


@dataclass(frozen=True, eq=False)
class Sizes:
    """The number of tokens (media included), images and videos of each sample: int32 [N] each.

    `targets` are the tokens that are learnt, None where no plan weights them; `text` those that are no medium's, None
    where no plan orders by them.
    """

    tokens: Int32
    images: Int32
    videos: Int32
    targets: Int32 | None = None
    text: Int32 | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class MicroBatch:
    """The rows that are computed at once.

    Attributes:
        step: the optimiser step that it belongs to, from 0.
        last: whether it is the last micro-batch of its step.
        tokens: the length of its rows.
        rows: the samples of each row, in order; the last micro-batch of a step may have empty rows.
        weights: of the targets of each of these samples in the step's loss; None where all targets weigh 1.
    """

    step: int
    last: bool
    tokens: int
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class PackingReport:
    """The totals of a plan over all of its steps.

    Attributes:
        steps, micro_batches: the number of each.
        filled_rows, rows: rows that hold samples, and rows that are computed.
        tokens, positions: tokens of samples, and positions that are computed.
        images, image_slots, videos, video_slots: media, and slots for their pixels.
    """

    steps: int
    micro_batches: int
    filled_rows: int
    rows: int
    tokens: int
    positions: int
    images: int
    image_slots: int
    videos: int
    video_slots: int

    @property
    def padding(self) -> float:
        """The share of the positions that hold no token, from 0 to 1."""
        return 1 - self.tokens / self.positions

    def __str__(self) -> str:
        return (
            f"{self.steps} steps in {self.micro_batches} micro-batches, {self.filled_rows / self.steps:.1f} rows and "
            f"{self.tokens / self.steps:.0f} tokens a step, {self.padding:.1%} padding; {self.images} images in "
            f"{self.image_slots} slots, {self.videos} videos in {self.video_slots}"
        )


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """The micro-batches of a run, by number. Made by `make_plan`.

    Attributes:
        shape: how samples become arrays.
        order: int32 [steps · batch], the samples, row after row.
        row_starts: int64 [rows + 1], where in `order` each row begins.
        step_rows: int64 [steps + 1], the first row of each step.
        step_micro_batches: int64 [steps + 1], the first micro-batch of each step.
        lengths: int32 [micro-batches], the length of the rows of each.
        report: the totals.
        weights: float32 [steps · batch], of the targets of each sample of `order` in the loss; None where all weigh 1.
    """

    shape: BatchShape
    order: Int32
    row_starts: Int64
    step_rows: Int64
    step_micro_batches: Int64
    lengths: Int32
    report: PackingReport
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """The number of micro-batches."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The number of optimiser steps."""
        return len(self.step_rows) - 1

    @property
    def digest(self) -> str:
        """A hash, equal for plans of equal micro-batches."""
        digest = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        for array in (self.order, self.row_starts, self.step_rows, self.lengths):
            digest.update(array.tobytes())
        if self.weights is not None:
            digest.update(self.weights.tobytes())
        return digest.hexdigest()

    def micro_batch(self, number: int) -> MicroBatch:
        """Returns a micro-batch by its number, counted from 0 through all steps.

        Raises:
            IndexError: the plan has no such micro-batch.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"micro-batch {number}: expected one of {len(self)}")
        step = int(np.searchsorted(self.step_micro_batches, number, side="right")) - 1
        first = self.step_rows[step] + (number - self.step_micro_batches[step]) * self.shape.rows
        stop = min(first + self.shape.rows, self.step_rows[step + 1])
        last = number + 1 == self.step_micro_batches[step + 1]

        def by_row(array: npt.NDArray[Any]) -> tuple[tuple[Any, ...], ...]:
            rows = [tuple(array[self.row_starts[r] : self.row_starts[r + 1]].tolist()) for r in range(first, stop)]
            return (*rows, *[()] * (self.shape.rows - len(rows)))

        weights = None if self.weights is None else by_row(self.weights)
        return MicroBatch(step, bool(last), int(self.lengths[number]), by_row(self.order), weights)


def steps_of(epochs: float, samples: int, batch: int) -> int:
    """Returns the steps that `epochs` passes over the samples take; the last step is filled up from the next epoch."""
    return math.ceil(epochs * samples / batch)


def make_plan(
    sizes: Sizes,
    shape: BatchShape,
    *,
    steps: int,
    seed: int,
    loss_samples: int | None = None,
    order: Order = "random",
) -> PackingPlan:
    """Plans a run.

    Each step takes the next `batch` samples of an endless sequence: epoch after epoch, each in an order of its own. The
    samples left over at the end of an epoch share a step with the first of the next. Within a step samples are packed,
    longest first, each into the first row that has room.

    Args:
        sizes: of all samples.
        steps: optimiser steps; see `steps_of`.
        seed: decides the orders.
        loss_samples: the loss of a step is the mean over groups of this many samples, neighbours in the epoch's order,
            of each group's mean over its targets; None for the mean over all targets of the step.
        order: of an epoch's samples: "random", or "modality" (`grouped_order`), with groups of `loss_samples`.

    Raises:
        ValueError: no samples or steps, a sample that no row holds, or groups that do not divide a step.
    """
    if not len(sizes) or steps < 1:
        raise ValueError(f"expected samples and steps, got {len(sizes)} samples and {steps} steps")
    _require_room(sizes, shape.row)
    table = np.stack([sizes.tokens, sizes.images, sizes.videos], axis=1)
    own_order = None
    if order == "modality":
        groups = 1 if loss_samples is None else max(shape.batch // loss_samples, 1)
        own_order = partial(_modality_order, sizes, groups, shape.batch, seed)
    drawn = sample_order(len(sizes), 0, steps * shape.batch, seed, own_order).reshape(steps, shape.batch)
    weights: list[npt.NDArray[np.float32]] = []
    in_order: list[int] = []
    row_sizes, step_rows, step_micro_batches, lengths = [], [0], [0], []
    for group in drawn:
        longest_first = group[np.argsort(-sizes.tokens[group], kind="stable")]
        if shape.buckets:
            rows = [[sample] for sample in longest_first.tolist()]
            longest = sizes.tokens[longest_first[:: shape.rows]]  # each micro-batch's first row is its longest
            lengths += [shape.buckets[i] for i in np.searchsorted(shape.buckets, longest)]
        else:
            rows = _pack(longest_first.tolist(), table[longest_first].tolist(), shape.row)
            lengths += [shape.row.tokens] * math.ceil(len(rows) / shape.rows)
        packed = [sample for row in rows for sample in row]
        if loss_samples is not None:
            weights.append(_weights(group, packed, sizes, loss_samples))
        in_order += packed
        row_sizes += [len(row) for row in rows]
        step_rows.append(len(row_sizes))
        step_micro_batches.append(len(lengths))
    computed = len(lengths) * shape.rows
    used = table[in_order].sum(axis=0, dtype=np.int64)
    report = PackingReport(
        steps=steps,
        micro_batches=len(lengths),
        filled_rows=len(row_sizes),
        rows=computed,
        tokens=int(used[0]),
        positions=sum(lengths) * shape.rows,
        images=int(used[1]),
        image_slots=computed * shape.row.images,
        videos=int(used[2]),
        video_slots=computed * shape.row.videos,
    )
    return PackingPlan(
        shape,
        np.array(in_order, np.int32),
        np.concatenate([[0], np.cumsum(row_sizes)]).astype(np.int64),
        np.array(step_rows, np.int64),
        np.array(step_micro_batches, np.int64),
        np.array(lengths, np.int32),
        report,
        np.concatenate(weights) if weights else None,
    )


def _weights(group: Int64, packed: Sequence[int], sizes: Sizes, loss_samples: int) -> npt.NDArray[np.float32]:
    """Returns the weight of each packed sample's targets, with which a step's mean is the mean of its groups' means.

    Args:
        group: int64 [batch], the samples of a step in the epoch's order; one may come twice, at the turn of an epoch.
        packed: the same samples, in the order of the rows.

    Raises:
        ValueError: the groups do not divide the step.
    """
    if len(group) % loss_samples:
        raise ValueError(
            f"data.loss_samples: expected a number that divides the {len(group)} samples of a step, got {loss_samples}"
        )
    assert sizes.targets is not None
    targets = sizes.targets[group].reshape(-1, loss_samples).astype(np.float64)
    weights = targets.sum() / len(targets) / np.maximum(targets.sum(axis=1), 1)
    left: dict[int, list[float]] = {}
    for sample, weight in zip(group.tolist(), np.repeat(weights, loss_samples).tolist(), strict=True):
        left.setdefault(sample, []).append(weight)
    return np.array([left[sample].pop() for sample in packed], np.float32)


def _require_room(sizes: Sizes, row: RowShape) -> None:
    for name in ("tokens", "images", "videos"):
        over = np.flatnonzero(getattr(sizes, name) > getattr(row, name))
        if len(over):
            raise ValueError(
                f"sample {over[0]} has {getattr(sizes, name)[over[0]]} {name}, and a row holds {getattr(row, name)}; "
                f"{len(over)} of {len(sizes)} samples are too large: leave them out, or take larger rows"
            )


def sample_order(
    samples: int, start: int, stop: int, seed: int, epoch_order: Callable[[int], Int64] | None = None
) -> Int64:
    """Returns the elements [start, stop) of the endless sequence of samples: int64, from 0 to `samples` - 1.

    Args:
        epoch_order: returns the order of an epoch by its number; None for a random one.
    """
    of_epoch = epoch_order or (lambda epoch: _epoch_order(samples, epoch, seed))
    epochs = []
    while start < stop:
        epoch, first = divmod(start, samples)
        end = min(samples, first + stop - start)
        epochs.append(of_epoch(epoch)[first:end])
        start += end - first
    return np.concatenate(epochs)


def _epoch_order(samples: int, epoch: int, seed: int) -> Int64:
    return _permuting(seed, epoch)(samples)


def _modality_order(sizes: Sizes, groups: int, batch: int, seed: int, epoch: int) -> Int64:
    assert sizes.text is not None
    with_media = (sizes.images > 0) | (sizes.videos > 0)
    return grouped_order(sizes.text, with_media, groups, batch, _permuting(seed, epoch))


def _permuting(seed: int, epoch: int) -> Callable[[int], Int64]:
    """Returns what draws the orders of an epoch."""
    # Not `permutation`: NumPy keeps the bits of a generator the same in all versions, but not what it draws from them.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return lambda count: np.argsort(bits.random_raw(count), kind="stable")


def _pack(samples: Sequence[int], sizes: Sequence[Sequence[int]], row: RowShape) -> list[list[int]]:
    """Packs samples first fit: each goes into the first row that has room for it."""
    rows: list[list[int]] = []
    left: list[list[int]] = []
    for sample, (tokens, images, videos) in zip(samples, sizes, strict=True):
        for members, free in zip(rows, left, strict=True):
            if tokens <= free[0] and images <= free[1] and videos <= free[2] and len(members) < row.samples:
                break
        else:
            members, free = [], [row.tokens, row.images, row.videos]
            rows.append(members)
            left.append(free)
        members.append(sample)
        free[0] -= tokens
        free[1] -= images
        free[2] -= videos
    return rows
