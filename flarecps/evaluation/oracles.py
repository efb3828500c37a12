"""What cheating without seeing shape or context would score: yardsticks that a trained network must beat.

Both oracles look at the reference labels of the very case they are scored on, so each is an upper bound for its kind
of method. DSC = 2|A∩B| / (|A|+|B|); an organ that the case does not have is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flarecps.dice import dice_coefficient


def interval_oracle(image: np.ndarray, labels: np.ndarray, ids: Iterable[int]) -> dict[int, float]:
    """The DSC per organ of the best HU interval for it: a voxel belongs to the organ if low ≤ HU ≤ high.

    ``image`` is integer HU and ``labels`` are ids, both of one shape; every interval of whole HU is tried, for each
    organ anew. Exact: O(levels²) on the two histograms.
    """
    values = np.asarray(image).ravel()
    if not np.issubdtype(values.dtype, np.integer):
        values = np.rint(values).astype(np.int64)
    values = values.astype(np.int64) - int(values.min())
    levels = int(values.max()) + 1
    everywhere = np.bincount(values, minlength=levels)
    found = {}
    for label in ids:
        within = np.bincount(values[np.asarray(labels).ravel() == label], minlength=levels)
        volume = int(within.sum())
        found[int(label)] = _best_interval(within, everywhere, volume) if volume else float("nan")
    return found


def atlas_oracle(
    training_labels: Sequence[np.ndarray], test_labels: np.ndarray, ids: Iterable[int]
) -> dict[int, float]:
    """The DSC per organ of a mean atlas: how often the training cases have the organ there, above the best threshold.

    Every training label map (slice, row, column), in the test case's voxel order, is stretched to the test case's
    grid (the field of view is the common frame). The threshold is fitted to each organ on the test case.
    """
    stretched = [_stretch(np.asarray(one), test_labels.shape) for one in training_labels]
    found = {}
    for label in ids:
        reference = np.asarray(test_labels) == label
        votes = np.sum([one == label for one in stretched], axis=0, dtype=np.int64) if stretched else reference * 0
        volume = int(reference.sum())
        best = 0.0
        for least in range(1, len(stretched) + 1):
            predicted = votes >= least
            best = max(best, dice_coefficient(int((predicted & reference).sum()), int(predicted.sum()) + volume))
        found[int(label)] = best if volume else float("nan")
    return found


def _best_interval(within: np.ndarray, everywhere: np.ndarray, volume: int) -> float:
    """The largest DSC over all intervals [low, high] of histogram bins."""
    occupied = np.flatnonzero(within)  # an optimal interval starts and ends where the organ has voxels
    inside, total = np.cumsum(within), np.cumsum(everywhere)
    highs_inside, highs_total = inside[occupied], total[occupied]
    best = 0.0
    for low in occupied:
        hit = highs_inside - (inside[low] - within[low])
        size = highs_total - (total[low] - everywhere[low])
        reachable = occupied >= low
        best = max(best, float(dice_coefficient(hit[reachable], size[reachable] + volume).max()))
    return best


def _stretch(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The label map on a grid of another shape over the same extent, by the nearest voxel."""
    for axis, edge in enumerate(shape):
        centres = ((np.arange(edge) + 0.5) * labels.shape[axis] / edge).astype(np.int64)
        labels = labels.take(centres, axis=axis)
    return labels
