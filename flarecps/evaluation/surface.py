"""Distances between two segmentation surfaces in mm, each surface element weighted by its area.

Definitions of DeepMind's surface-distance (Nikolov et al. 2018, arXiv:1809.04430), to which the numbers are equal:
the surface lies in the blocks of 2×2×2 voxels that hold inside and outside (``surfels``), the distance of a block is
the one to the nearest such block of the other surface, and every sum is weighted by the area in the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy.spatial import cKDTree

from flarecps.evaluation.surfels import surface_codes, surfel_areas_mm2
from flarecps.typing import SpacingMm

Mask = Bool[np.ndarray, "slice row column"]


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surfel of two surfaces: its distance to the other surface (mm) and its area (mm²).

    A surface without surfels (an empty mask) leaves its arrays empty, and the other's distances infinite.
    """

    prediction_mm: Float[np.ndarray, " surfels_p"]
    prediction_area_mm2: Float[np.ndarray, " surfels_p"]
    reference_mm: Float[np.ndarray, " surfels_r"]
    reference_area_mm2: Float[np.ndarray, " surfels_r"]


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: SpacingMm) -> SurfaceDistances:
    """The distances between the surfaces of two masks on one grid.

    Masks that touch the border of the array are closed there. Raises ValueError when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"masks on one grid are needed, these have the shapes {prediction.shape}, {reference.shape}")
    box = _joint_box(prediction, reference)
    areas = surfel_areas_mm2(spacing_mm)
    codes_p, codes_r = surface_codes(prediction[box]), surface_codes(reference[box])
    blocks_p, blocks_r = _surface_blocks(codes_p), _surface_blocks(codes_r)
    return SurfaceDistances(
        prediction_mm=_distances_mm(blocks_p, blocks_r, codes_r, spacing_mm),
        prediction_area_mm2=areas[codes_p.ravel()[blocks_p]],
        reference_mm=_distances_mm(blocks_r, blocks_p, codes_p, spacing_mm),
        reference_area_mm2=areas[codes_r.ravel()[blocks_r]],
    )


def normalised_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """NSD: the share (0 to 1) of both surfaces' area that lies within ``tolerance_mm`` (inclusive) of the other.

    Both empty: NaN; one empty: 0.
    """
    d = distances
    total = d.reference_area_mm2.sum() + d.prediction_area_mm2.sum()
    if total == 0:
        return float("nan")
    near = d.reference_area_mm2[d.reference_mm <= tolerance_mm].sum()
    near += d.prediction_area_mm2[d.prediction_mm <= tolerance_mm].sum()
    return float(near / total)


def robust_hausdorff_mm(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """The Hausdorff distance in mm of the nearest ``percent`` (0-100) of either surface's area; HD95 by default.

    For each surface the smallest distance that at least ``percent`` of its area does not exceed; of the two, the
    larger. A surface empty or both: infinite.
    """
    d = distances
    return max(
        _weighted_percentile_mm(d.reference_mm, d.reference_area_mm2, percent),
        _weighted_percentile_mm(d.prediction_mm, d.prediction_area_mm2, percent),
    )


def average_distances_mm(distances: SurfaceDistances) -> tuple[float, float]:
    """The mean distance in mm over the area from prediction to reference, and from reference to prediction.

    An empty surface has no mean distance (NaN); the way to it is infinite.
    """
    d = distances
    return _mean_mm(d.prediction_mm, d.prediction_area_mm2), _mean_mm(d.reference_mm, d.reference_area_mm2)


def average_symmetric_distance_mm(distances: SurfaceDistances) -> float:
    """ASSD: the mean distance in mm over the area of both surfaces together. Both empty: NaN; one empty: infinite."""
    d = distances
    return _mean_mm(
        np.concatenate([d.prediction_mm, d.reference_mm]), np.concatenate([d.prediction_area_mm2, d.reference_area_mm2])
    )


def _joint_box(a: Mask, b: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds both masks; empty when both are."""
    either = a | b
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(either.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
    return box[0], box[1], box[2]


def _surface_blocks(codes: UInt8[np.ndarray, "s r c"]) -> Integer[np.ndarray, " surfels"]:
    """Flat indices of the blocks through which the surface passes: codes 1 to 254."""
    return np.flatnonzero((codes - np.uint8(1)) < 254)  # 0 wraps around to 255


def _distances_mm(
    start: Integer[np.ndarray, " start"],
    goal: Integer[np.ndarray, " goal"],
    goal_codes: UInt8[np.ndarray, "s r c"],
    spacing_mm: SpacingMm,
) -> Float[np.ndarray, " start"]:
    """Distance in mm of every ``start`` block to the nearest ``goal`` block; infinite when there is none.

    A search tree over the surface alone, instead of a distance map over the whole box: most blocks of two similar
    segmentations coincide (distance 0), and only the rest is looked up.
    """
    distances = np.zeros(start.size)
    if not goal.size:
        distances[:] = np.inf
        return distances
    apart = np.flatnonzero((goal_codes.ravel()[start] - np.uint8(1)) >= 254)
    if not apart.size:
        return distances
    places, goals = (np.stack(np.unravel_index(flat, goal_codes.shape), axis=1) for flat in (start[apart], goal))
    tree = cKDTree(goals * np.array(spacing_mm), leafsize=32, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(places * np.array(spacing_mm))
    # From whole voxel steps, so that a distance that equals the tolerance is not off by a rounding of the positions.
    distances[apart] = np.sqrt((((places - goals[nearest]) * np.array(spacing_mm)) ** 2).sum(axis=1))
    return distances


def _weighted_percentile_mm(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    if not distances.size:
        return float("inf")
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(areas[order]) / areas.sum()
    place = np.searchsorted(share, percent / 100.0)
    return float(distances[order[min(int(place), distances.size - 1)]])


def _mean_mm(distances: np.ndarray, areas: np.ndarray) -> float:
    return float((distances * areas).sum() / areas.sum()) if distances.size else float("nan")
