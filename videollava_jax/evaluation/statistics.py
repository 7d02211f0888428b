"""Intervals and paired tests of metrics that are functions of sums, by drawing clusters again. NumPy, fixed seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
SEED = 0
Metrics = Callable[[Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval.

    Attributes:
      value: of all questions.
      low, high: the 2.5th and 97.5th percentiles over the draws.
      error: the standard deviation over the draws.
    """

    value: float
    low: float
    high: float
    error: float

    def record(self) -> dict[str, float]:
        """Returns it for JSON, rounded to 4 decimals."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def _matrix(clusters: Sequence[Mapping[str, float]]) -> tuple[list[str], npt.NDArray[np.float64]]:
    names = sorted({name for counts in clusters for name in counts})
    return names, np.array([[counts.get(name, 0.0) for name in names] for counts in clusters], np.float64)


def _of(metrics: Metrics, names: Sequence[str], sums: npt.NDArray[np.float64]) -> Mapping[str, float]:
    return metrics({name: float(value) for name, value in zip(names, sums, strict=True)})


def intervals(clusters: Sequence[Mapping[str, float]], metrics: Metrics) -> dict[str, Interval]:
    """Returns each metric with its interval by the bootstrap over clusters.

    Args:
      clusters: sums of the counts of each cluster, by name; at least one.
      metrics: from the sums over clusters.
    """
    names, matrix = _matrix(clusters)
    values = _of(metrics, names, matrix.sum(0))
    rng = np.random.default_rng(SEED)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(len(matrix), size=len(matrix)), minlength=len(matrix))
        again = _of(metrics, names, times @ matrix)
        for name in drawn:
            if name in again:  # a draw may have no question of a category
                drawn[name].append(again[name])
    found = {}
    for name, value in values.items():
        low, high = np.percentile(drawn[name] or [value], [2.5, 97.5])
        found[name] = Interval(value, float(low), float(high), float(np.std(drawn[name] or [value])))
    return found


@dataclass(frozen=True)
class Difference:
    """How much a metric of B is above that of A, on the same questions.

    Attributes:
      value: B minus A.
      low, high: its 95 % interval, by the bootstrap over clusters.
      p: how often a difference at least as large comes when A and B change places in random clusters.
    """

    value: float
    low: float
    high: float
    p: float

    def record(self) -> dict[str, float]:
        """Returns it for JSON, rounded to 4 decimals."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def difference(
    a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], metrics: Metrics, metric: str
) -> Difference:
    """Compares a metric of two runs, cluster by cluster: a paired bootstrap, and a paired permutation test.

    Args:
      a, b: sums of the counts of each cluster in the two runs, in the same order of clusters.
      metrics: from the sums over clusters.
      metric: the name of the one that is compared.
    """
    names, matrix = _matrix([*a, *b])
    one, two = matrix[: len(a)], matrix[len(a) :]

    def of(sums: npt.NDArray[np.float64]) -> float:
        return float(_of(metrics, names, sums).get(metric, 0.0))

    value = of(two.sum(0)) - of(one.sum(0))
    rng = np.random.default_rng(SEED)
    drawn, extreme = [], 0
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(len(one), size=len(one)), minlength=len(one))
        drawn.append(of(times @ two) - of(times @ one))
        swapped = rng.integers(2, size=len(one)).astype(bool)[:, None]
        other = of(np.where(swapped, one, two).sum(0)) - of(np.where(swapped, two, one).sum(0))
        extreme += abs(other) >= abs(value) - 1e-12
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(value, float(low), float(high), (extreme + 1) / (DRAWS + 1))
