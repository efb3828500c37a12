"""The one legend for axes and frames, and the array types that carry it.

**Axes.** Arrays are ``(channel, slice, row, column)``, S×H×W as in the paper, the order in which SimpleITK hands
arrays out. Spatial triples (shape, spacing, patch, stride) are in the same order: ``(slice, row, column)``.

**Frames.** Every scan is brought to canonical RAS *voxel order* on reading: the column index grows towards the
patient's Right, the row index towards Anterior, the slice index towards Superior, as in nibabel's
``as_closest_canonical`` and nnU-Net's reorienting reader. *Positions* in millimetres stay in ITK's
LPS frame: ``direction`` is ITK's row-major 3×3 matrix whose columns belong to the ITK index (column, row, slice),
and ``origin_mm`` is the LPS position (x, y, z) of voxel (0, 0, 0). A canonical axial scan has direction
diag(-1, -1, 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:  # every command would wait for them
    import numpy as np
    from jaxtyping import Float, Integer, Shaped, UInt8

T = TypeVar("T")
Triple: TypeAlias = tuple[int, int, int]  # voxels, (slice, row, column)
SpacingMm: TypeAlias = tuple[float, float, float]  # millimetres, (slice, row, column)

ScanArray: TypeAlias = "Shaped[np.ndarray, 'channel slice row column']"
HuArray: TypeAlias = "Integer[np.ndarray, 'channel slice row column']"
NormalisedArray: TypeAlias = "Float[np.ndarray, 'channel slice row column']"
LabelArray: TypeAlias = "UInt8[np.ndarray, 'slice row column']"


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """The three ``values`` as a tuple whose type says so; ``ValueError`` for fewer or more."""
    first, second, third = values
    return first, second, third
