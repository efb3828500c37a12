"""Boxes around what is there, against plain looking."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flarecps.evaluation.overlap import joint_box, occupied_box

MAPS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0, 0, 0, 1, 3]),
)


def by_looking(mask: np.ndarray) -> tuple[slice, ...] | None:
    places = np.argwhere(mask)
    if not len(places):
        return None
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True))


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_boxes_are_the_smallest(labels: np.ndarray) -> None:
    for array in (labels, labels > 0, labels.T):
        assert occupied_box(array) == (by_looking(array) or (slice(0, 0),) * 3)
    one, three = by_looking(labels == 1), by_looking(labels == 3)
    assert joint_box(one, three) == by_looking(labels > 0)
