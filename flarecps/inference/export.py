"""From the network's grid to labels on the scan's, as the slabs of scores come in: never a scan of scores in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from flarecps.inference.upsampling import Plane, PlaneUpsampling, Taps, axis_taps, plane_of
from flarecps.preprocessing.case import GridMapping, labels_to_scan
from flarecps.typing import LabelArray, Triple
from flarecps.volumes.cropping import uncrop
from flarecps.volumes.resampling import coarse_axis, nearest_indices

Mode: TypeAlias = Literal["normal", "fast", "fastest"]
MODES: tuple[Mode, ...] = ("normal", "fast", "fastest")


def scan_labels(slabs: Iterable[Tensor], grid_mapping: GridMapping, mode: Mode = "normal") -> LabelArray:
    """Labels, uint8 (slice, row, column), on the canonical scan grid; 0 outside the field of view.

    ``slabs`` are scores (K, n, H, W) of the network's grid, n slices at a time and together all of them; each is used
    up before the next is asked for. As in nnU-Net v1, ``normal`` interpolates the scores linearly and then takes the
    highest, ``fast`` takes the highest on the network's grid and interpolates the labels, each linearly, and
    ``fastest`` takes the nearest voxel's label. Among equal scores the lowest label wins.
    """
    if mode == "normal":
        return _interpolated_labels(slabs, grid_mapping)
    labels = np.empty(grid_mapping.network_shape, np.uint8)
    done = 0
    for slab in slabs:
        for scores in slab.unbind(1):
            labels[done] = plane_of(scores).labels
            done += 1
    _check_count(done, grid_mapping)
    return labels_to_scan(labels, grid_mapping) if mode == "fast" else _nearest_labels(labels, grid_mapping)


def scan_scores(slabs: Iterable[Tensor], grid_mapping: GridMapping) -> Iterator[np.ndarray]:
    """Scores (K, H, W), float32, on the grid of the scan's field of view: one slice after another, in network order.

    They are what ``scan_labels`` takes the highest of. Slice ``i`` belongs at ``[:, i]`` of
    ``field_view(array, grid_mapping)``.
    """
    first, rows, columns = _taps(grid_mapping)
    for below, above, share in _slices(_planes(slabs), first):
        planes = [_upsampled(plane, rows, columns) for plane in ((below,) if above is below else (below, above))]
        yield planes[0] if len(planes) == 1 else planes[0] + np.float32(share) * (planes[1] - planes[0])


def field_view(array: np.ndarray, grid_mapping: GridMapping) -> np.ndarray:
    """The field of view of ``array`` (..., slice, row, column), canonical, with its axes in network order: a view."""
    box = array[(..., *grid_mapping.box.slices)]
    lead = array.ndim - 3
    return box.transpose(*range(lead), *(lead + axis for axis in grid_mapping.axis_order))


def _interpolated_labels(slabs: Iterable[Tensor], grid_mapping: GridMapping) -> LabelArray:
    labels = np.zeros(grid_mapping.scan_shape, np.uint8)
    view = field_view(labels, grid_mapping)
    first, rows, columns = _taps(grid_mapping)
    upsampling = PlaneUpsampling(rows, columns)
    done, last = 0, None
    for below, above, share in _slices(_planes(slabs), first):
        here = (id(below), id(above), share)
        view[done] = view[done - 1] if here == last else upsampling.labels(below, above, share)
        done, last = done + 1, here
    return labels


def _nearest_labels(labels: LabelArray, grid_mapping: GridMapping) -> LabelArray:
    order = grid_mapping.axis_order
    canonical = labels.transpose([order.index(axis) for axis in range(3)])
    nearest = [
        nearest_indices(n_in, n_out) for n_in, n_out in zip(canonical.shape, grid_mapping.box.shape, strict=True)
    ]
    return uncrop(canonical[np.ix_(*nearest)], grid_mapping.box, grid_mapping.scan_shape, 0)


def _taps(grid_mapping: GridMapping) -> tuple[Taps, Taps, Taps]:
    """In network order; nearest along the axis that preprocessing resampled apart."""
    order = grid_mapping.axis_order
    box, scan_mm = grid_mapping.box.shape, grid_mapping.scan_spacing_mm
    shape: Triple = (box[order[0]], box[order[1]], box[order[2]])
    coarse = coarse_axis(grid_mapping.network_spacing_mm, (scan_mm[order[0]], scan_mm[order[1]], scan_mm[order[2]]))
    return axis_taps(grid_mapping.network_shape, shape, coarse)


def _planes(slabs: Iterable[Tensor]) -> Iterator[Plane]:
    """The slices of the slabs, one by one."""
    for slab in slabs:
        for scores in slab.unbind(1):
            yield plane_of(scores)


def _slices(planes: Iterator[Plane], taps: Taps) -> Iterator[tuple[Plane, Plane, float]]:
    """Of every output slice, the two planes it lies between and the share of the upper; at most two are held."""
    below = above = next(planes)
    at = 0  # the index of ``above``; ``below`` is the one before
    for lower, upper, share in zip(taps.lower, taps.upper, taps.share, strict=True):
        while at < upper:
            below, above, at = above, next(planes), at + 1
        one = above if lower == at else below
        yield one, above, float(share)
    for _ in planes:  # to the end, so that the windows' progress is complete
        pass


def _upsampled(plane: Plane, rows: Taps, columns: Taps) -> np.ndarray:
    """A plane's scores (K, H, W) on the finer grid."""
    scores = plane.scores.numpy().reshape(len(plane.scores), *plane.labels.shape)
    down = scores[:, rows.lower]
    down += rows.share[None, :, None] * (scores[:, rows.upper] - down)
    across = down[:, :, columns.lower]
    across += columns.share * (down[:, :, columns.upper] - across)
    return across


def _check_count(slices: int, grid_mapping: GridMapping) -> None:
    if slices != grid_mapping.network_shape[0]:
        raise ValueError(f"{slices} slices of scores for a network grid of {grid_mapping.network_shape}")
