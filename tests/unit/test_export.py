"""Labels on the scan's grid: slab by slab the same as at once, and as skimage's interpolation in double precision."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from flarecps.inference.device_export import LABELS_AT_ONCE, device_labels
from flarecps.inference.export import AT_ONCE, linear_taps, scan_labels
from flarecps.preprocessing.case import GridMapping
from flarecps.typing import SpacingMm, Triple
from flarecps.volumes.resampling import axis_operator

CLASSES = 5
TIE = 1e-5  # of scores in [0, 1]: closer than this, rounding may decide


def grid_mapping(
    network: Triple, box: Triple, order: Triple = (0, 1, 2), network_mm: SpacingMm = (1.0, 1.0, 1.0)
) -> GridMapping:
    """To a ``box`` (canonical) that lies one voxel inside the scan; with equal spacings no axis is resampled apart."""
    shape = tuple(edge + 2 for edge in box)
    lower, upper = (1, 1, 1), tuple(edge + 1 for edge in box)
    return GridMapping(shape, (1.0, 1.0, 1.0), lower, upper, order, network, network_mm)


def scores_like_a_network(shape: Triple, seed: int = 0, smooth: float = 1.5) -> torch.Tensor:
    """Class probabilities (K, *shape) in regions with soft borders."""
    noise = np.random.default_rng(seed).normal(size=(CLASSES, *shape))
    logits = 8 * np.stack([gaussian_filter(one, smooth) for one in noise]) * smooth**1.5
    return torch.from_numpy(logits).float().softmax(0)


def at_once(scores: torch.Tensor, way: GridMapping, coarse: int | None = None) -> np.ndarray:
    """All classes interpolated over the whole scan by skimage, (K, *box) canonical, float64."""
    canonical = scores.double().numpy().transpose(0, *(1 + way.axis_order.index(axis) for axis in range(3)))
    if coarse is not None:
        n_in, n_out = canonical.shape[1 + coarse], way.box.shape[coarse]
        nearest = [int((2 * i + 1) * n_in // (2 * n_out)) for i in range(n_out)]
        canonical = canonical.take(nearest, axis=1 + coarse)
    return np.stack([resize(one, way.box.shape, order=1, mode="edge", anti_aliasing=False) for one in canonical])


def slabs_of(scores: torch.Tensor, *edges: int):
    """The scores in slabs, each overwritten after use, as the sliding window does."""
    for first, last in itertools.pairwise((0, *edges, scores.shape[1])):
        slab = scores[:, first:last].clone()
        yield slab
        slab.fill_(float("nan"))


GRIDS = {
    "finer": ((7, 11, 9), (15, 25, 22)),
    "much finer": ((4, 5, 6), (31, 22, 41)),
    "coarser": ((14, 12, 17), (6, 7, 8)),
    "mixed": ((14, 6, 9), (8, 6, 27)),
    "one slice": ((1, 6, 5), (4, 6, 11)),
    "same": ((6, 7, 8), (6, 7, 8)),
}
ORDERS = list(itertools.permutations(range(3)))
ROADS = {"borders": scan_labels, "every voxel": partial(device_labels, device=torch.device("cpu"))}
roads = pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 4), (2, 7), (9, 5), (13, 40), (6, 6), (30, 31)])
def test_taps_are_the_operator_of_training(n_in: int, n_out: int) -> None:
    taps, matrix = linear_taps(n_in, n_out), np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out), taps.lower), 1 - taps.share.astype(float))
    np.add.at(matrix, (np.arange(n_out), taps.upper), taps.share.astype(float))
    np.testing.assert_allclose(matrix, axis_operator(n_in, n_out, 1), atol=1e-6)


@roads
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_normal_mode_is_interpolating_every_class_at_once(road, grid: str, order: Triple) -> None:
    network, box = GRIDS[grid]
    way = grid_mapping(network, tuple(box[order.index(axis)] for axis in range(3)), order)
    scores = scores_like_a_network(network)
    labels = road(slabs_of(scores, *range(1, network[0], 3)), way)
    reference = at_once(scores, way)
    assert labels.dtype == np.uint8
    assert labels.shape == way.scan_shape
    inner = labels[way.box.slices]
    chosen = np.take_along_axis(reference, inner[None].astype(int), 0)[0]
    assert (reference.max(0) - chosen).max() <= TIE
    sure = np.diff(np.sort(reference, 0)[-2:], axis=0)[0] > TIE
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(inner[sure], reference.argmax(0)[sure])
    labels[way.box.slices] = 0
    assert not labels.any()  # outside the field of view


@pytest.mark.parametrize("mode", ["normal", "fast", "fastest"])
def test_slabs_of_any_depth_give_the_same_labels(mode) -> None:
    way = grid_mapping((13, 9, 10), (30, 21, 19), (1, 2, 0))
    scores = scores_like_a_network((13, 9, 10), seed=2)
    whole = scan_labels(iter([scores]), way, mode)
    assert len(np.unique(whole)) == CLASSES
    for edges in [(6,), (1, 2, 3), range(1, 13), (12,)]:
        np.testing.assert_array_equal(scan_labels(slabs_of(scores, *edges), way, mode), whole)


@roads
def test_a_class_that_is_nowhere_first_can_win_between_voxels(road) -> None:
    """Two neighbours are sure of different classes, both with the same runner-up: between them it is the highest."""
    scores = torch.tensor([[0.0, 0.55], [0.55, 0.0], [0.45, 0.45]]).reshape(3, 1, 1, 2)
    labels = road(iter([scores]), grid_mapping((1, 1, 2), (1, 1, 8)))[1, 1, 1:-1]
    assert labels.tolist() == [1, 1, 1, 2, 2, 0, 0, 0]


@roads
@pytest.mark.parametrize("coarse", range(3))
@pytest.mark.filterwarnings("error")
def test_along_a_coarse_axis_the_nearest_slice_is_taken(road, coarse: int) -> None:
    first, second, third = (6.0 if axis == coarse else 1.0 for axis in range(3))
    way = grid_mapping((6, 9, 8), (13, 20, 18), network_mm=(first, second, third))
    scores = scores_like_a_network((6, 9, 8), seed=3)
    reference = at_once(scores, way, coarse)
    labels = road(slabs_of(scores, 2, 4), way)[way.box.slices]
    chosen = np.take_along_axis(reference, labels[None].astype(int), 0)[0]
    assert (reference.max(0) - chosen).max() <= TIE


@roads
def test_half_precision_slabs_differ_at_ties_only(road) -> None:
    way = grid_mapping((7, 11, 9), (15, 25, 22))
    scores = scores_like_a_network((7, 11, 9), seed=5)
    ours, half = (road(iter([one]), way)[way.box.slices] for one in (scores, scores.half()))
    reference = at_once(scores, way)
    gap = np.diff(np.sort(reference, 0)[-2:], axis=0)[0]
    assert (gap[ours != half] < 2e-3).all()  # float16 keeps 11 bits


def test_fastest_takes_the_nearest_voxels_label_and_fast_the_heaviest() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.9, 0.1]]).reshape(2, 1, 1, 3)
    way = grid_mapping((1, 1, 3), (1, 1, 9))
    for mode in ("fast", "fastest"):
        labels = scan_labels(iter([scores]), way, mode)[1, 1, 1:-1]
        assert labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_more_border_than_is_interpolated_at_once() -> None:
    network, box = (2, 40, 40), (3, 330, 310)
    scores = scores_like_a_network(network, seed=6, smooth=0.4)
    way = grid_mapping(network, box)
    reference = at_once(scores, way)
    labels = scan_labels(iter([scores]), way)[way.box.slices]
    assert (reference.argmax(0) == labels).mean() > 0.9999
    assert box[1] * box[2] > AT_ONCE
    assert (reference.max(0) - np.take_along_axis(reference, labels[None].astype(int), 0)[0]).max() <= TIE


@pytest.mark.parametrize("seed", range(3))
def test_both_roads_give_the_same_labels(seed: int) -> None:
    """The same products in the same order: what differs is how a processor rounds them in blocks of voxels."""
    way = grid_mapping((14, 31, 29), (3 * LABELS_AT_ONCE + 5, 70, 61), (2, 0, 1), (1.4, 1.0, 1.0))
    way = replace(way, box_upper=(62, 54, 71), scan_shape=(64, 60, 75))
    scores = scores_like_a_network((14, 31, 29), seed, smooth=0.7)
    first, second = (road(slabs_of(scores, 3, 4, 9), way) for road in ROADS.values())
    assert len(np.unique(first)) == CLASSES
    assert np.count_nonzero(first != second) <= 1e-5 * first.size


@roads
def test_among_equal_scores_the_lowest_label_wins(road) -> None:
    scores = torch.full((4, 3, 5, 5), 0.25)
    scores[0] = 0.2
    way = grid_mapping((3, 5, 5), (7, 9, 11))
    assert (road(iter([scores]), way)[way.box.slices] == 1).all()
