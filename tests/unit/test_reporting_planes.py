"""How scans are laid on paper: sides, slices, millimetres."""

from __future__ import annotations

import numpy as np
import pytest

from flarecps.reporting.planes import (
    AXIAL,
    CORONAL,
    PLANES,
    SAGITTAL,
    ViewPlane,
    foreground_box,
    slice_with_most_labels,
)

SHAPE = (5, 6, 7)  # slice, row, column


def marked(axis: int, index: int) -> np.ndarray:
    volume = np.zeros(SHAPE)
    volume[tuple(index if a == axis else slice(None) for a in range(3))] = 1
    return volume


@pytest.mark.parametrize(
    ("plane", "axis", "edge"),
    [
        # canonical RAS: the last column is the patient's right, the last row anterior, the last slice superior
        (AXIAL, 2, "left"),
        (AXIAL, 1, "top"),
        (CORONAL, 2, "left"),
        (CORONAL, 0, "top"),
        (SAGITTAL, 1, "left"),
        (SAGITTAL, 0, "top"),
    ],
)
def test_radiological_display(plane: ViewPlane, axis: int, edge: str) -> None:
    section = plane.section(marked(axis, -1), 2)
    line = section[0, :] if edge == "top" else section[:, 0]
    assert line.all()
    assert section.sum() == line.size
    letters = {0: "S", 1: "A", 2: "R"}
    assert getattr(plane, edge) == letters[axis]


@pytest.mark.parametrize("plane", PLANES)
def test_size_is_that_of_the_section(plane: ViewPlane) -> None:
    spacing = (3.0, 0.5, 0.25)
    rows, columns = plane.section(np.zeros(SHAPE), 0).shape
    width, height = plane.size_mm(SHAPE, spacing)
    assert (width, height) == (columns * spacing[plane.across], rows * spacing[plane.down])
    assert {plane.cut, plane.down, plane.across} == {0, 1, 2}


def test_one_organ_is_shown_where_its_area_is_largest() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, :2, :2] = 3
    labels[3, :4, :4] = 3
    labels[0] = 9  # another organ, everywhere on slice 0
    assert slice_with_most_labels(labels, AXIAL, organ=3) == 3


def test_many_organs_count_by_their_own_largest_area() -> None:
    labels = np.zeros((4, 20, 20), np.uint8)
    labels[0, :15] = 1  # slice 0: all of a large organ
    labels[2, :12] = 1  # slice 2: 80 % of it, and two small ones whole
    labels[2, 15, :3] = 2
    labels[2, 18, 5] = 3
    assert slice_with_most_labels(labels, AXIAL) == 2


def test_without_foreground_the_middle_slice() -> None:
    assert [slice_with_most_labels(np.zeros(SHAPE, np.uint8), plane) for plane in PLANES] == [2, 2, 3]
    assert slice_with_most_labels(np.zeros(SHAPE, np.uint8), AXIAL, organ=4) == 2


def test_box_grows_by_millimetres_and_stays_inside() -> None:
    mask = np.zeros((20, 30, 40), bool)
    mask[10, 15, 2] = True
    box = foreground_box([mask], (20, 30, 40), (5.0, 2.0, 1.0), margin_mm=6.0)
    assert box == (slice(8, 13), slice(12, 19), slice(0, 9))


def test_box_holds_every_mask_and_is_everything_without_foreground() -> None:
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[1, 1, 1] = second[3, 4, 5] = True
    assert foreground_box([first, second], SHAPE, (1.0, 1.0, 1.0), margin_mm=0) == (
        slice(1, 4),
        slice(1, 5),
        slice(1, 6),
    )
    assert foreground_box([np.zeros(SHAPE, bool)], SHAPE, (1.0, 1.0, 1.0), 5) == tuple(slice(0, size) for size in SHAPE)
    assert foreground_box([], SHAPE, (1.0, 1.0, 1.0), 5) == tuple(slice(0, size) for size in SHAPE)
