"""The part of a scan worth keeping: boxes, cutting them out, putting results back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.typing import ScanArray, Triple, triple


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
        return triple(above - below for below, above in zip(self.lower, self.upper, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The index of the block in an array (slice, row, column)."""
        return triple(slice(below, above) for below, above in zip(self.lower, self.upper, strict=True))


def field_box(array: ScanArray, empty_value: float) -> Box:
    """The smallest box around the voxels of ``array`` (channel, slice, row, column) that some channel has filled.

    A voxel is empty when it holds ``empty_value``, or less where that is negative: on a scale that reaches below zero,
    as HU do, scanners fill outside their field with -1024, -2000 or -3024 alike. A scan that is empty throughout keeps
    its full box. Looks at one slice at a time, so that it needs no memory to speak of.
    """
    slices, rows, columns = (np.zeros(edge, bool) for edge in array.shape[1:])
    for channel in array:
        for number, section in enumerate(channel):
            filled = section > empty_value if empty_value < 0 else section != empty_value
            in_rows = filled.any(axis=1)
            slices[number] |= in_rows.any()
            rows |= in_rows
            columns |= filled.any(axis=0)
    if not slices.any():
        return Box((0, 0, 0), triple(array.shape[1:]))
    found = [np.flatnonzero(filled) for filled in (slices, rows, columns)]
    return Box(triple(int(one[0]) for one in found), triple(int(one[-1]) + 1 for one in found))


def crop(array: np.ndarray, box: Box) -> np.ndarray:
    """The block of ``array`` (..., slice, row, column) inside ``box``, as a view."""
    return array[(..., *box.slices)]


def uncrop(array: np.ndarray, box: Box, shape: Triple, fill: float) -> np.ndarray:
    """``array`` (..., slice, row, column) put back where `crop` took it from, ``fill`` elsewhere in ``shape``."""
    whole = np.full((*array.shape[:-3], *shape), fill, dtype=array.dtype)
    whole[(..., *box.slices)] = array
    return whole
