"""Where voxels are: the grid of a scan in patient space, and its exact reordering to canonical RAS.

Axes and frames are explained once, in `flarecps.typing`: arrays and triples are (slice, row, column), positions
are ITK's LPS millimetres, and ``direction`` is ITK's row-major matrix whose columns belong to (column, row, slice).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.typing import SpacingMm, Triple, triple

Direction = tuple[float, ...]  # nine numbers: ITK's 3×3 matrix, row-major
PositionMm = tuple[float, float, float]

CANONICAL_DIRECTION: Direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # Right, Anterior, Superior, in LPS
# Patient axis (x, y, z of LPS) and sense along which each canonical array axis (slice, row, column) grows.
CANONICAL_PATIENT_AXES = ((2, 1.0), (1, -1.0), (0, -1.0))


@dataclass(frozen=True)
class Space:
    """The grid of a scan: how many voxels, how far apart, in which directions, from where.

    ``shape`` and ``spacing_mm`` are (slice, row, column); ``direction`` is nine numbers, row-major, with orthonormal
    columns for (column, row, slice); ``origin_mm`` is the LPS position (x, y, z) of voxel (0, 0, 0).
    """

    shape: Triple
    spacing_mm: SpacingMm
    direction: Direction = CANONICAL_DIRECTION
    origin_mm: PositionMm = (0.0, 0.0, 0.0)

    @classmethod
    def canonical(cls, shape: Triple, spacing_mm: SpacingMm, origin_mm: PositionMm = (0.0, 0.0, 0.0)) -> Space:
        """An axial grid in RAS voxel order whose voxel (0, 0, 0) lies at ``origin_mm`` (LPS)."""
        return cls(triple(map(int, shape)), triple(map(float, spacing_mm)), origin_mm=triple(map(float, origin_mm)))

    @property
    def axes_mm(self) -> np.ndarray:
        """The 3×3 float64 matrix whose columns are the LPS steps, in mm, of one (slice, row, column) voxel."""
        columns_first = np.asarray(self.direction, float).reshape(3, 3)
        return columns_first[:, ::-1] * np.asarray(self.spacing_mm, float)

    @property
    def affine(self) -> np.ndarray:
        """The 4×4 float64 matrix from array index (slice, row, column, 1) to LPS position in mm.

        >>> Space.canonical((5, 6, 7), (2.0, 1.0, 1.0)).affine[:3, 0].tolist()
        [0.0, 0.0, 2.0]
        """
        affine = np.eye(4)
        affine[:3, :3] = self.axes_mm
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def voxel_volume_mm3(self) -> float:
        """The volume of one voxel in cubic millimetres."""
        return float(np.prod(self.spacing_mm))

    @property
    def extent_mm(self) -> SpacingMm:
        """Edge lengths of the scanned block, voxel borders included, in mm (slice, row, column)."""
        return triple(np.multiply(self.shape, self.spacing_mm).tolist())

    def position_mm(self, index: Triple | tuple[float, float, float] | np.ndarray) -> np.ndarray:
        """LPS positions (x, y, z) in mm of one index (slice, row, column), or of an array (..., 3) of indices."""
        return np.asarray(index, float) @ self.axes_mm.T + np.asarray(self.origin_mm, float)

    def same_grid(self, other: Space, tolerance_mm: float = 1e-3, direction_tolerance: float = 1e-4) -> bool:
        """Whether both grids have the same voxels: equal shape, spacing and origin within ``tolerance_mm``."""
        return not self.difference(other, tolerance_mm, direction_tolerance)

    def difference(self, other: Space, tolerance_mm: float = 1e-3, direction_tolerance: float = 1e-4) -> str:
        """What differs between two grids, for messages; empty when `same_grid` holds."""
        found = []
        if tuple(self.shape) != tuple(other.shape):
            shapes = ("×".join(map(str, space.shape)) for space in (self, other))
            found.append(f"{' against '.join(shapes)} voxels")
        for name in ("spacing", "origin"):
            ours, theirs = getattr(self, f"{name}_mm"), getattr(other, f"{name}_mm")
            if np.abs(np.subtract(ours, theirs)).max() > tolerance_mm:
                both = ("(" + ", ".join(f"{value:.6g}" for value in one) + ")" for one in (ours, theirs))
                found.append(f"{name} {' against '.join(both)} mm")
        if (turn := np.abs(np.subtract(self.direction, other.direction)).max()) > direction_tolerance:
            found.append(f"direction cosines up to {turn:.2g} apart")
        return "; ".join(found)


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of voxel axes: canonical axis ``a`` is stored axis ``axes[a]``, reversed if ``flips[a]``.

    No voxel is interpolated, so `undo` is exact. An oblique scan stays oblique: only its nearest order is taken.
    """

    axes: Triple
    flips: tuple[bool, bool, bool]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """A view of ``array`` (..., slice, row, column), stored order in, canonical order out."""
        lead = tuple(range(array.ndim - 3))
        moved = np.transpose(array, lead + tuple(len(lead) + axis for axis in self.axes))
        return moved[(..., *self._senses())]

    def undo(self, array: np.ndarray) -> np.ndarray:
        """A view of ``array`` (..., slice, row, column), canonical order in, stored order out."""
        lead = tuple(range(array.ndim - 3))
        unflipped = array[(..., *self._senses())]
        return np.transpose(unflipped, lead + tuple(len(lead) + self.axes.index(axis) for axis in range(3)))

    def apply_to_space(self, space: Space) -> Space:
        """The grid of `apply`'s result: every voxel keeps its position."""
        axes, flips = list(self.axes), list(self.flips)
        shape = triple(int(space.shape[axis]) for axis in axes)
        spacing_mm = triple(float(space.spacing_mm[axis]) for axis in axes)
        slice_first = np.asarray(space.direction, float).reshape(3, 3)[:, ::-1]
        direction = (slice_first[:, axes] * np.where(flips, -1.0, 1.0))[:, ::-1]
        first = np.zeros(3)  # the stored index of the new voxel (0, 0, 0)
        first[axes] = np.where(flips, np.subtract(shape, 1), 0)
        return Space(shape, spacing_mm, as_direction(direction), triple(space.position_mm(first).tolist()))

    def inverse(self) -> Reorientation:
        """The reordering that takes this one back."""
        back = triple(self.axes.index(axis) for axis in range(3))
        return Reorientation(back, triple(self.flips[axis] for axis in back))

    def _senses(self) -> tuple[slice, slice, slice]:
        return triple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)


AS_IT_IS = Reorientation((0, 1, 2), (False, False, False))


def canonical_reorientation(direction: Direction) -> Reorientation:
    """The permutation and flips that bring a scan closest to RAS voxel order, the same as nibabel's choice.

    Each array axis goes to the patient axis it points along most, the most clearly pointing axes choosing first.
    """
    cosines = nearest_orthonormal(np.asarray(direction, float).reshape(3, 3))[:, ::-1]  # columns: slice, row, column
    remaining = np.abs(cosines)
    stored_axis_of_patient_axis: dict[int, int] = {}
    for stored in sorted(range(3), key=lambda axis: (-round(float(remaining[:, axis].max()), 12), 2 - axis)):
        patient = int(np.argmax(np.round(remaining[:, stored], 12)))
        remaining[patient, :] = -1.0
        stored_axis_of_patient_axis[patient] = stored
    axes = triple(stored_axis_of_patient_axis[patient] for patient, _ in CANONICAL_PATIENT_AXES)
    flips = (bool(cosines[p, s] * sense < 0) for (p, sense), s in zip(CANONICAL_PATIENT_AXES, axes, strict=True))
    return Reorientation(axes, triple(flips))


def nearest_orthonormal(matrix: np.ndarray) -> np.ndarray:
    """The orthonormal 3×3 matrix closest to ``matrix`` (Frobenius norm): the polar decomposition's rotation factor.

    A left-handed matrix stays left-handed. Raises ``np.linalg.LinAlgError`` for a singular or non-finite matrix.
    """
    left, sizes, right = np.linalg.svd(np.asarray(matrix, float))
    if sizes[-1] <= 1e-6 * sizes[0]:
        raise np.linalg.LinAlgError("the three directions do not span space")
    return left @ right


def as_direction(matrix: np.ndarray) -> Direction:
    """A 3×3 matrix as nine plain numbers, row-major; -0.0 becomes 0.0."""
    return tuple((np.asarray(matrix, float).reshape(9) + 0.0).tolist())
