"""Which windows hold a part of the body: the others need no network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np

from flarecps.inference.sliding_window import Place, volume_patch, windows
from flarecps.planning.plan import IntensityScheme, Plan
from flarecps.typing import ScanArray, Triple

LOOK_VOXELS = 64  # per axis: so many samples of a scan tell before the start how many windows hold body
AIR_HU = -500  # below it is air, outside or in the lungs; no organ of the abdomen, no skin, no bone


def holds_body(image: np.ndarray, scheme: IntensityScheme) -> Callable[[Place], bool]:
    """A function that says whether a window of ``image`` (C, S, H, W) holds anything but air, or is empty.

    In CT anything is a voxel above -500 HU; in other modalities, any two voxels that differ.
    """

    def holds(place: Place) -> bool:
        part = image[(slice(None), *place)]
        if scheme == "ct":
            return bool((part > AIR_HU).any())
        return any(bool(channel.min() < channel.max()) for channel in part)

    return holds


def share_with_body(image: ScanArray, network_shape: Triple, plan: Plan, step: float) -> float:
    """About which share of windows holds body, from a few samples of the scan itself (C, slice, row, column)."""
    strides = [max(1, edge // LOOK_VOXELS) for edge in image.shape[1:]]
    sparse = image[:, :: strides[0], :: strides[1], :: strides[2]].transpose(0, *(1 + a for a in plan.axis_order))
    holds = holds_body(sparse, plan.intensity.scheme)
    patch = volume_patch(plan.patch_voxels)
    scale = [here / there for here, there in zip(sparse.shape[1:], network_shape, strict=True)]
    places = [
        tuple(slice(int(at * one), max(math.ceil((at + size) * one), int(at * one) + 1)) for at, size, one in
              zip(corner, patch, scale, strict=True))
        for corner in product(*windows(network_shape, patch, step))
    ]  # fmt: skip
    return sum(holds((place[0], place[1], place[2])) for place in places) / len(places)
