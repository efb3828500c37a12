"""On which grid the network sees the scans: target spacing, order of axes, shapes after resampling.

The rules are nnU-Net's (Isensee et al. 2021, Nature Methods 18, Supplementary Note 2), on labelled and unlabelled
scans together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flarecps.planning.fingerprint import CaseShape
from flarecps.typing import SpacingMm, Triple, triple
from flarecps.volumes.resampling import resampled_shape

ANISOTROPY = 3.0  # an axis this much coarser (in mm) and shorter (in voxels) than the others is anisotropic
FINE_PERCENTILE = 10.0  # an anisotropic axis takes this percentile of its spacings instead of the median
FAR_COARSER = 2.0  # axes this much finer than the coarsest are coarsened first
COARSE_AXIS = 1.05  # spacings within 5 % of each other are as good as equal: no axis is the coarse one


def target_spacing_mm(cases: Sequence[CaseShape]) -> SpacingMm:
    """The spacing to resample to, canonical (slice, row, column): the median of each axis.

    Where one axis is anisotropic, the 10th percentile of that axis, but never finer than the coarser of the others.
    """
    spacings = np.array([case.spacing_mm for case in cases], dtype=float)
    shapes = np.array([case.shape_voxels for case in cases], dtype=float)
    # nnU-Net's arithmetic: of an even number, np.median can differ from it in the last bit, and a shape then by a voxel
    target, shape = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = float(target[others].max())
    if target[worst] > ANISOTROPY * coarsest_other and shape[worst] * ANISOTROPY < shape[others].min():
        fine = float(np.percentile(spacings[:, worst], FINE_PERCENTILE))
        target[worst] = fine if fine >= coarsest_other else coarsest_other + 1e-5
    return triple(target.tolist())


def coarser(spacing_mm: np.ndarray, factor: float) -> np.ndarray:
    """A spacing times ``factor``: of the axes that are much finer than the coarsest where there are any, else of all.

    >>> coarser(np.array([5.0, 1.0, 1.0]), 2.0).tolist(), coarser(np.array([2.0, 1.5, 1.5]), 2.0).tolist()
    ([5.0, 2.0, 2.0], [4.0, 3.0, 3.0])
    """
    far = spacing_mm.max() / spacing_mm > FAR_COARSER
    return np.where(far | (not far.any()), spacing_mm * factor, spacing_mm)


def axis_order(spacing_mm: SpacingMm) -> Triple:
    """Canonical axes in network order: the one coarse axis first, otherwise (slice, row, column) as it is.

    >>> axis_order((2.5, 0.8, 0.8)), axis_order((1.0, 3.0, 1.0)), axis_order((2.5, 4.0, 4.0))
    ((0, 1, 2), (1, 0, 2), (0, 1, 2))
    """
    coarse = int(np.argmax(spacing_mm))
    others = [axis for axis in range(3) if axis != coarse]
    if spacing_mm[coarse] < COARSE_AXIS * max(spacing_mm[axis] for axis in others):
        return (0, 1, 2)
    return coarse, others[0], others[1]


def in_network_order(values: Sequence, order: Triple) -> tuple:
    """A canonical triple rearranged: entry ``a`` belongs to network axis ``a``."""
    return tuple(values[axis] for axis in order)


def in_canonical_order(values: Sequence, order: Triple) -> tuple:
    """The inverse of ``in_network_order``."""
    return tuple(values[order.index(axis)] for axis in range(3))


def median_shape_voxels(cases: Sequence[CaseShape], spacing_mm: SpacingMm) -> tuple[float, float, float]:
    """Median shape of the cases after resampling, canonical; halves stay halves."""
    shapes = [resampled_shape(case.shape_voxels, case.spacing_mm, spacing_mm) for case in cases]
    return triple(np.median(np.array(shapes, dtype=float), axis=0).tolist())
