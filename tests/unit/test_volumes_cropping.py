"""Boxes around what a scan holds, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from flarecps.volumes.cropping import Box, crop, field_box, uncrop


def test_the_box_is_the_smallest_around_what_any_channel_holds() -> None:
    scan = np.zeros((2, 6, 7, 8), np.float32)
    scan[0, 2, 3, 4] = 1.5
    scan[1, 4, 1, 4] = -2.0
    box = field_box(scan, 0)
    assert box == Box((2, 1, 4), (5, 4, 5))
    assert box.shape == (3, 3, 1)
    assert crop(scan, box).shape == (2, 3, 3, 1)


def test_hu_at_or_below_the_fill_are_empty() -> None:
    scan = np.full((1, 5, 5, 5), -1024, np.int16)
    scan[0, 0] = -3024
    scan[0, 1:3, 2, 3] = [-1000, 60]
    assert field_box(scan, -1024) == Box((1, 2, 3), (3, 3, 4))


@pytest.mark.parametrize("fill", [0, -1024])
def test_an_empty_scan_keeps_its_full_box(fill: int) -> None:
    assert field_box(np.full((1, 3, 4, 5), fill, np.int16), fill) == Box((0, 0, 0), (3, 4, 5))


def test_uncrop_puts_back_what_crop_took() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:4, 2:7, 3:5] = generator.integers(1, 9, (3, 5, 2))
    box = field_box(labels[None], 0)
    restored = uncrop(crop(labels, box), box, labels.shape, fill=0)
    np.testing.assert_array_equal(restored, labels)
    assert restored.dtype == np.uint8
    channels = uncrop(np.ones((2, *box.shape), np.float32), box, labels.shape, fill=-1)
    assert channels.shape == (2, 6, 7, 8)
    assert channels.sum() == 2 * 30 - 2 * (6 * 7 * 8 - 30)
