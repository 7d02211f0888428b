"""The authors' order of samples: steps of one modality, split into groups of even lengths. No JAX in here.

samples with media ──shuffled──▶ steps ──longest first, dealt out──▶ groups ──┐
├──steps shuffled──▶ order
samples of text ────shuffled──▶ steps ──longest first, dealt out──▶ groups ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Permute = Callable[[int], npt.NDArray[np.int64]]
"""Returns the numbers from 0 to n - 1 in a drawn order: int64 [n]."""


def grouped_order(
    lengths: npt.NDArray[np.integer], with_media: npt.NDArray[np.bool_], groups: int, batch: int, permute: Permute
) -> Int64:
    """Returns an epoch's order in which a step has samples with media, or samples of text alone.

    Each `batch` samples in order are a step, and each `batch // groups` a group. Steps that are not full come last,
    both modalities together, by their numbers. As `get_modality_length_grouped_indices` of the authors' code.

    Args:
        lengths: int [N], of the samples' texts.
        with_media: bool [N].
        groups: of a step; a divisor of `batch`.
        batch: samples of a step.
        permute: draws orders: of samples with media, of samples of text, of steps, one after the other.

    Returns:
        int64 [N], the numbers of the samples.
    """
    if with_media.all() or not with_media.any():
        signed = lengths if with_media.all() else -lengths  # their lengths of texts alone are negative
        return np.concatenate(_steps(np.arange(len(lengths)), signed, groups, batch, permute))
    kinds = [np.flatnonzero(with_media), np.flatnonzero(~with_media)]
    steps = [_steps(numbers, lengths[numbers], groups, batch, permute) for numbers in kinds]
    full = [step for of_kind in steps for step in of_kind[:-1]]
    last = np.sort(np.concatenate([of_kind[-1] for of_kind in steps]))
    return np.concatenate([*(full[i] for i in permute(len(full))), last])


def _steps(numbers: Int64, lengths: npt.NDArray[np.integer], groups: int, batch: int, permute: Permute) -> list[Int64]:
    """Returns the steps over some samples, each in the order of its groups; the last one may be smaller."""
    order = permute(len(numbers))
    steps = []
    for start in range(0, len(order), batch):
        step = order[start : start + batch]
        longest_first = step[np.argsort(-lengths[step], kind="stable")]
        steps.append(numbers[np.array(_dealt(longest_first.tolist(), lengths, groups), np.int64)])
    return steps


def _dealt(samples: Sequence[int], lengths: npt.NDArray[np.integer], groups: int) -> list[int]:
    """Deals samples out to groups of equal size: each goes to the group whose lengths have the smallest sum so far."""
    if len(samples) % groups:
        return [sample for i in range(groups) for sample in samples[i::groups]]
    dealt: list[list[int]] = [[] for _ in range(groups)]
    totals = [0.0] * groups
    for sample in samples:
        shortest = totals.index(min(totals))
        dealt[shortest].append(sample)
        totals[shortest] += int(lengths[sample])
        if len(dealt[shortest]) == len(samples) // groups:
            totals[shortest] = float("inf")
    return [sample for group in dealt for sample in group]
