"""A plausible prediction made from a reference: the label map, bent by a smooth random field."""

from __future__ import annotations

import numpy as np

KNOT_MM = 40.0  # between the knots of the field: organs bend, single voxels do not scatter


def deformed(labels: np.ndarray, spacing_mm: tuple[float, float, float], seed: int, sd_mm: float = 2.5) -> np.ndarray:
    """``labels`` (slice, row, column) with every voxel taken from elsewhere; each axis off by ``sd_mm`` at the knots.

    The offsets are normal at knots 40 mm apart and linear between them; the nearest voxel is taken.
    """
    rng = np.random.default_rng(seed)
    steps = [_weights(edge, step) for edge, step in zip(labels.shape, spacing_mm, strict=True)]
    knots = rng.normal(0.0, sd_mm, (3, *(weights.shape[1] for weights in steps)))
    bent = np.empty_like(labels)
    rows, columns = np.ogrid[: labels.shape[1], : labels.shape[2]]
    for place in range(labels.shape[0]):
        plane = np.einsum("k,akrc->arc", steps[0][place], knots)
        offsets_mm = np.einsum("ir,arc,jc->aij", steps[1], plane, steps[2], optimize=True)
        source = [
            np.clip(np.rint(at + offset / step), 0, edge - 1).astype(np.intp)
            for at, offset, step, edge in zip((place, rows, columns), offsets_mm, spacing_mm, labels.shape, strict=True)
        ]
        bent[place] = labels[tuple(source)]
    return bent


def _weights(edge: int, step_mm: float) -> np.ndarray:
    """How much each knot counts at each voxel along an axis: linear interpolation as a matrix (voxels, knots)."""
    at = np.arange(edge) * step_mm / KNOT_MM
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(int(at[-1]) + 2)))
