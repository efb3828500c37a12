"""How a canonical scan is laid on paper: which slice, which way up, how many millimetres.

Radiological display: the patient's right is on the image's left, anterior is up in the axial plane, superior is
up in the coronal and sagittal ones, and the sagittal view looks towards the image's left (anterior left).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from flarecps.typing import SpacingMm, Triple

CONVENTION = "Radiological display: the patient’s right is on the image’s left; anterior up, superior up."


@dataclass(frozen=True)
class ViewPlane:
    """One way of slicing a canonical (slice, row, column) array."""

    name: str
    cut: int  # the array axis that is cut across
    down: int  # the array axis that runs down the picture; both run against their index
    across: int
    left: str  # what lies at each edge of the picture
    right: str
    top: str
    bottom: str

    def section(self, volume: np.ndarray, index: int) -> np.ndarray:
        """The slice ``index`` of a (S, H, W) array as it is displayed, first row on top."""
        return volume.take(index, axis=self.cut)[::-1, ::-1]

    def size_mm(self, shape: Triple, spacing_mm: SpacingMm) -> tuple[float, float]:
        """Width and height of the picture in millimetres."""
        return shape[self.across] * spacing_mm[self.across], shape[self.down] * spacing_mm[self.down]


AXIAL = ViewPlane("axial", cut=0, down=1, across=2, left="R", right="L", top="A", bottom="P")
CORONAL = ViewPlane("coronal", cut=1, down=0, across=2, left="R", right="L", top="S", bottom="I")
SAGITTAL = ViewPlane("sagittal", cut=2, down=0, across=1, left="A", right="P", top="S", bottom="I")
PLANES = (AXIAL, CORONAL, SAGITTAL)


def slice_with_most_labels(labels: np.ndarray, plane: ViewPlane, organ: int | None = None) -> int:
    """The slice that shows most of the foreground: for one organ, the slice with its largest area.

    For several organs every one counts by its area on the slice as a share of its own largest area in this plane, so
    that many organs are shown, well cut, and small ones weigh as much as the liver. Among equals the slice nearest to
    the middle; without any foreground the middle slice. ``labels``: (S, H, W), 0 is background; ``organ``: a label id.

    >>> slice_with_most_labels(np.array([[[0, 0]], [[1, 0]], [[1, 1]]]), AXIAL)
    2
    """
    slices = labels.shape[plane.cut]
    across = tuple(axis for axis in range(3) if axis != plane.cut)
    ids = [organ] if organ is not None else [int(label) for label in np.unique(labels) if label != 0]
    shown = np.zeros(slices)
    for label in ids:
        areas = (labels == label).sum(axis=across)
        shown += areas / max(int(areas.max()), 1)
    return max(range(slices), key=lambda index: (round(float(shown[index]), 9), -abs(2 * index - (slices - 1))))


def foreground_box(
    masks: Iterable[np.ndarray], shape: Triple, spacing_mm: SpacingMm, margin_mm: float
) -> tuple[slice, ...]:
    """The box around every foreground voxel of ``masks``, grown by ``margin_mm`` and kept inside ``shape``.

    Without foreground: the whole array. Used to leave out air and table, so that organs are large on paper.
    """
    joint = np.zeros(shape, np.uint8)
    for mask in masks:
        joint |= mask
    boxes = ndimage.find_objects(joint)
    if not boxes:
        return tuple(slice(0, size) for size in shape)
    margins = [int(np.ceil(margin_mm / step)) for step in spacing_mm]
    return tuple(
        slice(max(0, part.start - grow), min(size, part.stop + grow))
        for part, grow, size in zip(boxes[0], margins, shape, strict=True)
    )
