"""Voxels of every structure, drawn once per case, so that a patch can be centred on any of them without a search."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from flarecps.typing import LabelArray

MOST_SAMPLES = 10_000  # nnU-Net's number per structure ...
SMALLEST_SHARE = 0.01  # ... but never less than this share of the structure's voxels


def sample_count(voxels: int) -> int:
    """How many of a structure's voxels are kept: all up to 10 000, then 10 000, then 1 %.

    >>> sample_count(7), sample_count(50_000), sample_count(2_000_050)
    (7, 10000, 20001)
    """
    return max(min(MOST_SAMPLES, voxels), math.ceil(SMALLEST_SHARE * voxels))


def sample_voxels(labels: LabelArray, case_name: str) -> dict[int, np.ndarray]:
    """Voxels (n, 3), (slice, row, column) int32, of every structure in ``labels`` (S, H, W), by label id.

    Without replacement, in scan order; the draw depends on the case's name and the label id only.
    """
    flat = labels.ravel()
    inside = np.flatnonzero(flat)
    ids = flat[inside]
    samples = {}
    for label in np.unique(ids):
        voxels = inside[ids == label]
        generator = np.random.default_rng(_seed(case_name, int(label)))
        chosen = np.sort(generator.choice(voxels, sample_count(voxels.size), replace=False, shuffle=False))
        samples[int(label)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
    return samples


def _seed(case_name: str, label: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{label}:{case_name}".encode()).digest()[:8], "big")
