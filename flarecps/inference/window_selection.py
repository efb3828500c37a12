"""Which windows of a scan are worth running: those that hold body, and those where a quick coarse pass sees organs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from flarecps.inference.export import highest_label
from flarecps.inference.resources.deadline import WindowSchedule
from flarecps.inference.resources.placement import FallbackChain
from flarecps.inference.sliding_window import Network, Place, scores_by_slab, windows
from flarecps.planning.plan import IntensityScheme, Plan, volume_patch
from flarecps.preprocessing.case import GridMapping
from flarecps.typing import ScanArray, Triple
from flarecps.volumes.resampling import resample

LOOK_VOXELS = 64  # per axis: so many samples of a scan tell before the start how many windows hold body
AIR_HU = -500  # below it is air, outside or in the lungs; no organ of the abdomen, no skin, no bone
COARSER = 1.5  # times the network's voxels: about the most by which training shrinks the anatomy (scaling 0.7 to 1.4)
COARSE_STEP = 1.0  # its windows do not overlap
SLICES_APART = 3  # a 2D network looks at every third slice
MARGIN_MM = 20.0  # around what was found: small structures next to large ones, and what the coarse pass misses


def contains_body(image: np.ndarray, scheme: IntensityScheme) -> Callable[[Place], bool]:
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
    holds = contains_body(sparse, plan.intensity.scheme)
    patch = volume_patch(plan.patch_voxels)
    scale = [here / there for here, there in zip(sparse.shape[1:], network_shape, strict=True)]
    places = [
        tuple(slice(int(at * one), max(math.ceil((at + size) * one), int(at * one) + 1)) for at, size, one in
              zip(corner, patch, scale, strict=True))
        for corner in product(*windows(network_shape, patch, step))
    ]  # fmt: skip
    return sum(holds((place[0], place[1], place[2])) for place in places) / len(places)


@dataclass(frozen=True)
class Region:
    """Where organs may be: a mask over the network's grid in larger voxels."""

    mask: np.ndarray  # (S, H, W) bool
    network_shape: Triple

    @property
    def share(self) -> float:
        """Of the grid."""
        return float(self.mask.mean())

    def touches(self, place: Place) -> bool:
        """Whether a window of the network's grid holds a part of the region."""
        part = tuple(
            slice(math.floor(one.start * coarse / fine), math.ceil(one.stop * coarse / fine))
            for one, coarse, fine in zip(place, self.mask.shape, self.network_shape, strict=True)
        )
        return bool(self.mask[part].any())


def coarse_shape(network_shape: Triple, dimensions: int) -> Triple:
    """The grid (slices, rows, columns) on which ``find_region`` looks.

    >>> coarse_shape((90, 240, 240), 3), coarse_shape((90, 240, 240), 2)
    ((60, 160, 160), (30, 160, 160))
    """
    factors = (SLICES_APART if dimensions == 2 else COARSER, COARSER, COARSER)
    first, second, third = (max(1, round(edge / factor)) for edge, factor in zip(network_shape, factors, strict=True))
    return first, second, third


def find_region(
    networks: Sequence[Network],
    image: Tensor,
    grid_mapping: GridMapping,
    plan: Plan,
    convert: Callable[[Tensor], Tensor],
    chain: FallbackChain,
) -> Region:
    """Where the first of ``networks``, on 1.5 times larger voxels, sees any structure, and 20 mm around it.

    ``image`` (C, S, H, W) as it is stored on the network's grid; windows do not overlap and are not mirrored, so the
    pass takes about a tenth of the windows of step 0.7. Where nothing is found the region is everything: a
    scan with little to see in large voxels is done in full.
    """
    shape = coarse_shape(grid_mapping.network_shape, plan.dimensions)
    coarse = resample(image.numpy(), shape, order=1)
    slabs = scores_by_slab(
        networks[:1],
        torch.from_numpy(coarse),
        plan.patch_voxels,
        plan.class_count,
        WindowSchedule(COARSE_STEP),
        chain,
        convert=convert,
    )
    found = np.stack([highest_label(scores) > 0 for slab in slabs for scores in slab.unbind(1)])
    if not found.any():
        return Region(np.ones_like(found), grid_mapping.network_shape)
    for axis, (spacing_mm, edge) in enumerate(zip(grid_mapping.network_spacing_mm, shape, strict=True)):
        reach = math.ceil(MARGIN_MM / (spacing_mm * grid_mapping.network_shape[axis] / edge))
        found = ndimage.maximum_filter1d(found, 2 * reach + 1, axis=axis, mode="constant")
    return Region(found, grid_mapping.network_shape)
