"""Scans and label maps on another grid, axis by axis, slab by slab.

Interpolation at fixed positions is a linear map of the samples of an axis. Each output depends on a few neighbours
only, so its matrix is applied in blocks of rows, each to the part of the axis that it reaches. The result is that of
``skimage.transform.resize(order, mode="edge", anti_aliasing=False, clip=True)``, the operation nnU-Net's models were
trained with, at a fraction of its time. Memory holds the input as it was stored, the result, and one array between them
where all three axes change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from scipy import ndimage

from flarecps.typing import LabelArray, NormalisedArray, ScanArray, SpacingMm, Triple, triple

BLOCK_ROWS = 32  # of an operator applied at once (16 to 64 are about equally fast)
# Weights of the spline's prefilter fall by 0.27 a voxel; below this they are under float32's rounding.
NEGLIGIBLE = 1e-9
ANISOTROPY_LIMIT = 3.0  # nnU-Net: a spacing more than 3 times another is resampled apart (nearest neighbour)
SAME_SPACING = 1e-3  # relative; headers carry float32, so equal spacings differ by rounding
# Label weights closer than this are equal. So small, because nnU-Net compares float64 sums: at a place that is midway
# but for rounding (as with a factor of 3) rounding decides there and here alike, and the maps agree voxel by voxel.
TIE = float(np.finfo(np.float64).eps)
SLAB_VOXELS = 1 << 20  # 4 MB of float32 at a time: it stays in the processor's cache

Conversion = Callable[[np.ndarray], np.ndarray]
Window = tuple[slice, slice]  # of one axis: the outputs that a label has weight in, and the inputs that give it


def resampled_shape(shape: Triple, spacing_mm: SpacingMm, target_mm: SpacingMm) -> Triple:
    """The voxel counts that cover the same block at ``target_mm``, rounded to nearest, at least 1 each.

    >>> resampled_shape((100, 512, 512), (5.0, 0.8, 0.8), (2.5, 1.0, 1.0))
    (200, 410, 410)
    """
    grids = zip(shape, spacing_mm, target_mm, strict=True)
    return triple(max(1, round(here / there * edge)) for edge, here, there in grids)


def coarse_axis(spacing_mm: SpacingMm, target_mm: SpacingMm) -> int | None:
    """The axis to resample apart, nearest neighbour (nnU-Net's "separate z"), or None.

    Where the present spacing is anisotropic (largest over 3 times the smallest) it decides, otherwise the target;
    None unless exactly one axis is coarsest.
    """
    for spacing in (np.asarray(spacing_mm, float), np.asarray(target_mm, float)):
        if spacing.max() / spacing.min() > ANISOTROPY_LIMIT:
            coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - SAME_SPACING))
            return int(coarsest[0]) if len(coarsest) == 1 else None
    return None


def resample(array: ScanArray, shape: Triple, order: int = 3, coarse_axis: int | None = None) -> NormalisedArray:
    """``array`` (channel, slice, row, column) on a grid of ``shape`` voxels over the same block, float32.

    ``order`` is the spline's (0 nearest, 1 linear, 3 cubic). No value leaves the range of its channel. With
    ``coarse_axis`` that axis is resampled by nearest neighbour, and each of its slices keeps its own range.
    """
    resampled = np.empty((len(array), *shape), np.float32)
    for channel, out in zip(array, resampled, strict=True):
        resample_into(out, channel, order, coarse_axis)
    return resampled


def resample_into(
    out: np.ndarray,
    channel: np.ndarray,
    order: int = 3,
    coarse_axis: int | None = None,
    before: Conversion | None = None,
    after: Conversion | None = None,
) -> None:
    """Fill ``out`` (slice, row, column; any strides) with ``channel`` on its grid, as `resample` does.

    ``before`` converts stored values slab by slab before they are resampled (it must never decrease), ``after`` what
    comes out, to the type of ``out``: neither needs the whole scan in float32.
    """
    before, after = before or np.asarray, after or np.asarray
    if out.shape == channel.shape:
        for slab in slabs(channel.shape):
            out[slab] = after(before(channel[slab]))
    elif coarse_axis is not None:
        _slice_by_slice(channel, coarse_axis, order, out, before, after)
    else:
        _all_axes(channel, order, out, before, after)


def resample_labels(labels: LabelArray, shape: Triple, coarse_axis: int | None = None) -> LabelArray:
    """``labels`` (slice, row, column) on a grid of ``shape`` voxels: the label with most linear weight at each voxel.

    Labels are treated one by one within their bounding boxes, slab by slab, so memory does not grow with their number.
    Only labels that are present can come out. Equal weights go to the nearest voxel's label if it is among them, else
    to the lowest. With ``coarse_axis`` that axis is nearest.
    """
    labels = np.asarray(labels)
    if tuple(labels.shape) == tuple(shape):
        return labels.copy()
    if coarse_axis is not None and shape[coarse_axis] != labels.shape[coarse_axis]:
        in_plane = resample_labels(labels, _with_length(shape, coarse_axis, labels.shape[coarse_axis]))
        return _resample_axis(in_plane, coarse_axis, shape[coarse_axis], 0)
    edges = zip(labels.shape, shape, strict=True)
    operators = [np.eye(n_in) if n_in == n_out else axis_operator(n_in, n_out, 1) for n_in, n_out in edges]
    resampled = np.zeros(shape, labels.dtype)
    windows = _windows(labels, operators)
    for slab in slabs(shape):
        here = []
        for label, (first, *others) in windows:
            part = slice(max(first[0].start, slab.start), min(first[0].stop, slab.stop))
            if within := _window(operators[0], part, first[1]):
                here.append((label, [within, *others]))
        if here:
            _fill_labels(resampled, labels, operators, here)
    return resampled


def slabs(shape: tuple[int, ...], axis: int = 0) -> Iterator[slice]:
    """Parts of about `SLAB_VOXELS` voxels, along one axis of an array of ``shape`` (slice, row, column)."""
    step = max(1, SLAB_VOXELS * shape[axis] // max(1, int(np.prod(shape))))
    for first in range(0, shape[axis], step):
        yield slice(first, min(first + step, shape[axis]))


@lru_cache(maxsize=64)
def axis_operator(n_in: int, n_out: int, order: int) -> np.ndarray:
    """The (n_out, n_in) float64 matrix that resamples one axis: what interpolation does to each unit vector.

    Voxel borders coincide (output i lies at input (i + ½)·n_in/n_out − ½), samples beyond the edge repeat it, and
    for order 3 the spline's prefilter is part of the matrix.
    """
    zoom = n_out / n_in
    columns = [ndimage.zoom(unit, zoom, order=order, mode="nearest", grid_mode=True) for unit in np.eye(n_in)]
    operator = np.stack(columns, axis=1)
    operator.setflags(write=False)  # it is shared by all callers
    return operator


@lru_cache(maxsize=64)
def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """The input index nearest to each of ``n_out`` output voxels of one axis; midway, the higher one.

    >>> nearest_indices(4, 2).tolist()
    [1, 3]
    """
    indices = (2 * np.arange(n_out) + 1) * n_in // (2 * n_out)  # whole numbers: no rounding decides a tie
    indices.setflags(write=False)
    return indices


def _row_blocks(operator: np.ndarray, dtype: np.dtype) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of an operator's rows, each with what it reaches: (outputs, inputs, weights of ``dtype``).

    On 512×512×119 voxels, ten times fewer seconds than the whole matrix at once.
    """
    for first in range(0, len(operator), BLOCK_ROWS):
        rows = operator[first : first + BLOCK_ROWS]
        reached = np.flatnonzero(np.abs(rows).max(axis=0) > NEGLIGIBLE)
        inputs = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 1)
        yield slice(first, first + len(rows)), inputs, np.ascontiguousarray(rows[:, inputs], dtype=dtype)


def _apply_operator(operator: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """``operator`` (n_out, n_in) applied along one axis of a 3D float array, without moving axes about."""
    result = np.empty(_with_length(array.shape, axis, len(operator)), array.dtype)
    for outputs, inputs, weights in _row_blocks(operator, array.dtype):
        _multiply_along(weights, array[_at(axis, inputs)], axis, result[_at(axis, outputs)])
    return result


def _multiply_along(weights: np.ndarray, array: np.ndarray, axis: int, out: np.ndarray) -> None:
    """Fill ``out`` with ``weights`` (n_out, n_in) times ``array`` along ``axis``; contiguous slices where axis is 0."""
    if axis == 0:
        np.matmul(weights, array.reshape(len(array), -1), out=out.reshape(len(out), -1))
    elif axis == 1:
        np.matmul(weights, array, out=out)
    else:
        np.matmul(array, weights.T, out=out)


def _at(axis: int, part: slice) -> tuple[slice, ...]:
    """The index that takes ``part`` along an axis."""
    return (slice(None),) * axis + (part,)


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> Triple:
    """``shape`` with another length along ``axis``."""
    return triple((*shape[:axis], length, *shape[axis + 1 :]))


def _slice_by_slice(
    channel: np.ndarray, coarse: int, order: int, out: np.ndarray, before: Conversion, after: Conversion
) -> None:
    """Every slice across the coarse axis is resampled and clipped alone; along that axis, the nearest is taken."""
    sources, results = np.moveaxis(channel, coarse, 0), np.moveaxis(out, coarse, 0)
    nearest = nearest_indices(len(sources), len(results))
    used, copies = np.unique(nearest, return_inverse=True)
    for slab in slabs((len(used), *sources.shape[1:])):
        made = before(sources[used[slab]]).astype(np.float32, order="C", copy=False)
        lowest, highest = made.min(axis=(1, 2), keepdims=True), made.max(axis=(1, 2), keepdims=True)
        for axis in sorted((1, 2), key=lambda axis: results.shape[axis] / sources.shape[axis]):
            made = _resample_axis(made, axis, results.shape[axis], order)
        made = after(np.clip(made, lowest, highest))
        first, last = np.searchsorted(copies, (slab.start, slab.stop))
        results[first:last] = made[copies[first:last] - slab.start]


def _all_axes(channel: np.ndarray, order: int, out: np.ndarray, before: Conversion, after: Conversion) -> None:
    """Two axes in slabs along the third, then the third: the one that grows most, so that least lies in between."""
    first, second, last = sorted(range(3), key=lambda axis: out.shape[axis] / channel.shape[axis])
    lowest, highest = before(np.array([channel.min(), channel.max()])).astype(np.float32)  # as what they limit
    n_in, n_out = channel.shape[last], out.shape[last]
    between = np.empty(_with_length(out.shape, last, n_in), np.float32) if n_in != n_out else None
    for slab in slabs(channel.shape, last):
        here = _at(last, slab)
        made = before(channel[here]).astype(np.float32, order="C", copy=False)
        for axis in (first, second):
            made = _resample_axis(made, axis, out.shape[axis], order)
        if between is None:
            out[here] = after(np.clip(made, lowest, highest))
        else:
            between[here] = made
    if between is None:
        return
    if order == 0:
        for slab in slabs(out.shape, last):
            out[_at(last, slab)] = after(between.take(nearest_indices(n_in, n_out)[slab], axis=last))
        return
    for outputs, inputs, weights in _row_blocks(axis_operator(n_in, n_out, order), between.dtype):
        made = np.empty(_with_length(out.shape, last, len(weights)), np.float32)
        _multiply_along(weights, between[_at(last, inputs)], last, made)
        out[_at(last, outputs)] = after(np.clip(made, lowest, highest, out=made))


def _resample_axis(array: np.ndarray, axis: int, n_out: int, order: int) -> np.ndarray:
    n_in = array.shape[axis]
    if n_in == n_out:
        return array
    if order == 0:
        return array.take(nearest_indices(n_in, n_out), axis=axis)
    return _apply_operator(axis_operator(n_in, n_out, order), array, axis)


def _windows(labels: np.ndarray, operators: list[np.ndarray]) -> list[tuple[int, list[Window]]]:
    """Every label that is present, ascending and without 0, and its window along each axis."""
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            all_outputs = (slice(0, len(operator)) for operator in operators)
            reached = list(filter(None, map(_window, operators, all_outputs, box)))
            if len(reached) == 3:  # a label between coarse samples may vanish
                found.append((label, reached))
    return found


def _window(operator: np.ndarray, outputs: slice, inputs: slice) -> Window | None:
    """Those of ``outputs`` that ``inputs`` have weight in, and those of ``inputs`` that give it; None if none."""
    weighs = operator[outputs, inputs] > NEGLIGIBLE
    given, taken = np.flatnonzero(weighs.any(axis=1)), np.flatnonzero(weighs.any(axis=0))
    if not len(given):
        return None
    return (
        slice(outputs.start + int(given[0]), outputs.start + int(given[-1]) + 1),
        slice(inputs.start + int(taken[0]), inputs.start + int(taken[-1]) + 1),
    )


def _fill_labels(
    resampled: np.ndarray, labels: np.ndarray, operators: list[np.ndarray], present: list[tuple[int, list[Window]]]
) -> None:
    """Write ``resampled``, which holds 0, where the labels ``present`` have weight. What they leave is label 0's."""
    lower = [min(windows[axis][0].start for _, windows in present) for axis in range(3)]
    upper = [max(windows[axis][0].stop for _, windows in present) for axis in range(3)]
    block = tuple(slice(first, last) for first, last in zip(lower, upper, strict=True))
    near = [
        nearest_indices(n, len(operator))[one] for n, operator, one in zip(labels.shape, operators, block, strict=True)
    ]
    nearest = labels[np.ix_(*near)]
    winner = np.zeros(nearest.shape, labels.dtype)
    best, nearests, rest = np.zeros(nearest.shape), np.zeros(nearest.shape), np.ones(nearest.shape)
    for label, windows in present:
        weight = _linear_weight(label, labels, operators, windows)
        here = tuple(slice(one.start - low, one.stop - low) for (one, _), low in zip(windows, lower, strict=True))
        rest[here] -= weight
        ahead = weight > best[here] + TIE
        np.copyto(best[here], weight, where=ahead)
        np.copyto(winner[here], label, where=ahead)
        np.copyto(nearests[here], weight, where=nearest[here] == label)
    np.copyto(nearests, rest, where=nearest == 0)
    np.copyto(winner, 0, where=rest >= best - TIE)
    np.copyto(winner, nearest, where=nearests >= np.maximum(best, rest, out=best) - TIE)
    resampled[block] = winner


def _linear_weight(label: int, labels: np.ndarray, operators: list[np.ndarray], windows: list[Window]) -> np.ndarray:
    """The linear weight of ``label`` on the outputs of its windows, float64."""
    weight = (labels[tuple(inputs for _, inputs in windows)] == label).astype(np.float64)
    parts = [operator[outputs, inputs] for operator, (outputs, inputs) in zip(operators, windows, strict=True)]
    for axis in sorted(range(3), key=lambda axis: len(parts[axis]) / weight.shape[axis]):
        if operators[axis].shape[0] != operators[axis].shape[1]:
            weight = _apply_operator(parts[axis], weight, axis)
    return weight
