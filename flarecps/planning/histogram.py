"""Exact histograms over whole numbers (HU): mergeable by addition, and statistics without sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_CHUNK = 1 << 20  # voxels converted at a time: bincount needs 8 bytes per voxel


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each whole value occurs: ``counts[i]`` voxels of value ``lowest + i``; trimmed, so equal is equal."""

    lowest: int
    counts: np.ndarray  # int64, first and last are not 0; length 0 when nothing was counted

    @staticmethod
    def empty() -> Histogram:
        """A histogram of nothing."""
        return Histogram(0, np.zeros(0, np.int64))

    @staticmethod
    def of(values: np.ndarray) -> Histogram:
        """The histogram of an integer array of any shape."""
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"a histogram counts whole numbers, not {values.dtype}")
        flat = values.ravel()
        if flat.size == 0:
            return Histogram.empty()
        lowest, highest = int(flat.min()), int(flat.max())
        counts = np.zeros(highest - lowest + 1, np.int64)
        for start in range(0, flat.size, _CHUNK):
            shifted = flat[start : start + _CHUNK].astype(np.int64) - lowest
            counts += np.bincount(shifted, minlength=counts.size)
        return Histogram(lowest, counts)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def filled(self) -> dict[int, int]:
        """How often each value that occurs does, ascending by value.

        >>> Histogram.of(np.array([3, 1, 3])).filled()
        {1: 1, 3: 2}
        """
        return {int(index) + self.lowest: int(self.counts[index]) for index in np.flatnonzero(self.counts)}

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values together."""
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        lowest = min(self.lowest, other.lowest)
        highest = max(self.lowest + self.counts.size, other.lowest + other.counts.size)
        counts = np.zeros(highest - lowest, np.int64)
        for one in (self, other):
            counts[one.lowest - lowest : one.lowest - lowest + one.counts.size] += one.counts
        return Histogram(lowest, counts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram) and self.lowest == other.lowest and np.array_equal(self.counts, other.counts)
        )

    def mean(self) -> float:
        """The mean, from exact integer sums. Raises ``ValueError`` when nothing was counted."""
        total, first, _ = self._sums()
        return first / total

    def sd(self) -> float:
        """The population standard deviation, from exact integer sums."""
        total, first, second = self._sums()
        return math.sqrt(total * second - first * first) / total

    def percentile(self, percent: float) -> float:
        """The value below which ``percent`` % lie, linear between neighbours, as ``numpy.percentile``."""
        total, _, _ = self._sums()
        position = percent / 100 * (total - 1)
        below = math.floor(position)
        cumulative = np.cumsum(self.counts)
        low, high = (
            self.lowest + int(np.searchsorted(cumulative, rank, side="right"))
            for rank in (below, min(below + 1, total - 1))
        )
        return low + (position - below) * (high - low)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"lowest": self.lowest, "counts": self.counts.tolist()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Histogram:
        """The inverse of ``to_json``."""
        counts = np.asarray(content["counts"])
        if counts.ndim != 1 or (counts.size and (counts.dtype.kind not in "iu" or counts.min() < 0)):
            raise ValueError("the counts of a histogram are not whole numbers in a row")
        return Histogram(int(content["lowest"]), counts.astype(np.int64))

    def _sums(self) -> tuple[int, int, int]:
        """Count, sum and sum of squares, as Python's unbounded integers (int64 overflows on large data sets)."""
        filled = np.flatnonzero(self.counts)
        if not filled.size:
            raise ValueError("no statistics of an empty histogram")
        counts = self.counts[filled].tolist()
        values = (filled + self.lowest).tolist()
        first = sum(count * value for count, value in zip(counts, values, strict=True))
        second = sum(count * value * value for count, value in zip(counts, values, strict=True))
        return sum(counts), first, second
