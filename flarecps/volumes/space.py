"""Where voxels are: the grid of a scan in patient space, and its exact reordering to canonical RAS.

Axes and frames are explained once, in `flarecps.typing`: arrays and triples are (slice, row, column), positions
are ITK's LPS millimetres, and ``direction`` is ITK's row-major matrix whose columns belong to (column, row, slice).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from flarecps.errors import GridError
from flarecps.typing import SpacingMm, Triple, triple

Direction = tuple[float, ...]  # nine numbers: ITK's 3×3 matrix, row-major
PositionMm = tuple[float, float, float]

CANONICAL_DIRECTION: Direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # Right, Anterior, Superior, in LPS
CODES = ("SI", "AP", "RL")  # of the canonical axes (slice, row, column), and of the same reversed
# Two grids are one where no voxel lies further than this from its counterpart, as a share of a voxel's edge. Headers
# that round (float32, quaternions, spacings of 4 decimals) move voxels by up to 0.02, a wrong grid by half or more.
SAME_GRID_VOXELS = 0.1
ORTHONORMAL = 1e-3  # of the directions' products with each other; readers take the nearest frame of a sheared one
# An axis at 45° points to two patient axes alike, and rounding in the header would choose. So the patient is turned by
# 0.3° first, more than rounding does, about an axis that is none of its own: then few scans lie midway.
TURN_RAD = 5e-3
TURN_AXIS = (4.0, 6.0, 7.0)


class Misplacement(NamedTuple):
    """The largest distance between two voxels of one index on two grids; infinite where the shapes differ."""

    mm: float
    voxels: float  # as a share of a voxel's edges

    @property
    def is_small(self) -> bool:
        """Whether the two grids count as one."""
        return self.voxels <= SAME_GRID_VOXELS


@dataclass(frozen=True)
class Space:
    """The grid of a scan: how many voxels, how far apart, in which directions, from where.

    ``shape`` and ``spacing_mm`` are (slice, row, column); ``direction`` is nine numbers, row-major, with orthonormal
    columns for (column, row, slice); ``origin_mm`` is the LPS position (x, y, z) of voxel (0, 0, 0). Raises GridError
    where they are not: sizes from 1, spacings above 0, everything finite.
    """

    shape: Triple
    spacing_mm: SpacingMm
    direction: Direction = CANONICAL_DIRECTION
    origin_mm: PositionMm = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Whatever a header or a library says about a grid passes here."""
        axes = np.asarray(self.direction, float).reshape(3, 3)
        if len(self.shape) != 3 or not all(edge >= 1 and edge == int(edge) for edge in self.shape):
            raise GridError(
                f"a grid of {'×'.join(map(str, self.shape))} voxels; expected at least 1 along each of 3 axes"
            )
        if not all(0 < edge < np.inf for edge in self.spacing_mm):
            raise GridError(
                f"a spacing of {_listed(self.spacing_mm)} mm (slice, row, column); expected positive numbers: "
                "convert the scan from DICOM again, or correct its header"
            )
        if not np.isfinite(self.origin_mm).all():
            raise GridError(f"an origin of {_listed(self.origin_mm)} mm; expected finite numbers: correct the header")
        if not np.abs(axes.T @ axes - np.eye(3)).max() <= ORTHONORMAL:
            raise GridError(
                f"directions ({_listed(self.direction)}) that are not three of length 1 at right angles: "
                "convert the scan from DICOM again"
            )

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

    def misplacement(self, other: Space) -> Misplacement:
        """How far voxels of ``other`` lie from those of the same index here, wherever they are furthest apart.

        Flipping or permuting the axes of both grids alike changes nothing, nor does exchanging the two.

        >>> Space.canonical((9, 9, 101), (3.0, 1.0, 1.0)).misplacement(Space.canonical((9, 9, 101), (3.0, 1.0, 1.002)))
        Misplacement(mm=0.2, voxels=0.2)
        """
        if tuple(self.shape) != tuple(other.shape):
            return Misplacement(np.inf, np.inf)
        return misplacement(self.affine, other.affine, self.shape)

    def same_grid(self, other: Space) -> bool:
        """Whether voxels of the same index are the same voxels: the one rule for all of the program."""
        return self.misplacement(other).is_small

    def difference(self, other: Space) -> str:
        """What differs between two grids, for messages; empty when `same_grid` holds."""
        apart = self.misplacement(other)
        if apart.is_small:
            return ""
        found = []
        if tuple(self.shape) != tuple(other.shape):
            shapes = ("×".join(map(str, space.shape)) for space in (self, other))
            found.append(f"{' against '.join(shapes)} voxels")
        else:
            found.append(f"voxels up to {apart.mm:.3g} mm apart ({apart.voxels:.2g} of a voxel)")
        for name in ("spacing", "origin"):
            ours, theirs = (_listed(getattr(space, f"{name}_mm")) for space in (self, other))
            if ours != theirs:
                found.append(f"{name} ({ours}) against ({theirs}) mm")
        if (turn := np.abs(np.subtract(self.direction, other.direction)).max()) > 1e-6:
            found.append(f"direction cosines up to {turn:.2g} apart")
        return "; ".join(found)


def misplacement(one: np.ndarray, other: np.ndarray, shape: Triple) -> Misplacement:
    """The largest distance between two voxels of the same index of two 4×4 matrices (index to mm), over ``shape``.

    Both are affine, so one of the eight corners is where they are furthest apart. The share is the larger of those of
    either grid's voxels; a matrix without volume has none, so it is infinite.
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, edge - 1) for edge in shape))], float)
    apart_mm = (corners @ (one - other).T)[:, :3]
    try:
        shares = [np.linalg.solve(matrix[:3, :3], apart_mm.T) for matrix in (one, other)]
    except np.linalg.LinAlgError:
        shares = [np.full(3, np.inf)]
    largest = max(float(np.linalg.norm(share, axis=0).max()) for share in shares)
    return Misplacement(round(float(np.linalg.norm(apart_mm, axis=1).max()), 9), round(largest, 9))


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in numbers)


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

    def then(self, following: Reorientation) -> Reorientation:
        """This reordering and ``following`` in one."""
        axes = triple(self.axes[axis] for axis in following.axes)
        flips = (self.flips[axis] != flip for axis, flip in zip(following.axes, following.flips, strict=True))
        return Reorientation(axes, triple(flips))

    def inverse(self) -> Reorientation:
        """The reordering that takes this one back."""
        back = triple(self.axes.index(axis) for axis in range(3))
        return Reorientation(back, triple(self.flips[axis] for axis in back))

    def _senses(self) -> tuple[slice, slice, slice]:
        return triple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)


AS_IT_IS = Reorientation((0, 1, 2), (False, False, False))


def canonical_reorientation(direction: Direction) -> Reorientation:
    """The permutation and flips that bring a scan closest to RAS voxel order, as nibabel's ``as_closest_canonical``.

    The voxels' order in the file makes no difference to where they come out. Within 0.3° of midway between two orders
    the choice may be the other one; labels follow their image there (`matching_reorientation`).
    """
    return _reorientation(_turned() @ _axes(direction), _axes(CANONICAL_DIRECTION))


def matching_reorientation(direction: Direction, wanted: Direction) -> Reorientation:
    """The permutation and flips that bring a grid of ``direction`` closest to the voxel order of ``wanted``."""
    return _reorientation(_axes(direction), _axes(wanted))


def axis_codes(direction: Direction) -> str:
    """The patient directions in which (column, row, slice) indices grow, as nibabel's codes.

    >>> axis_codes((1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    'LPS'
    """
    way = canonical_reorientation(direction)
    code_of_stored = {axis: CODES[number][way.flips[number]] for number, axis in enumerate(way.axes)}
    return "".join(code_of_stored[axis] for axis in (2, 1, 0))


def _axes(direction: Direction) -> np.ndarray:
    """Unit vectors as columns, (slice, row, column)."""
    return nearest_orthonormal(np.asarray(direction, float).reshape(3, 3))[:, ::-1]


def _turned() -> np.ndarray:
    """The rotation by `TURN_RAD` about `TURN_AXIS`, to first order."""
    x, y, z = TURN_RAD * np.asarray(TURN_AXIS) / np.linalg.norm(TURN_AXIS)
    return np.array([[1.0, -z, y], [z, 1.0, -x], [-y, x, 1.0]])


def _reorientation(stored: np.ndarray, wanted: np.ndarray) -> Reorientation:
    """Each stored axis goes to the wanted one it points along most, the most clearly pointing axes choosing first.

    Both: unit vectors as columns, (slice, row, column).
    """
    cosines = wanted.T @ stored
    remaining = np.abs(cosines)
    chosen: dict[int, int] = {}
    for axis in np.argsort(-remaining.max(axis=0), kind="stable").tolist():
        target = int(np.argmax(remaining[:, axis]))
        remaining[target] = -1.0
        chosen[target] = axis
    axes = triple(chosen[target] for target in range(3))
    return Reorientation(axes, triple(bool(cosines[target, axis] < 0) for target, axis in enumerate(axes)))


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
