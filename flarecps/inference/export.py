"""From the network's grid to labels on the scan's, as the slabs of scores come in: never a scan of scores in memory.

Interpolation is a weighted mean of the 8 voxels around a position. Where all 8 give one class the highest score, so
does every mean of them; only between voxels that disagree, along the borders of structures, is anything
interpolated. The labels are those of interpolating every class everywhere, but for ties within rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from flarecps.preprocessing.case import GridMapping, labels_to_scan
from flarecps.typing import LabelArray
from flarecps.volumes.cropping import uncrop
from flarecps.volumes.resampling import coarse_axis, nearest_indices

P = TypeVar("P")  # a plane

Mode: TypeAlias = Literal["normal", "fast", "fastest"]
MODES: tuple[Mode, ...] = ("normal", "fast", "fastest")
AT_ONCE = 1 << 16  # border voxels interpolated at a time: 14 classes of them fill a few MB


def scan_labels(slabs: Iterable[Tensor], grid_mapping: GridMapping, mode: Mode = "normal") -> LabelArray:
    """Labels, uint8 (slice, row, column), on the canonical scan grid; 0 outside the field of view.

    ``slabs`` are scores (K, n, H, W) of the network's grid, n slices at a time and together all of them; each is used
    up before the next is asked for. As in nnU-Net v1, ``normal`` interpolates the scores linearly and then takes the
    highest, ``fast`` takes the highest on the network's grid and interpolates the labels, each linearly, and
    ``fastest`` takes the nearest voxel's label. Among equal scores the lowest label wins.
    """
    planes = (scores.detach() for slab in slabs for scores in slab.unbind(1))
    if mode == "normal":
        labels = np.zeros(grid_mapping.scan_shape, np.uint8)
        view = labels[grid_mapping.box.slices].transpose(grid_mapping.axis_order)
        for drawn, found in zip(view, interpolated_labels(map(plane_of, planes), grid_mapping), strict=True):
            drawn[:] = found
        return labels
    labels = np.empty(grid_mapping.network_shape, np.uint8)
    for drawn, scores in zip(labels, planes, strict=True):
        drawn[:] = highest_label(scores)
    if mode == "fast":
        return labels_to_scan(labels, grid_mapping)
    canonical = labels.transpose([grid_mapping.axis_order.index(axis) for axis in range(3)])
    nearest = map(nearest_indices, canonical.shape, grid_mapping.box.shape)
    return uncrop(canonical[np.ix_(*nearest)], grid_mapping.box, grid_mapping.scan_shape, 0)


def interpolated_labels(planes: Iterator[Plane], grid_mapping: GridMapping) -> Iterator[LabelArray]:
    """Labels (rows, columns) of the scan's box, slice by slice of the network's first axis, axes in network order.

    No plane is asked for before a slice needs it.
    """
    first, rows, columns = axis_taps(grid_mapping)
    upsampling = _PlaneUpsampling(rows, columns)
    last, labels = None, np.empty(0, np.uint8)
    for below, above, share in neighbouring_planes(planes, first):
        here = (id(below), id(above), share)
        labels = labels if here == last else upsampling.labels(below, above, share)
        last = here
        yield labels


def axis_taps(grid_mapping: GridMapping) -> list[Taps]:
    """In network order: linear taps; nearest neighbour's along the axis that preprocessing resampled apart."""
    first, second, third = grid_mapping.axis_order
    box, scan_mm = grid_mapping.box.shape, grid_mapping.scan_spacing_mm
    coarse = coarse_axis(grid_mapping.network_spacing_mm, (scan_mm[first], scan_mm[second], scan_mm[third]))
    taps = []
    for axis, (n_in, n_out) in enumerate(
        zip(grid_mapping.network_shape, (box[first], box[second], box[third]), strict=True)
    ):
        if axis == coarse:
            nearest = np.array(nearest_indices(n_in, n_out), np.intp)
            taps.append(Taps(nearest, nearest, np.zeros(n_out, np.float32)))
        else:
            taps.append(linear_taps(n_in, n_out))
    return taps


def neighbouring_planes(planes: Iterator[P], taps: Taps) -> Iterator[tuple[P, P, float]]:
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


@dataclass(frozen=True)
class Taps:
    """Of every output voxel of one axis, the two input voxels it lies between and the share of the upper one."""

    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray  # float32, of ``upper``

    @property
    def nearest(self) -> np.ndarray:
        """The input voxel that has most weight; in the middle, the upper one."""
        return np.where(self.share >= 0.5, self.upper, self.lower)


def linear_taps(n_in: int, n_out: int) -> Taps:
    """The taps of linear interpolation over the same block; beyond the outer voxels' centres they are repeated.

    >>> taps = linear_taps(2, 4)
    >>> taps.lower.tolist(), taps.upper.tolist(), taps.share.tolist()
    ([0, 0, 0, 0], [1, 1, 1, 1], [0.0, 0.25, 0.75, 1.0])
    """
    position = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    lower = np.minimum(np.floor(position).astype(np.intp), max(n_in - 2, 0))
    upper = np.minimum(lower + 1, n_in - 1)
    return Taps(lower, upper, (position - lower).astype(np.float32))


@dataclass(frozen=True)
class Plane:
    """One slice of the coarse grid: scores (K, rows × columns), and the label that scores most (rows, columns)."""

    scores: Tensor
    labels: LabelArray


def plane_of(scores: Tensor) -> Plane:
    """The plane of ``scores`` (K, rows, columns), float32 or float16 on any device: a copy."""
    labels = highest_label(scores)  # where the scores are
    copied = scores.to("cpu", copy=True, memory_format=torch.contiguous_format).float()
    return Plane(copied.reshape(len(copied), -1), labels)


class _PlaneUpsampling:
    """Labels of one output slice at a time, from the two planes it lies between."""

    def __init__(self, rows: Taps, columns: Taps) -> None:
        self.rows, self.columns = rows, columns
        self._nearest = rows.nearest[:, None], columns.nearest[None, :]
        self._lower = rows.lower[:, None], columns.lower[None, :]
        self._between = not all(np.isin(taps.share, (0, 1)).all() for taps in (rows, columns))

    def labels(self, below: Plane, above: Plane, share: float) -> LabelArray:
        """Labels (rows, columns) between two planes; ``share`` is the upper one's weight."""
        nearest = above if share >= 0.5 else below
        labels = nearest.labels[self._nearest]
        if share in (0.0, 1.0):
            below = above = nearest
            if not self._between:  # every voxel is one of the plane's
                return labels
        border = np.flatnonzero(_mixed(below.labels, above.labels)[self._lower])
        flat = labels.reshape(-1)
        for start in range(0, len(border), AT_ONCE):
            voxels = border[start : start + AT_ONCE]
            flat[voxels] = highest_label(self._interpolated(below, above, share, voxels))
        return labels

    def _interpolated(self, below: Plane, above: Plane, share: float, voxels: np.ndarray) -> Tensor:
        """Scores (K, n) at output voxels, given by their flat index."""
        row, column = np.divmod(voxels, len(self.columns.lower))
        width = below.labels.shape[1]
        left, right = self.columns.lower[column], self.columns.upper[column]
        upper_rows, lower_rows = self.rows.upper[row] * width, self.rows.lower[row] * width
        across = torch.from_numpy(self.columns.share[column])
        down = torch.from_numpy(self.rows.share[row])

        def within(plane: Plane) -> Tensor:
            first, second = (
                torch.lerp(_taken(plane, base + left), _taken(plane, base + right), across)
                for base in (lower_rows, upper_rows)
            )
            return torch.lerp(first, second, down)

        scores = within(below)
        return scores if above is below else torch.lerp(scores, within(above), share)


def _taken(plane: Plane, voxels: np.ndarray) -> Tensor:
    return plane.scores.index_select(1, torch.from_numpy(voxels))


def highest_label(scores: Tensor) -> np.ndarray:
    """The lowest label of the highest score (K, ...), uint8 (...)."""
    best, labels = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for label in range(1, len(scores)):
        labels.masked_fill_(scores[label] > best, label)
        torch.maximum(best, scores[label], out=best)
    return labels.cpu().numpy()


def _mixed(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Whether the 8 labels from (row, column) to (row + 1, column + 1) of two planes differ."""
    mixed = below != above if above is not below else np.zeros(below.shape, bool)
    differs_down, differs_across = below[1:] != below[:-1], below[:, 1:] != below[:, :-1]
    mixed[:-1] |= mixed[1:]
    mixed[:-1] |= differs_down
    mixed[:, :-1] |= mixed[:, 1:]
    mixed[:, :-1] |= differs_across
    mixed[:-1, :-1] |= differs_across[1:]
    return mixed
