"""Voxel counts and the Dice similarity coefficient (DSC) of two label maps on one grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flarecps.dice import dice_coefficient

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

Box: TypeAlias = tuple[slice, slice, slice]

_SLAB_VOXELS = 1 << 21  # counted at once: bounds the memory to some 20 MB whatever the scan's size
EXCHANGED_OWN_DSC, EXCHANGED_OTHER_DSC = 0.1, 0.5  # far below any usable organ, and above mere neighbourhood


@dataclass(frozen=True)
class Overlap:
    """Voxels of one label in the prediction, in the reference, and in both at the same place."""

    prediction: int
    reference: int
    shared: int

    @property
    def dsc(self) -> float:
        """The Dice similarity coefficient, 2·shared / (prediction + reference), 0 to 1. Both empty: NaN.

        >>> Overlap(prediction=3, reference=5, shared=2).dsc
        0.5
        """
        return dice_coefficient(self.shared, self.prediction + self.reference)


def joint_histogram(
    prediction: UInt8[np.ndarray, "*voxels"], reference: UInt8[np.ndarray, "*voxels"]
) -> Int64[np.ndarray, "256 256"]:
    """How many voxels have value p in the prediction and r in the reference, at [p, r]; one pass over both arrays.

    Raises ValueError when the shapes differ or the arrays are not uint8.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"label maps of one shape are needed, not {prediction.shape} and {reference.shape}")
    if prediction.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"label maps must be uint8, not {prediction.dtype} and {reference.dtype}")
    counts = np.zeros(256 * 256, dtype=np.int64)
    if prediction.ndim == 3:  # most of a scan is background in both: that need not be looked at twice
        box = joint_box(occupied_box(prediction), occupied_box(reference))
        counts[0] = prediction.size
        prediction, reference = prediction[box], reference[box]
        counts[0] -= prediction.size
    flat_p, flat_r = prediction.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_p.size, _SLAB_VOXELS):
        part = slice(start, start + _SLAB_VOXELS)
        counts += np.bincount(flat_p[part].astype(np.uint16) << 8 | flat_r[part], minlength=counts.size)
    return counts.reshape(256, 256)


def overlap_per_label(histogram: Int64[np.ndarray, "256 256"], labels: Iterable[int]) -> dict[int, Overlap]:
    """The counts of each label id, read off a joint histogram."""
    prediction, reference = histogram.sum(axis=1), histogram.sum(axis=0)
    return {
        label: Overlap(int(prediction[label]), int(reference[label]), int(histogram[label, label])) for label in labels
    }


def dice_per_label(
    prediction: UInt8[np.ndarray, "*voxels"], reference: UInt8[np.ndarray, "*voxels"], labels: Iterable[int]
) -> dict[int, Overlap]:
    """Voxel counts and DSC of each label id, in one pass over two uint8 label maps of the same shape.

    A label in neither map has counts 0 and DSC NaN: what that is worth is for the protocol to say.

    >>> maps = np.array([[[0, 1, 1, 2]]], dtype=np.uint8), np.array([[[1, 1, 1, 0]]], dtype=np.uint8)
    >>> {label: overlap.dsc for label, overlap in dice_per_label(*maps, labels=(1, 2, 3)).items()}
    {1: 0.8, 2: 0.0, 3: nan}
    """
    return overlap_per_label(joint_histogram(prediction, reference), labels)


def exchanged_labels(histogram: Int64[np.ndarray, "256 256"], labels: Iterable[int]) -> list[tuple[int, int, float]]:
    """Labels that look exchanged, as (label in the prediction, label in the reference, their DSC).

    A predicted label that hardly meets its own reference (DSC below 0.1) but lies on another's (0.5 and more): sides
    taken for each other, or the numbers of another label set. Empty labels are never in it.
    """
    labels = list(labels)
    prediction, reference = histogram.sum(axis=1), histogram.sum(axis=0)
    found = []
    for label in labels:
        others = {
            other: Overlap(int(prediction[label]), int(reference[other]), int(histogram[label, other])).dsc
            for other in labels
            if prediction[label] and reference[other]
        }
        if others and others.get(label, 0.0) < EXCHANGED_OWN_DSC:
            best = max(others, key=others.__getitem__)
            if best != label and others[best] >= EXCHANGED_OTHER_DSC:
                found.append((label, best, others[best]))
    return found


def occupied_box(array: np.ndarray) -> Box:
    """The smallest box (slice, row, column) that holds all voxels of a 3D array that are not 0; empty when all are.

    One pass over the whole array, along its slices; the second pass sees the rows and columns found by then.
    """
    plane = array.max(axis=0, initial=0)
    rows, columns = _extent(plane.max(axis=1, initial=0)), _extent(plane.max(axis=0, initial=0))
    return _extent(array[:, rows, columns].max(axis=(1, 2), initial=0)), rows, columns


def joint_box(a: Box | None, b: Box | None) -> Box | None:
    """The smallest box that holds both; None stands for nothing."""
    if a is None or b is None:
        return a or b
    first, second, third = (
        slice(min(one.start, two.start), max(one.stop, two.stop)) for one, two in zip(a, b, strict=True)
    )
    return first, second, third


def _extent(line: np.ndarray) -> slice:
    found = np.flatnonzero(line)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
