"""One case, from the scan's grid to the network's grid and back: crop, reorder axes, resample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from flarecps.errors import ScanError
from flarecps.planning.fingerprint import FILL_HU, checked_labels, to_hu
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order, in_network_order
from flarecps.preprocessing.intensity import channel_statistics, clip_to_window
from flarecps.typing import LabelArray, ScanArray, SpacingMm, Triple, triple
from flarecps.volumes.cropping import Box, crop, field_box, uncrop
from flarecps.volumes.io import Volume, in_file_order
from flarecps.volumes.resampling import coarse_axis, resample_into, resample_labels, resampled_shape

LEAST_BYTES = 2  # a voxel of the network's grid
FIELD_HU = FILL_HU + 0.5  # what rounds to more than the fill is inside the field of view


@dataclass(frozen=True)
class GridMapping:
    """How to return from the network's grid to the scan's: plain numbers, so that it travels as JSON.

    ``scan_*`` and ``box_*`` are on the canonical scan grid (slice, row, column), or on the stored one where the plan's
    orientation is ``as_stored``; ``network_*`` are in network order:
    network axis ``a`` is canonical axis ``axis_order[a]``.
    """

    scan_shape: Triple
    scan_spacing_mm: SpacingMm
    box_lower: Triple
    box_upper: Triple
    axis_order: Triple
    network_shape: Triple
    network_spacing_mm: SpacingMm

    @staticmethod
    def from_dict(content: dict[str, Any]) -> GridMapping:
        """The mapping whose ``asdict`` became JSON."""
        return GridMapping(**{key: tuple(value) for key, value in content.items()})

    @property
    def box(self) -> Box:
        """The part of the scan that was kept."""
        return Box(self.box_lower, self.box_upper)


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid."""

    image: ScanArray  # (C, S, H, W): int16 HU for CT (float32 where it is clipped), float32 otherwise; not normalised
    labels: LabelArray | None  # (S, H, W) uint8
    grid_mapping: GridMapping
    statistics: dict[str, list[float]]  # "mean" and "sd" per channel of the cropped scan, before resampling


def prepare_case(volume: Volume, plan: Plan, labels: Volume | None = None, name: str | None = None) -> Prepared:
    """The case on the network's grid: cropped to its field of view, resampled, axes in the plan's order.

    ``labels``: a label volume (1, S, H, W) on the same grid. ``name`` is for messages (default: the file's name). CT is
    clamped to int16, with fill below -1024 HU at -1024, before resampling (order 3) and rounded to whole HU after it.
    A narrow window would make whole HU coarse: where CT is clipped before resampling, nothing is rounded.
    In 2D the first network axis keeps its spacing. Where the plan has other conventions (orientation, clipping before
    resampling, cropping) they are kept; "scan grid" is then the scan's in the plan's order. Raises ``ScanError`` when
    channels, grids or label values disagree with the plan.
    """
    name = volume.source.path.name if name is None else name
    if volume.array.shape[0] != len(plan.channels):
        raise ScanError(
            f"{volume.source.path}: case '{name}' has {volume.array.shape[0]} channels; the plan expects "
            f"{len(plan.channels)} ({', '.join(plan.channels)}); give one file per channel in this order"
        )
    drawn = None
    if labels is not None:
        drawn = checked_labels(volume, labels, plan.labels.values(), name).array[0]
        if plan.conventions.orientation == "as_stored":  # of the scan's file, whatever the labels' order is
            drawn = volume.source.reorientation.undo(drawn)
    volume = transposed_to_plan(volume, plan)
    is_hu = plan.intensity.scheme == "ct"
    box = field_box(volume.array, FIELD_HU if is_hu and plan.conventions.crop == "field_of_view" else 0)
    array = crop(volume.array, box)
    target = _target_mm(plan, volume.space.spacing_mm)
    shape = _resampled_shape(box.shape, volume.space.spacing_mm, target, str(volume.source.path))
    grid = in_network_order(shape, plan.axis_order)
    coarse = coarse_axis(volume.space.spacing_mm, target)
    to_type = to_hu if is_hu else None
    before, after = (to_type, to_type) if plan.integer_hu or not is_hu else (clip_to_window(plan.intensity), None)
    image = np.empty((len(array), *grid), np.int16 if plan.integer_hu else np.float32)
    for channel, out in zip(array, image, strict=True):
        resample_into(_from_network(out, plan.axis_order), channel, 3, coarse, before=before, after=after)
    label_map = None
    if drawn is not None:
        resampled = resample_labels(crop(drawn, box), shape, coarse)
        label_map = np.ascontiguousarray(resampled.transpose(plan.axis_order))
    grid_mapping = GridMapping(
        scan_shape=volume.space.shape,
        scan_spacing_mm=volume.space.spacing_mm,
        box_lower=box.lower,
        box_upper=box.upper,
        axis_order=plan.axis_order,
        network_shape=grid,
        network_spacing_mm=in_network_order(target, plan.axis_order),
    )
    return Prepared(image, label_map, grid_mapping, channel_statistics(array, to_type))


def transposed_to_plan(volume: Volume, plan: Plan) -> Volume:
    """The scan with its voxels in the order that the plan's networks know: RAS, or as its file stores them."""
    return in_file_order(volume) if plan.conventions.orientation == "as_stored" else volume


def network_shape(shape: Triple, spacing_mm: SpacingMm, plan: Plan) -> Triple:
    """The network's grid (in its own order of axes) of a scan that fills its field of view; ``shape`` is canonical."""
    return in_network_order(_resampled_shape(shape, spacing_mm, _target_mm(plan, spacing_mm)), plan.axis_order)


def _resampled_shape(shape: Triple, spacing_mm: SpacingMm, target_mm: SpacingMm, scan: str = "this scan") -> Triple:
    """The grid at ``target_mm``; ScanError where its voxels would not fit this machine's memory, whatever is done."""
    resampled = resampled_shape(shape, spacing_mm, target_mm)
    needed, there = LEAST_BYTES * math.prod(resampled), psutil.virtual_memory().total
    if needed > there:
        sizes = ("×".join(f"{edge:g}" for edge in edges) for edges in (shape, spacing_mm, resampled, target_mm))
        before, before_mm, after, after_mm = sizes
        raise ScanError(
            f"{scan}: {before} voxels of {before_mm} mm become {after} at the plan's {after_mm} mm, "
            f"{needed / 2**30:.0f} GB of {there / 2**30:.0f}: correct the header's voxel sizes, cut the scan, or plan "
            "a larger spacing"
        )
    return resampled


def labels_to_scan(labels: LabelArray, grid_mapping: GridMapping) -> LabelArray:
    """``labels`` (S, H, W) of the network's grid on the canonical scan grid; 0 outside the field of view.

    Exact (voxel for voxel) where nothing was resampled; labels that are not there never appear.
    """
    order = grid_mapping.axis_order
    if labels.shape != grid_mapping.network_shape:
        raise ValueError(
            f"an array of shape {labels.shape} does not lie on the network grid {grid_mapping.network_shape}"
        )
    spacing_mm = triple(in_canonical_order(grid_mapping.network_spacing_mm, order))
    coarse = coarse_axis(spacing_mm, grid_mapping.scan_spacing_mm)
    resampled = resample_labels(np.ascontiguousarray(_from_network(labels, order)), grid_mapping.box.shape, coarse)
    return uncrop(resampled, grid_mapping.box, grid_mapping.scan_shape, 0)


def _target_mm(plan: Plan, spacing_mm: SpacingMm) -> SpacingMm:
    """The plan's spacing in canonical order; in 2D with the scan's own spacing across slices."""
    target = list(in_canonical_order(plan.spacing_mm, plan.axis_order))
    if plan.dimensions == 2:
        target[plan.axis_order[0]] = spacing_mm[plan.axis_order[0]]
    return triple(target)


def _from_network(array: np.ndarray, order: Triple) -> np.ndarray:
    """Three axes in network order, back in canonical order; a view."""
    return array.transpose([order.index(axis) for axis in range(3)])
