"""Where in an array anything lies: scoring looks at organs, not at the air around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from scipy.ndimage import find_objects

Box: TypeAlias = tuple[slice, slice, slice]


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


def label_boxes(labels: np.ndarray, ids: Sequence[int]) -> dict[int, Box | None]:
    """The box of each label id in a label map (slice, row, column); None for a label that is not there."""
    whole = occupied_box(labels)
    found = find_objects(labels[whole], max_label=max(ids, default=0)) if max(ids, default=0) else []
    boxes: dict[int, Box | None] = {}
    for label in ids:
        box = found[label - 1]
        boxes[label] = None if box is None else _moved(box, whole)
    return boxes


def _moved(box: Box, within: Box) -> Box:
    first, second, third = (
        slice(inner.start + outer.start, inner.stop + outer.start) for inner, outer in zip(box, within, strict=True)
    )
    return first, second, third


def _extent(line: np.ndarray) -> slice:
    found = np.flatnonzero(line)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
