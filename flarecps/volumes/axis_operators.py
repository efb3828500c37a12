"""Resampling one axis: the small matrices that do it, and their products with volumes.

Interpolation at fixed positions is a linear map of the samples of an axis. Each output depends on a few neighbours
only, so a matrix is applied in blocks of rows, each to the part of the axis that it reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from scipy import ndimage

from flarecps.typing import Triple

BLOCK = 32  # rows of an operator applied at once (16 to 64 are about equally fast)
NEGLIGIBLE = (
    1e-9  # weights of the spline's prefilter fall by 0.27 a voxel; below this they are under float32's rounding
)


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


def banded(operator: np.ndarray, dtype: np.dtype) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of an operator's rows, each with what it reaches: (outputs, inputs, weights of ``dtype``).

    On 512×512×119 voxels, ten times fewer seconds than the whole matrix at once.
    """
    for first in range(0, len(operator), BLOCK):
        rows = operator[first : first + BLOCK]
        reached = np.flatnonzero(np.abs(rows).max(axis=0) > NEGLIGIBLE)
        inputs = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 1)
        yield slice(first, first + len(rows)), inputs, np.ascontiguousarray(rows[:, inputs], dtype=dtype)


def apply_operator(operator: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """``operator`` (n_out, n_in) applied along one axis of a 3D float array, without moving axes about."""
    result = np.empty(with_edge(array.shape, axis, len(operator)), array.dtype)
    for outputs, inputs, weights in banded(operator, array.dtype):
        product(weights, array[along(axis, inputs)], axis, result[along(axis, outputs)])
    return result


def product(weights: np.ndarray, array: np.ndarray, axis: int, out: np.ndarray) -> None:
    """Fill ``out`` with ``weights`` (n_out, n_in) times ``array`` along ``axis``; contiguous slices where axis is 0."""
    if axis == 0:
        np.matmul(weights, array.reshape(len(array), -1), out=out.reshape(len(out), -1))
    elif axis == 1:
        np.matmul(weights, array, out=out)
    else:
        np.matmul(array, weights.T, out=out)


def along(axis: int, part: slice) -> tuple[slice, slice, slice]:
    """The index that takes ``part`` along one of three axes."""
    first, second, third = (part if here == axis else slice(None) for here in range(3))
    return first, second, third


def with_edge(shape: tuple[int, ...], axis: int, edge: int) -> Triple:
    """``shape`` with another edge length along ``axis``."""
    first, second, third = (edge if here == axis else length for here, length in enumerate(shape))
    return first, second, third
