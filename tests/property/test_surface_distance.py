"""DSC, NSD and distances against DeepMind's surface-distance, on whatever masks and spacings Hypothesis draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from flarecps.evaluation.overlap import dice_per_label
from flarecps.evaluation.surface import (
    average_symmetric_distance_mm,
    normalised_surface_dice,
    robust_hausdorff_mm,
    surface_distances,
)
from flarecps.typing import SpacingMm

STEPS_MM = st.one_of(st.sampled_from([0.5, 0.7421875, 1.0, 2.5, 5.0]), st.floats(0.3, 6.0))
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 24), st.integers(1, 20))  # beyond the nearest places too
KINDS = ("blob", "at the border", "speckle", "single voxel", "box", "full", "empty")


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """DeepMind's package; it calls names that NumPy 2 removed and SciPy deprecates."""
    metrics = pytest.importorskip("surface_distance.metrics", reason="DeepMind's surface-distance is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("Inf", math.inf), ("NaN", math.nan)):
            patch.setattr(np, name, value, raising=False)
        for name in ("filters", "morphology"):
            patch.setattr(scipy.ndimage, name, scipy.ndimage, raising=False)
        yield metrics


def mask(kind: str, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A mask of the kind; blobs fill the middle or reach over the border."""
    rng = np.random.default_rng(seed)
    found = np.zeros(shape, bool)
    if kind in ("blob", "at the border"):
        field = gaussian_filter(rng.normal(size=shape), 1.5)
        found = field > np.quantile(field, rng.uniform(0.4, 0.9))
        if kind == "at the border":
            found[0] |= field[0] > np.median(field)
        else:
            found[0] = found[-1] = found[:, 0] = found[:, -1] = False
            found[..., 0] = found[..., -1] = False
    elif kind == "speckle":
        found = rng.random(shape) < rng.uniform(0.02, 0.6)
    elif kind == "single voxel":
        found[tuple(rng.integers(0, edge) for edge in shape)] = True
    elif kind == "box":
        low = [int(rng.integers(0, edge)) for edge in shape]
        found[tuple(slice(at, int(rng.integers(at, edge)) + 1) for at, edge in zip(low, shape, strict=True))] = True
    elif kind == "full":
        found[:] = True
    return found


@settings(max_examples=250, deadline=None)
@given(
    shape=SHAPES,
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    spacing_mm=st.tuples(STEPS_MM, STEPS_MM, STEPS_MM),
    tolerance_mm=st.one_of(st.sampled_from([0.0, 2.0, 3.0, 5.0, 7.0]), st.floats(0.0, 20.0)),
    percent=st.one_of(st.just(95.0), st.floats(1.0, 100.0)),
)
def test_everything_equals_the_peer(
    peer: ModuleType,
    shape: tuple[int, int, int],
    kinds: tuple[str, str],
    seed: int,
    spacing_mm: SpacingMm,
    tolerance_mm: float,
    percent: float,
) -> None:
    prediction, reference = (mask(kind, seed + number, shape) for number, kind in enumerate(kinds))
    dsc = dice_per_label(prediction.view(np.uint8), reference.view(np.uint8), [1])[1].dsc
    assert dsc == pytest.approx(float(peer.compute_dice_coefficient(reference, prediction)), abs=0, nan_ok=True)
    ours = surface_distances(prediction, reference, spacing_mm)
    with np.errstate(all="ignore"):  # it divides by the area of an empty surface
        theirs = peer.compute_surface_distances(reference, prediction, spacing_mm)
        np.testing.assert_allclose(np.sort(ours.prediction_mm), theirs["distances_pred_to_gt"], atol=1e-6)
        np.testing.assert_allclose(np.sort(ours.reference_mm), theirs["distances_gt_to_pred"], atol=1e-6)
        nsd = peer.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        averages = peer.compute_average_surface_distance(theirs)
        hausdorff = peer.compute_robust_hausdorff(theirs, percent)
    assert normalised_surface_dice(ours, tolerance_mm) == pytest.approx(nsd, abs=1e-6, nan_ok=True)
    if not prediction.any() or not reference.any():
        assert robust_hausdorff_mm(ours, percent) == hausdorff == math.inf
        return
    areas = [theirs["surfel_areas_pred"].sum(), theirs["surfel_areas_gt"].sum()]
    assert average_symmetric_distance_mm(ours) == pytest.approx(np.average(averages[::-1], weights=areas), abs=1e-6)
    # Where the share of area is the percentile but for rounding, either neighbour is right: such draws say nothing.
    for distances in (theirs["surfel_areas_pred"], theirs["surfel_areas_gt"]):
        assume(np.abs(np.cumsum(distances) / distances.sum() - percent / 100).min() > 1e-9 or percent == 100.0)
    assert robust_hausdorff_mm(ours, percent) == pytest.approx(hausdorff, abs=1e-6)
