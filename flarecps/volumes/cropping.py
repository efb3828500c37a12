"""The part of a scan worth keeping: boxes, cutting them out, putting results back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.typing import ScanArray, Triple


@dataclass(frozen=True)
class Box:
    """A block of voxels from ``lower`` up to, but not including, ``upper`` (slice, row, column)."""

    lower: Triple
    upper: Triple

    @property
    def shape(self) -> Triple:
        """Edge lengths in voxels.

        >>> Box((1, 0, 2), (4, 5, 6)).shape
        (3, 5, 4)
        """
        first, second, third = (above - below for below, above in zip(self.lower, self.upper, strict=True))
        return first, second, third

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The index of the block in an array (slice, row, column)."""
        first, second, third = (slice(below, above) for below, above in zip(self.lower, self.upper, strict=True))
        return first, second, third


def field_box(array: ScanArray, empty_value: float) -> Box:
    """The smallest box around the voxels of ``array`` (channel, slice, row, column) that some channel has filled.

    A voxel is empty when it holds ``empty_value``, or less where that is negative: on a scale that reaches below zero,
    as HU do, scanners fill outside their field with -1024, -2000 or -3024 alike. A scan that is empty throughout keeps
    its full box.
    """
    filled = np.zeros(array.shape[1:], bool)
    for channel in array:
        filled |= channel > empty_value if empty_value < 0 else channel != empty_value
    lower, upper = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(filled.any(axis=others))
        if not len(found):
            return Box((0, 0, 0), (array.shape[1], array.shape[2], array.shape[3]))
        lower.append(int(found[0]))
        upper.append(int(found[-1]) + 1)
    return Box((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))


def crop(array: np.ndarray, box: Box) -> np.ndarray:
    """The block of ``array`` (..., slice, row, column) inside ``box``, as a view."""
    return array[(..., *box.slices)]


def uncrop(array: np.ndarray, box: Box, shape: Triple, fill: float) -> np.ndarray:
    """``array`` (..., slice, row, column) put back where `crop` took it from, ``fill`` elsewhere in ``shape``."""
    whole = np.full((*array.shape[:-3], *shape), fill, dtype=array.dtype)
    whole[(..., *box.slices)] = array
    return whole
