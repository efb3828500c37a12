"""From fingerprint to plan: target spacing, axis order, intensities, batch Dice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.planning.fingerprint import CaseShape, Fingerprint
from flarecps.planning.histogram import Histogram
from flarecps.planning.plan import Plan
from flarecps.planning.planner import plan_dataset
from flarecps.planning.spacing import axis_order, in_canonical_order, in_network_order, target_spacing_mm


def shapes(spacings_mm: list[tuple], shape: tuple = (100, 512, 512), labelled: int = 2) -> tuple[CaseShape, ...]:
    return tuple(
        CaseShape(f"case_{i:03}", "labelled" if i < labelled else "unlabelled", shape, spacing, "LPS", {})
        for i, spacing in enumerate(spacings_mm)
    )


def a_catalogue(channels: tuple[str, ...] = ("CT",), classes: int = 14) -> Catalogue:
    labels = {"background": 0} | {f"organ {i}": i for i in range(1, classes)}
    return Catalogue(Path("data"), "Data", labels, channels, (), ())


def a_plan(cases: tuple[CaseShape, ...], **settings: Any) -> Plan:
    values = np.random.default_rng(0).normal(40, 80, 20000).round().astype(np.int16)
    fingerprint = Fingerprint(cases, Histogram.of(values), {1: Histogram.of(values[values > 0])})
    return plan_dataset(fingerprint, a_catalogue(), **settings)


def test_target_spacing_is_the_median_of_labelled_and_unlabelled_scans() -> None:
    cases = shapes([(1.0, 0.7, 0.7), (2.0, 0.8, 0.8), (3.0, 0.9, 0.9)], labelled=1)
    assert target_spacing_mm(cases) == pytest.approx((2.0, 0.8, 0.8))


def test_an_anisotropic_axis_takes_its_tenth_percentile() -> None:
    spacings = [(float(mm), 1.0, 1.0) for mm in range(4, 15)]  # 4 … 14 mm: median 9, tenth percentile 5
    assert target_spacing_mm(shapes(spacings, (20, 300, 300))) == pytest.approx((5.0, 1.0, 1.0))


def test_the_tenth_percentile_is_never_finer_than_the_other_axes() -> None:
    spacings = [(0.5, 1.0, 1.0)] * 2 + [(6.0, 1.0, 1.0)] * 9
    target = target_spacing_mm(shapes(spacings, (20, 300, 300)))
    assert target == pytest.approx((1.00001, 1.0, 1.0), abs=1e-9)


def test_thick_slices_of_a_long_scan_are_not_anisotropic() -> None:
    spacings = [(float(mm), 1.0, 1.0) for mm in range(4, 15)]
    assert target_spacing_mm(shapes(spacings, (101, 300, 300))) == pytest.approx((9.0, 1.0, 1.0))


def test_axis_order_and_its_inverse() -> None:
    assert axis_order((0.8, 0.8, 5.0)) == (2, 0, 1)
    assert axis_order((2.5, 3.9, 3.9)) == (0, 1, 2)  # two coarse axes: none is *the* coarse one
    assert in_network_order(("s", "r", "c"), (2, 0, 1)) == ("c", "s", "r")
    assert in_canonical_order(("c", "s", "r"), (2, 0, 1)) == ("s", "r", "c")


def test_a_coronal_data_set_is_planned_with_its_coarse_axis_first() -> None:
    plan = a_plan(shapes([(1.0, 4.0, 1.0)] * 3, (300, 40, 280)))
    assert plan.axis_order == (1, 0, 2)
    assert plan.spacing_mm == (4.0, 1.0, 1.0)
    assert plan.median_shape_voxels == (40, 300, 280)


def test_the_paper_with_four_times_nnunets_memory() -> None:
    cases = shapes([(1.0, 0.8, 0.8)] * 60, (400, 512, 512), labelled=50)
    plan = a_plan(cases, gpu_memory_gb=32.0)
    assert plan.patch_voxels == (112, 160, 128)
    assert plan.global_batch == {"labelled": 2, "unlabelled": 2}
    assert plan.batch_dice  # nnU-Net would add a low-resolution stage to data of this size
    assert plan.memory_gb == pytest.approx(18.1, rel=0.02), "as counted in test_step_memory, beside what two cards took"
    two = a_plan(cases, dimensions=2, gpu_memory_gb=32.0)
    assert two.patch_voxels == (512, 512)
    assert len(two.topology.features) == 8
    assert two.global_batch == {"labelled": 12, "unlabelled": 12}
    assert two.batch_dice


def test_small_scans_need_no_low_resolution_stage() -> None:
    plan = a_plan(shapes([(2.5, 4.0, 4.0)] * 10, (64, 53, 55)))
    assert not plan.batch_dice
    assert plan.patch_voxels == (64, 56, 56)


def test_ct_numbers_come_from_all_voxels_or_from_structures() -> None:
    cases = shapes([(2.0, 1.0, 1.0)] * 4)
    values = np.random.default_rng(0).normal(40, 80, 20000).round().astype(np.int16)
    for source, expected in (("global", values), ("foreground", values[values > 0])):
        intensity = a_plan(cases, intensity=source).intensity
        low, high = np.percentile(expected, [0.5, 99.5])
        assert (intensity.scheme, intensity.source) == ("ct", source)
        assert (intensity.low, intensity.high) == pytest.approx((low, high))
        assert (intensity.mean, intensity.sd) == pytest.approx((expected.mean(), expected.std()))


def test_other_modalities_are_scaled_scan_by_scan() -> None:
    fingerprint = Fingerprint(shapes([(2.0, 1.0, 1.0)] * 4))
    plan = plan_dataset(fingerprint, a_catalogue(("T2", "CT")))
    assert plan.intensity.scheme == "zscore"
    assert plan.channels == ("T2", "CT")


def test_settings_override_the_data() -> None:
    plan = a_plan(shapes([(2.0, 1.0, 1.0)] * 4), spacing_mm=[4.0, 4.0, 4.0], patch_voxels=[32, 32, 32])
    assert plan.spacing_mm == (4.0, 4.0, 4.0)
    assert plan.median_shape_voxels == (50, 128, 128)
    assert plan.patch_voxels == (32, 32, 32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spacing_mm": [1.0, 1.0]}, "--spacing"),
        ({"spacing_mm": [1.0, -1.0, 1.0]}, "above 0"),
        ({"patch_voxels": [30, 32, 32]}, "--patch 30×32×32"),
        ({"dimensions": 2, "patch_voxels": [32, 32, 32]}, "expected 2 positive"),
        ({"dimensions": 4}, "expected 2"),
        ({"intensity": "local"}, "'global'"),
        ({"gpu_memory_gb": 0.0}, "above 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        a_plan(shapes([(1.0, 1.0, 1.0)] * 4), **settings)


def test_foreground_without_structures() -> None:
    fingerprint = Fingerprint(shapes([(2.0, 1.0, 1.0)] * 4), Histogram.of(np.arange(100)))
    with pytest.raises(PlanError, match="--intensity global"):
        plan_dataset(fingerprint, a_catalogue(), intensity="foreground")


def test_a_constant_scan_is_no_ct() -> None:
    fingerprint = Fingerprint(shapes([(2.0, 1.0, 1.0)] * 4), Histogram.of(np.zeros(100, np.int16)))
    with pytest.raises(PlanError, match="is this CT"):
        plan_dataset(fingerprint, a_catalogue())
