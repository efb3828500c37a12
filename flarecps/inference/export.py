"""From the network's grid to labels on the scan's, as the slabs of scores come in: never a scan of scores in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from flarecps.inference.upsampling import Plane, PlaneUpsampling, Taps, axis_taps, plane_of
from flarecps.preprocessing.case import WayBack, labels_to_scan
from flarecps.typing import LabelArray, Triple
from flarecps.volumes.axis_operators import nearest_indices
from flarecps.volumes.cropping import uncrop
from flarecps.volumes.resampling import coarse_axis

Mode: TypeAlias = Literal["normal", "fast", "fastest"]
MODES: tuple[Mode, ...] = ("normal", "fast", "fastest")


def scan_labels(slabs: Iterable[Tensor], way_back: WayBack, mode: Mode = "normal") -> LabelArray:
    """Labels, uint8 (slice, row, column), on the canonical scan grid; 0 outside the field of view.

    ``slabs`` are scores (K, n, H, W) of the network's grid, n slices at a time and together all of them; each is used
    up before the next is asked for. As in nnU-Net v1, ``normal`` interpolates the scores linearly and then takes the
    highest, ``fast`` takes the highest on the network's grid and interpolates the labels, each linearly, and
    ``fastest`` takes the nearest voxel's label. Among equal scores the lowest label wins.
    """
    if mode == "normal":
        return _interpolated_labels(slabs, way_back)
    labels = np.empty(way_back.network_shape, np.uint8)
    done = 0
    for slab in slabs:
        for scores in slab.unbind(1):
            labels[done] = plane_of(scores).labels
            done += 1
    _check_count(done, way_back)
    return labels_to_scan(labels, way_back) if mode == "fast" else _nearest_labels(labels, way_back)


def scan_scores(slabs: Iterable[Tensor], way_back: WayBack) -> Iterator[np.ndarray]:
    """Scores (K, H, W), float32, on the grid of the scan's field of view: one slice after another, in network order.

    They are what ``scan_labels`` takes the highest of. Slice ``i`` belongs at ``[:, i]`` of
    ``field_view(array, way_back)``.
    """
    first, rows, columns = _taps(way_back)
    for below, above, share in _slices(_planes(slabs), first):
        planes = [_upsampled(plane, rows, columns) for plane in ((below,) if above is below else (below, above))]
        yield planes[0] if len(planes) == 1 else planes[0] + np.float32(share) * (planes[1] - planes[0])


def field_view(array: np.ndarray, way_back: WayBack) -> np.ndarray:
    """The field of view of ``array`` (..., slice, row, column), canonical, with its axes in network order: a view."""
    box = array[(..., *way_back.box.slices)]
    lead = array.ndim - 3
    return box.transpose(*range(lead), *(lead + axis for axis in way_back.axis_order))


def _interpolated_labels(slabs: Iterable[Tensor], way_back: WayBack) -> LabelArray:
    labels = np.zeros(way_back.scan_shape, np.uint8)
    view = field_view(labels, way_back)
    first, rows, columns = _taps(way_back)
    upsampling = PlaneUpsampling(rows, columns)
    done, last = 0, None
    for below, above, share in _slices(_planes(slabs), first):
        here = (id(below), id(above), share)
        view[done] = view[done - 1] if here == last else upsampling.labels(below, above, share)
        done, last = done + 1, here
    return labels


def _nearest_labels(labels: LabelArray, way_back: WayBack) -> LabelArray:
    order = way_back.axis_order
    canonical = labels.transpose([order.index(axis) for axis in range(3)])
    nearest = [nearest_indices(n_in, n_out) for n_in, n_out in zip(canonical.shape, way_back.box.shape, strict=True)]
    return uncrop(canonical[np.ix_(*nearest)], way_back.box, way_back.scan_shape, 0)


def _taps(way_back: WayBack) -> tuple[Taps, Taps, Taps]:
    """In network order; nearest along the axis that preprocessing resampled apart."""
    order = way_back.axis_order
    box, scan_mm = way_back.box.shape, way_back.scan_spacing_mm
    shape: Triple = (box[order[0]], box[order[1]], box[order[2]])
    coarse = coarse_axis(way_back.network_spacing_mm, (scan_mm[order[0]], scan_mm[order[1]], scan_mm[order[2]]))
    return axis_taps(way_back.network_shape, shape, coarse)


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


def _check_count(slices: int, way_back: WayBack) -> None:
    if slices != way_back.network_shape[0]:
        raise ValueError(f"{slices} slices of scores for a network grid of {way_back.network_shape}")
