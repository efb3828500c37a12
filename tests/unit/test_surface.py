"""Surface distances against hand-computed areas, a brute-force search, and DeepMind's surface-distance."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from flarecps.evaluation.surface import (
    CORNERS,
    SurfaceDistances,
    average_symmetric_distance_mm,
    normalised_surface_dice,
    robust_hausdorff_mm,
    surface_codes,
    surface_distances,
    surfel_areas_mm2,
)
from flarecps.typing import SpacingMm

SPACINGS = ((1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (3.0, 0.7, 1.3))


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """DeepMind's package, whose numbers FLARE uses. It calls names that NumPy 2 removed and SciPy deprecates."""
    metrics = pytest.importorskip("surface_distance.metrics", reason="DeepMind's surface-distance is not installed")
    for name, value in (("Inf", math.inf), ("NaN", math.nan)):
        monkeypatch.setattr(np, name, value, raising=False)
    for name in ("filters", "morphology"):
        monkeypatch.setattr(scipy.ndimage, name, scipy.ndimage, raising=False)
    return metrics


def blob(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float, share: float) -> np.ndarray:
    """A random shape that fills ``share`` of the array, often touching its border."""
    field = gaussian_filter(rng.normal(size=shape), sigma)
    return field > np.quantile(field, 1 - share)


def box_mask(size: tuple[int, int, int], margin: int = 2) -> np.ndarray:
    return np.pad(np.ones(size, bool), margin)


# Areas


def box_area_mm2(size: tuple[int, int, int], spacing_mm: SpacingMm) -> float:
    """By hand: a box's surface runs half a voxel outside its voxel centres; its edges and corners are cut off."""
    steps = [(count - 1) * step for count, step in zip(size, spacing_mm, strict=True)]
    faces = 2 * (steps[0] * steps[1] + steps[1] * steps[2] + steps[0] * steps[2])
    edges = 0.0
    for along in range(3):
        first, second = (spacing_mm[axis] for axis in range(3) if axis != along)
        edges += 4 * steps[along] * math.hypot(first / 2, second / 2)
    s, r, c = spacing_mm
    corner = 0.5 * math.sqrt((r * c / 4) ** 2 + (s * c / 4) ** 2 + (s * r / 4) ** 2)
    return faces + edges + 8 * corner


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 4), (1, 3, 2), (3, 4, 5)])
def test_area_of_a_box_by_hand(size: tuple[int, int, int], spacing_mm: SpacingMm) -> None:
    areas, expected = surfel_areas_mm2(spacing_mm), pytest.approx(box_area_mm2(size, spacing_mm), rel=1e-12)
    assert areas[surface_codes(box_mask(size))].sum() == expected
    assert areas[surface_codes(box_mask(size, margin=0))].sum() == expected  # closed at the array's border


def test_areas_of_bent_pieces_by_hand() -> None:
    """Three corners in an L: half the face above them, and a bevel of 0.25·√3 + 0.125·√3 beside them."""
    areas = surfel_areas_mm2((1.0, 1.0, 1.0))
    in_an_l = 1 << CORNERS.index((0, 0, 0)) | 1 << CORNERS.index((0, 0, 1)) | 1 << CORNERS.index((0, 1, 0))
    assert areas[in_an_l] == pytest.approx(0.5 + 0.375 * math.sqrt(3))
    apart = 1 << CORNERS.index((0, 0, 0)) | 1 << CORNERS.index((0, 1, 1))  # touch across a face: two separate corners
    assert areas[apart] == pytest.approx(2 * areas[1])


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_areas_do_not_depend_on_the_side_or_a_mirror(spacing_mm: SpacingMm) -> None:
    areas = surfel_areas_mm2(spacing_mm)
    assert areas[0] == areas[255] == 0.0
    assert (areas[1:255] > 0).all()
    for code in range(256):
        inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
        assert areas[code] == pytest.approx(areas[255 - code], rel=1e-12)
        for axis in range(3):
            mirrored = {tuple(1 - x if a == axis else x for a, x in enumerate(corner)) for corner in inside}
            twin = sum(1 << CORNERS.index(corner) for corner in mirrored)
            assert areas[code] == pytest.approx(areas[twin], rel=1e-12)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_all_256_areas_equal_the_peers(peer: ModuleType, spacing_mm: SpacingMm) -> None:
    """Its code numbers the corners from the other end, which mirrors the block in all axes: the area is the same."""
    expected = peer.lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    np.testing.assert_allclose(surfel_areas_mm2(spacing_mm), expected, rtol=1e-12)


def test_codes_equal_a_look_at_every_block() -> None:
    mask = np.random.default_rng(1).random((3, 4, 5)) < 0.4
    codes = surface_codes(mask)
    assert codes.shape == (4, 5, 6)
    outside = np.pad(mask, 1)
    for place in itertools.product(*(range(edge) for edge in codes.shape)):
        expected = sum(
            int(outside[tuple(p + c for p, c in zip(place, corner, strict=True))]) << bit
            for bit, corner in enumerate(CORNERS)
        )
        assert codes[place] == expected


# Distances


def brute_force(prediction: np.ndarray, reference: np.ndarray, spacing_mm: SpacingMm) -> SurfaceDistances:
    """Every block against every block, without crop or search tree."""
    areas = surfel_areas_mm2(spacing_mm)
    codes = [surface_codes(mask) for mask in (prediction, reference)]
    places = [np.argwhere((code > 0) & (code < 255)) for code in codes]
    table = cdist(places[0] * np.array(spacing_mm), places[1] * np.array(spacing_mm))
    weights = [areas[code[tuple(place.T)]] for code, place in zip(codes, places, strict=True)]
    return SurfaceDistances(table.min(axis=1), weights[0], table.min(axis=0), weights[1])


@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing_mm = SPACINGS[seed % 3]
    prediction, reference = blob(rng, (7, 9, 8), 1.2, 0.3), blob(rng, (7, 9, 8), 1.0, 0.2)
    found = surface_distances(prediction, reference, spacing_mm)
    expected = brute_force(prediction, reference, spacing_mm)
    for name in ("prediction_mm", "prediction_area_mm2", "reference_mm", "reference_area_mm2"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9)


CASES = {
    "smooth": ((14, 20, 17), 2.0, 0.3),
    "rough": ((12, 12, 12), 0.0, 0.5),
    "sparse": ((10, 16, 16), 0.6, 0.02),
    "nearly full": ((9, 10, 11), 1.0, 0.95),
    "flat": ((2, 30, 30), 1.5, 0.4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_all_measures_equal_the_peers(peer: ModuleType, case: str, spacing_mm: SpacingMm) -> None:
    shape, sigma, share = CASES[case]
    rng = np.random.default_rng(len(case))
    prediction, reference = blob(rng, shape, sigma, share), blob(rng, shape, sigma, share)
    theirs = peer.compute_surface_distances(reference, prediction, spacing_mm)
    ours = surface_distances(prediction, reference, spacing_mm)
    for tolerance_mm in (0.0, 0.5, 1.0, 2.0, 5.0):
        expected = peer.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        assert normalised_surface_dice(ours, tolerance_mm) == pytest.approx(expected, abs=1e-9)
    for percent in (50.0, 95.0, 100.0):
        expected = peer.compute_robust_hausdorff(theirs, percent)
        assert robust_hausdorff_mm(ours, percent) == pytest.approx(expected, abs=1e-9)
    averages = peer.compute_average_surface_distance(theirs)
    areas = [theirs[f"surfel_areas_{whose}"].sum() for whose in ("gt", "pred")]
    assert average_symmetric_distance_mm(ours) == pytest.approx(np.average(averages, weights=areas), abs=1e-9)


def test_single_voxels_and_empty_masks_equal_the_peers(peer: ModuleType) -> None:
    spacing_mm = (2.0, 1.0, 0.5)
    one, other, empty = (np.zeros((5, 6, 7), bool) for _ in range(3))
    one[0, 0, 0] = other[4, 5, 6] = True
    for prediction, reference in ((one, other), (one, one), (one, empty), (empty, one)):
        theirs = peer.compute_surface_distances(reference, prediction, spacing_mm)
        ours = surface_distances(prediction, reference, spacing_mm)
        assert normalised_surface_dice(ours, 2.0) == peer.compute_surface_dice_at_tolerance(theirs, 2.0)
        assert robust_hausdorff_mm(ours) == pytest.approx(peer.compute_robust_hausdorff(theirs, 95))


def test_a_shifted_slab_by_hand() -> None:
    """A wide slab shifted by k slices: its faces are k slices from the other's, so NSD jumps at that tolerance."""
    spacing_mm, k = (2.5, 1.0, 1.0), 2
    reference = np.zeros((16, 110, 110), bool)
    reference[4:9, 5:105, 5:105] = True
    distances = surface_distances(np.roll(reference, k, axis=0), reference, spacing_mm)
    assert robust_hausdorff_mm(distances, 100.0) == k * 2.5
    assert normalised_surface_dice(distances, k * 2.5) == 1.0  # the tolerance is inclusive
    sides_only = normalised_surface_dice(distances, k * 2.5 - 1e-6)
    assert 0.0 < sides_only < 0.4
    assert 0.6 * k * 2.5 < average_symmetric_distance_mm(distances) < k * 2.5


def test_hd95_leaves_out_five_per_cent_of_the_area() -> None:
    distances = SurfaceDistances(
        prediction_mm=np.array([1.0, 9.0]),
        prediction_area_mm2=np.array([96.0, 4.0]),
        reference_mm=np.array([2.0, 7.0, 0.0]),
        reference_area_mm2=np.array([50.0, 6.0, 44.0]),
    )
    assert robust_hausdorff_mm(distances) == 7.0
    assert robust_hausdorff_mm(distances, 94.0) == 2.0
    assert robust_hausdorff_mm(distances, 100.0) == 9.0
    assert average_symmetric_distance_mm(distances) == pytest.approx(1.37)
    assert normalised_surface_dice(distances, 2.0) == pytest.approx((96 + 94) / 200)


def test_empty_masks() -> None:
    empty, some = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    both = surface_distances(empty, empty, (1.0, 1.0, 1.0))
    assert math.isnan(normalised_surface_dice(both, 1.0))
    assert math.isnan(average_symmetric_distance_mm(both))
    assert robust_hausdorff_mm(both) == math.inf
    for prediction, reference in ((empty, some), (some, empty)):
        one = surface_distances(prediction, reference, (1.0, 1.0, 1.0))
        assert normalised_surface_dice(one, 100.0) == 0.0
        assert robust_hausdorff_mm(one) == math.inf
        assert average_symmetric_distance_mm(one) == math.inf


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1.0, 1.0, 1.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 3), st.sampled_from(SPACINGS))
def test_identical_is_one_and_a_shift_is_within_its_length(seed: int, axis: int, k: int, spacing_mm: SpacingMm) -> None:
    mask = np.pad(blob(np.random.default_rng(seed), (6, 7, 8), 1.0, 0.3), 3)
    shifted = np.roll(mask, k, axis=axis)
    forth, back = surface_distances(shifted, mask, spacing_mm), surface_distances(mask, shifted, spacing_mm)
    length_mm = k * spacing_mm[axis]
    assert normalised_surface_dice(surface_distances(mask, mask, spacing_mm), 0.0) == 1.0
    assert normalised_surface_dice(forth, length_mm * (1 + 1e-12)) == pytest.approx(1.0, abs=1e-12)
    assert robust_hausdorff_mm(forth, 100.0) <= length_mm * (1 + 1e-12)
    assert normalised_surface_dice(forth, 1.0) == pytest.approx(normalised_surface_dice(back, 1.0), abs=1e-12)
    assert robust_hausdorff_mm(forth) == pytest.approx(robust_hausdorff_mm(back), abs=1e-12)
