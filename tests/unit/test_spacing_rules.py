"""The paper's enforced spacing, boundary by boundary, and that it is a pretence only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_model import small_plan

from flarecps.inference.segmenter import Segmenter, enforced_spacing_mm
from flarecps.volumes.io import read_volume, write_volume
from flarecps.volumes.space import Space


@pytest.mark.parametrize(
    ("slices", "z_mm"),
    [
        (2, 5.0),  # fewer than 150: the scan's own
        (149, 5.0),
        (150, 0.5),
        (600, 0.5),
        (601, 600 / 601 * 0.5),
        (700, 600 / 700 * 0.5),
        (750, 0.4),  # 600/750 = 0.8, the least
        (1200, 0.4),
    ],
)
def test_the_rule_by_number_of_slices(slices: int, z_mm: float) -> None:
    assert enforced_spacing_mm((slices, 512, 512), (5.0, 0.9, 0.8)) == pytest.approx((z_mm, 0.75, 0.75))


def test_direction_origin_and_source_are_untouched(tmp_path: Path) -> None:
    space = Space((4, 5, 6), (5.0, 0.9, 0.8), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0), (11.0, -7.0, 300.0))
    write_volume(tmp_path / "scan.nii.gz", np.arange(120, dtype=np.int16).reshape(4, 5, 6), space)
    volume = read_volume(tmp_path / "scan.nii.gz")
    seen = Segmenter(small_plan(), [], device="cpu", enforce_spacing=True)._seen(volume)
    assert seen.space.spacing_mm == pytest.approx((5.0, 0.75, 0.75))
    assert seen.array is volume.array
    assert seen.source == volume.source
    assert (seen.space.direction, seen.space.origin_mm) == (volume.space.direction, volume.space.origin_mm)
    assert volume.space.spacing_mm == pytest.approx((5.0, 0.8, 0.9))
