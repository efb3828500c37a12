"""Scans and label maps on another grid, axis by axis, with small matrices.

Interpolation at fixed positions is a linear map of the samples of one axis, so a volume is resampled by three matrix
products. The matrices reproduce ``skimage.transform.resize(order, mode="edge", anti_aliasing=False, clip=True)``, the
operation nnU-Net's models were trained with, at a fraction of its time and memory.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from flarecps.typing import LabelArray, NormalisedArray, ScanArray, SpacingMm, Triple

ANISOTROPY_LIMIT = 3.0  # nnU-Net: a spacing more than 3 times another is resampled apart (nearest neighbour)
SAME_SPACING = 1e-3  # relative; headers carry float32, so equal spacings differ by rounding
BLOCK = 32  # rows of an operator applied at once (16 to 64 are about equally fast)
NEGLIGIBLE = (
    1e-9  # weights of the spline's prefilter fall by 0.27 a voxel; below this they are under float32's rounding
)
TIE = 1e-5  # label probabilities closer than this are equal but for rounding; the lower label keeps the voxel


def resampled_shape(shape: Triple, spacing_mm: SpacingMm, target_mm: SpacingMm) -> Triple:
    """The voxel counts that cover the same block at ``target_mm``, rounded to nearest, at least 1 each.

    >>> resampled_shape((100, 512, 512), (5.0, 0.8, 0.8), (2.5, 1.0, 1.0))
    (200, 410, 410)
    """
    first, second, third = (
        max(1, round(edge * here / there)) for edge, here, there in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return first, second, third


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
    if tuple(array.shape[1:]) == tuple(shape):
        return np.array(array, dtype=np.float32)
    resampled = np.empty((len(array), *shape), np.float32)
    for channel, out in zip(array, resampled, strict=True):
        _resample_channel(np.asarray(channel, np.float32), shape, order, coarse_axis, out)
    return resampled


def resample_labels(labels: LabelArray, shape: Triple, coarse_axis: int | None = None) -> LabelArray:
    """``labels`` (slice, row, column) on a grid of ``shape`` voxels: the label with most linear weight at each voxel.

    Labels are treated one by one within their bounding boxes, so memory does not grow with their number. Only labels
    that are present can come out; equal weights go to the lower label. With ``coarse_axis`` that axis is nearest.
    """
    labels = np.asarray(labels)
    if tuple(labels.shape) == tuple(shape):
        return labels.copy()
    if coarse_axis is not None and shape[coarse_axis] != labels.shape[coarse_axis]:
        in_plane = _replaced(shape, coarse_axis, labels.shape[coarse_axis])
        return _nearest_along(resample_labels(labels, in_plane), coarse_axis, shape[coarse_axis])
    present, boxes = _labels_and_boxes(labels)
    winner = np.full(shape, present[0], labels.dtype)
    best = np.zeros(shape, np.float32)
    for label, box in zip(present, boxes, strict=True):
        weight, region = _linear_weight(labels[box] == label, box, labels.shape, shape)
        ahead = weight > best[region] + TIE
        best[region][ahead] = weight[ahead]
        winner[region][ahead] = label
    return winner


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


def _resample_channel(channel: np.ndarray, shape: Triple, order: int, coarse: int | None, out: np.ndarray) -> None:
    if coarse is not None and shape[coarse] != channel.shape[coarse]:
        if shape[coarse] < channel.shape[coarse]:  # picking slices and interpolating within them commute: fewer first
            _resample_channel(_nearest_along(channel, coarse, shape[coarse]), shape, order, coarse, out)
            return
        in_plane = np.empty(_replaced(shape, coarse, channel.shape[coarse]), np.float32)
        _resample_channel(channel, in_plane.shape, order, coarse, in_plane)
        np.take(in_plane, nearest_indices(in_plane.shape[coarse], shape[coarse]), axis=coarse, out=out, mode="clip")
        return
    clipped_together = None if coarse is None else tuple(axis for axis in range(3) if axis != coarse)
    lowest = channel.min(axis=clipped_together, keepdims=True)
    highest = channel.max(axis=clipped_together, keepdims=True)
    for axis in sorted(range(3), key=lambda axis: shape[axis] / channel.shape[axis]):  # least work first
        channel = _along(channel, axis, shape[axis], order)
    np.clip(channel, lowest, highest, out=out)


def _along(array: np.ndarray, axis: int, n_out: int, order: int) -> np.ndarray:
    n_in = array.shape[axis]
    if n_in == n_out:
        return array
    if order == 0:
        return _nearest_along(array, axis, n_out)
    return _apply(axis_operator(n_in, n_out, order), array, axis)


def _nearest_along(array: np.ndarray, axis: int, n_out: int) -> np.ndarray:
    return array.take(nearest_indices(array.shape[axis], n_out), axis=axis)


def _apply(operator: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """``operator`` (n_out, n_in) applied along one axis of a 3D float32 array, without moving axes about.

    Each output depends on a few neighbours only, so the operator is applied in blocks of rows, each to the part of the
    input that it reaches: on 512×512×119 voxels, ten times fewer seconds than the whole matrix at once.
    """
    result = np.empty(_replaced(array.shape, axis, len(operator)), np.float32)
    for first in range(0, len(operator), BLOCK):
        rows = operator[first : first + BLOCK]
        reached = np.flatnonzero(np.abs(rows).max(axis=0) > NEGLIGIBLE)
        inputs = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 1)
        outputs = slice(first, first + len(rows))
        weights = np.ascontiguousarray(rows[:, inputs], dtype=np.float32)
        if axis == 0:
            np.matmul(weights, array[inputs].reshape(weights.shape[1], -1), out=result[outputs].reshape(len(rows), -1))
        elif axis == 1:
            np.matmul(weights, array[:, inputs], out=result[:, outputs])
        else:
            np.matmul(array[:, :, inputs], weights.T, out=result[:, :, outputs])
    return result


def _replaced(shape: tuple[int, ...], axis: int, edge: int) -> Triple:
    first, second, third = (edge if here == axis else length for here, length in enumerate(shape))
    return first, second, third


def _labels_and_boxes(labels: np.ndarray) -> tuple[list[int], list[tuple[slice, ...]]]:
    """The labels present, ascending, and a box around each (label 0's is the whole grid)."""
    boxes: list[tuple[slice, ...] | None] = [tuple(slice(0, edge) for edge in labels.shape)]
    boxes += ndimage.find_objects(labels)
    found = [(label, box) for label, box in enumerate(boxes) if box is not None and (label or (labels == 0).any())]
    return [label for label, _ in found], [box for _, box in found]


def _linear_weight(
    mask: np.ndarray, box: tuple[slice, ...], shape_in: tuple[int, ...], shape_out: Triple
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Linear weight of a label, given by its mask within ``box``, and the output region outside which it is 0."""
    region, operators = [], []
    for taken, n_in, n_out in zip(box, shape_in, shape_out, strict=True):
        operator = axis_operator(n_in, n_out, 1) if n_in != n_out else np.eye(n_in)
        reached = np.flatnonzero(operator[:, taken].max(axis=1) > NEGLIGIBLE)
        given = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)
        region.append(given)
        operators.append(operator[given, taken])
    weight = mask.astype(np.float32)
    for axis in sorted(range(3), key=lambda axis: len(operators[axis]) / mask.shape[axis]):
        if shape_in[axis] != shape_out[axis]:
            weight = _apply(operators[axis], weight, axis)
    return weight, tuple(region)
