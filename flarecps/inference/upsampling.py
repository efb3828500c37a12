"""Labels on a finer grid from class scores on a coarser one: linear interpolation, then the class that scores most.

Interpolation is a weighted mean of the 8 voxels around a position. Where all 8 give one class the highest score, so
does every mean of them; only between voxels that disagree, along the borders of structures, is anything
interpolated. The labels are those of interpolating every class everywhere, but for ties within rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flarecps.typing import LabelArray, Triple
from flarecps.volumes.resampling import nearest_indices

AT_ONCE = 1 << 16  # border voxels interpolated at a time: 14 classes of them fill a few MB


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


def nearest_taps(n_in: int, n_out: int) -> Taps:
    """The taps of nearest neighbour, as `flarecps.volumes.resampling` chooses it."""
    nearest = np.asarray(nearest_indices(n_in, n_out), np.intp)
    return Taps(nearest, nearest, np.zeros(n_out, np.float32))


def axis_taps(shape: Triple, to_shape: Triple, coarse_axis: int | None) -> tuple[Taps, Taps, Taps]:
    """Linear taps of every axis; nearest ones along ``coarse_axis``."""
    first, second, third = (
        nearest_taps(n_in, n_out) if axis == coarse_axis else linear_taps(n_in, n_out)
        for axis, (n_in, n_out) in enumerate(zip(shape, to_shape, strict=True))
    )
    return first, second, third


@dataclass(frozen=True)
class Plane:
    """One slice of the coarse grid: scores (K, rows × columns), and the label that scores most (rows, columns)."""

    scores: torch.Tensor
    labels: LabelArray


def plane_of(scores: torch.Tensor) -> Plane:
    """The plane of ``scores`` (K, rows, columns), float32 or float16 on any device: a copy.

    Among equal scores the lowest label wins.
    """
    scores = scores.detach()
    labels = _highest(scores)  # where the scores are: a GPU is quicker, and sends half of float32's bytes
    copied = scores.to("cpu", copy=True, memory_format=torch.contiguous_format).float()
    return Plane(copied.reshape(len(copied), -1), labels)


class PlaneUpsampling:
    """Labels of one output slice at a time, from the two planes it lies between."""

    def __init__(self, rows: Taps, columns: Taps) -> None:
        self.rows, self.columns = rows, columns
        self._nearest = rows.nearest[:, None], columns.nearest[None, :]
        self._lower = rows.lower[:, None], columns.lower[None, :]

    def labels(self, below: Plane, above: Plane, share: float) -> LabelArray:
        """Labels (rows, columns) between two planes; ``share`` is the upper one's weight."""
        nearest = above if share >= 0.5 else below
        labels = nearest.labels[self._nearest]
        if share in (0.0, 1.0):
            below = above = nearest
        border = np.flatnonzero(_mixed(below.labels, above.labels)[self._lower])
        flat = labels.reshape(-1)
        for start in range(0, len(border), AT_ONCE):
            voxels = border[start : start + AT_ONCE]
            flat[voxels] = _highest(self._interpolated(below, above, share, voxels))
        return labels

    def _interpolated(self, below: Plane, above: Plane, share: float, voxels: np.ndarray) -> torch.Tensor:
        """Scores (K, n) at output voxels, given by their flat index."""
        row, column = np.divmod(voxels, len(self.columns.lower))
        width = below.labels.shape[1]
        left, right = self.columns.lower[column], self.columns.upper[column]
        upper_rows, lower_rows = self.rows.upper[row] * width, self.rows.lower[row] * width
        across = torch.from_numpy(self.columns.share[column])
        down = torch.from_numpy(self.rows.share[row])

        def within(plane: Plane) -> torch.Tensor:
            first, second = (
                torch.lerp(_taken(plane, base + left), _taken(plane, base + right), across)
                for base in (lower_rows, upper_rows)
            )
            return torch.lerp(first, second, down)

        scores = within(below)
        return scores if above is below else torch.lerp(scores, within(above), share)


def _taken(plane: Plane, voxels: np.ndarray) -> torch.Tensor:
    return plane.scores.index_select(1, torch.from_numpy(voxels))


def _highest(scores: torch.Tensor) -> np.ndarray:
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
