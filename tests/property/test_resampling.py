"""Resampling equals scikit-image's resize, the operation nnU-Net's models know; labels never gain a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from flarecps.volumes import resampling
from flarecps.volumes.resampling import coarse_axis, resample, resample_into, resample_labels, resampled_shape

SHAPES = [
    ((20, 31, 27), (33, 50, 41)),  # finer everywhere
    ((33, 50, 41), (20, 31, 27)),  # coarser everywhere
    ((12, 40, 40), (48, 28, 30)),  # anisotropic to near-isotropic
    ((64, 9, 17), (7, 60, 17)),  # one axis untouched
    ((2, 3, 2), (5, 2, 7)),  # the smallest scans
    ((5, 6, 7), (1, 1, 1)),
    ((128, 33, 20), (129, 32, 21)),  # hardly changed
]


def anatomy(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Smooth shapes with noise in HU, as float32 (slice, row, column)."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, [min(2.0, edge / 8) for edge in shape])
    return (400 * smooth / smooth.std() + 30 * noise).astype(np.float32)


def labelled(shape: tuple[int, int, int], classes: int, seed: int = 0) -> np.ndarray:
    """Blobs of several labels with gaps in the numbering, uint8."""
    fields = [anatomy(shape, seed * 100 + number) for number in range(classes)]
    return (3 * np.argmax(fields, axis=0)).astype(np.uint8)


def reference(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return resize(array.astype(np.float64), shape, order=order, mode="edge", clip=True, anti_aliasing=False)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("shape", "target"), SHAPES)
def test_scans_come_out_as_scikit_image_makes_them(
    shape: tuple[int, int, int], target: tuple[int, int, int], order: int
) -> None:
    scan = np.stack([anatomy(shape, 1), 0.01 * anatomy(shape, 2) + 40])
    ours = resample(scan, target, order=order)
    assert ours.dtype == np.float32
    assert ours.shape == (2, *target)
    for channel, result in zip(scan, ours, strict=True):
        difference = np.abs(result - reference(channel, target, order)).max()
        assert difference <= 1e-4 * channel.std()
        assert channel.min() <= result.min()
        assert result.max() <= channel.max()


@pytest.mark.parametrize("coarse", [0, 1, 2])
@pytest.mark.parametrize(("shape", "target"), [((10, 24, 30), (25, 31, 22)), ((30, 24, 26), (11, 12, 40))])
def test_the_coarse_axis_is_nearest_and_its_slices_are_resized_alone(
    shape: tuple[int, int, int], target: tuple[int, int, int], coarse: int
) -> None:
    scan = anatomy(shape, 3)
    in_plane = tuple(edge for axis, edge in enumerate(target) if axis != coarse)
    slices = np.stack([reference(part, in_plane, 3) for part in np.moveaxis(scan, coarse, 0)])
    positions = (np.arange(target[coarse]) + 0.5) * shape[coarse] / target[coarse] - 0.5 + 1e-9  # midway goes up
    grid = np.meshgrid(positions, *map(np.arange, in_plane), indexing="ij")
    expected = np.moveaxis(ndimage.map_coordinates(slices, grid, order=0, mode="nearest"), 0, coarse)
    ours = resample(scan[None], target, order=3, coarse_axis=coarse)[0]
    assert np.abs(ours - expected).max() <= 1e-4 * scan.std()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 14)] * 3),
    target=st.tuples(*[st.integers(1, 24)] * 3),
    coarse=st.sampled_from([None, 0, 1, 2]),
    value=st.floats(-3e4, 3e4, width=32),
)
def test_constants_stay_constant_and_the_same_grid_changes_nothing(
    shape: tuple[int, int, int], target: tuple[int, int, int], coarse: int | None, value: float
) -> None:
    assert (resample(np.full((1, *shape), value, np.float32), target, coarse_axis=coarse) == np.float32(value)).all()
    scan, labels = anatomy(shape)[None], labelled(shape, 3)
    np.testing.assert_array_equal(resample(scan, shape, coarse_axis=coarse), scan)
    np.testing.assert_array_equal(resample_labels(labels, shape, coarse), labels)


@pytest.mark.parametrize("coarse", [None, 0, 1, 2])
@pytest.mark.parametrize(("shape", "target"), SHAPES)
def test_slabs_leave_no_seams(
    shape: tuple[int, int, int], target: tuple[int, int, int], coarse: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, labels = anatomy(shape), labelled(shape, 4)
    whole, whole_labels = resample(scan[None], target, 3, coarse), resample_labels(labels, target, coarse)
    monkeypatch.setattr(resampling, "SLAB_VOXELS", 150)
    assert np.abs(resample(scan[None], target, 3, coarse) - whole).max() <= 1e-6 * np.abs(scan).max()
    np.testing.assert_array_equal(resample_labels(labels, target, coarse), whole_labels)


def test_conversions_on_the_way_and_any_order_of_axes() -> None:
    scan = anatomy((9, 20, 14))
    expected = resample(np.clip(scan, -100, None)[None], (12, 11, 15))[0]
    out = np.empty((15, 11, 12), np.int16)
    resample_into(
        out.transpose(2, 1, 0), scan, before=lambda slab: np.clip(slab, -100, None), after=lambda slab: np.rint(slab)
    )
    np.testing.assert_array_equal(out, np.rint(expected).astype(np.int16).transpose(2, 1, 0))


def test_integers_are_taken_and_the_same_shape_is_a_copy() -> None:
    scan = anatomy((4, 5, 6)).astype(np.int16)[None]
    ours = resample(scan, (4, 5, 6))
    np.testing.assert_array_equal(ours, scan)
    ours[:] = 0
    assert scan.any()
    np.testing.assert_allclose(resample(scan, (8, 5, 6)), resample(scan.astype(np.float32), (8, 5, 6)))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 14)] * 3),
    target=st.tuples(*[st.integers(1, 24)] * 3),
    coarse=st.sampled_from([None, 0, 1, 2]),
    seed=st.integers(0, 50),
)
def test_labels_go_to_the_largest_linear_weight(
    shape: tuple[int, int, int], target: tuple[int, int, int], coarse: int | None, seed: int
) -> None:
    labels = labelled(shape, 5, seed)
    ours = resample_labels(labels, target, coarse_axis=coarse)
    assert ours.dtype == np.uint8
    assert ours.shape == target
    present = np.unique(labels)
    assert np.isin(ours, present).all()
    masks = np.stack([labels == label for label in present]).astype(np.float32)
    weights = resample(masks, target, order=1, coarse_axis=coarse)
    chosen = np.take_along_axis(weights, np.searchsorted(present, ours)[None], axis=0)[0]
    assert (chosen >= weights.max(axis=0) - 1e-4).all()
    ties = np.sort(weights, axis=0)
    clear = np.ones(target, bool) if len(present) == 1 else ties[-1] - ties[-2] > 1e-4
    np.testing.assert_array_equal(ours[clear], present[weights.argmax(axis=0)][clear])


def test_label_weights_agree_with_scikit_image() -> None:
    labels = labelled((18, 22, 25), 6)
    target = (27, 15, 40)
    present = np.unique(labels)
    weights = np.stack([reference(labels == label, target, 1) for label in present])
    ordered = np.sort(weights, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(resample_labels(labels, target)[clear], present[weights.argmax(axis=0)][clear])


def test_background_is_not_invented_where_there_is_none() -> None:
    labels = np.full((4, 5, 6), 7, np.uint8)
    labels[2:] = 9
    assert set(np.unique(resample_labels(labels, (9, 9, 9)))) == {7, 9}
    assert (resample_labels(np.zeros((4, 5, 6), np.uint8), (9, 2, 9)) == 0).all()


def test_a_tie_goes_to_the_nearest_voxels_label() -> None:
    """Halving puts an output voxel midway between 0 and 5; the nearest voxel, midway, is the higher one."""
    labels = np.zeros((4, 2, 2), np.uint8)
    labels[1:] = 5
    assert resample_labels(labels, (2, 2, 2))[:, 0, 0].tolist() == [5, 5]
    assert resample_labels(labels[::-1], (2, 2, 2))[:, 0, 0].tolist() == [5, 0]


def test_a_tie_that_the_nearest_voxel_is_no_part_of_goes_to_the_lowest_label() -> None:
    labels = np.array([[[3, 1], [1, 1]], [[2, 2], [2, 3]]], np.uint8)  # the centre: 3/8 of 1, 3/8 of 2; nearest is a 3
    assert resample_labels(labels, (1, 1, 1)).item() == 1
    assert resample_labels(np.where(labels == 1, 0, labels), (1, 1, 1)).item() == 0


def test_labels_twice_as_fine_and_back_are_the_labels() -> None:
    labels = labelled((12, 14, 16), 4)
    finer = resample_labels(labels, (36, 42, 48))
    np.testing.assert_array_equal(resample_labels(finer, (12, 14, 16), coarse_axis=None)[1:-1], labels[1:-1])


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "expected"),
    [
        ((100, 512, 512), (5.0, 0.8, 0.8), (2.5, 1.0, 1.0), (200, 410, 410)),
        ((5, 5, 5), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2, 2, 2)),  # halves to even, as numpy and nnU-Net
        ((3, 4, 5), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), (1, 1, 1)),
    ],
)
def test_shapes_cover_the_same_block(shape: tuple, spacing: tuple, target: tuple, expected: tuple) -> None:
    assert resampled_shape(shape, spacing, target) == expected


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((5.0, 0.8, 0.8), (1.0, 1.0, 1.0), 0),
        ((0.8, 0.8, 5.0), (1.0, 1.0, 1.0), 2),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # exactly 3 times is not more than 3 times
        ((1.0, 1.0, 1.0), (0.8, 4.0, 0.8), 1),  # the target decides where the scan is isotropic
        ((0.24, 1.25, 1.25), (0.5, 5.0, 0.5), None),  # two coarsest axes: not apart
        ((0.24, 1.25, 1.2500001), (1.0, 1.0, 1.0), None),  # equal but for float32
        ((4.0, 1.0, 1.0), (1.0, 1.0, 9.0), 0),  # the present spacing goes first
    ],
)
def test_which_axis_is_resampled_apart(spacing: tuple, target: tuple, expected: int | None) -> None:
    assert coarse_axis(spacing, target) == expected
