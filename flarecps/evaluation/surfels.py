"""Surface elements (surfels) of a segmentation: where its surface is, and how many mm² each piece of it has.

A 2×2×2 block of neighbouring voxels is a cube whose 8 corners are inside or outside: 256 codes. Where a block holds
both, the surface passes through it, and its area follows from the code: Lorensen and Cline, "Marching cubes", 1987.
The 256 areas are worked out here from the geometry, with three conventions, which are those of DeepMind's
surface-distance (Nikolov et al. 2018, arXiv:1809.04430) and hence of FLARE:

1. the surface crosses a cube edge at its middle;
2. of the inside and the outside corners, the fewer are cut off, each group joined along cube edges by a contour of
   its own (so corners that only touch across a face or the cube stay apart);
3. a contour that is not flat is spanned by the triangles of greatest area at unit spacing, which keeps its flat
   pieces whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from flarecps.typing import SpacingMm

CODES = 256
Corner: TypeAlias = tuple[int, int, int]  # of the cube, (slice, row, column), each 0 or 1
Point: TypeAlias = tuple[float, float, float]  # in the cube, edge length 1
Triangle: TypeAlias = tuple[Point, Point, Point]
CORNERS: tuple[Corner, ...] = tuple((s, r, c) for s in (0, 1) for r in (0, 1) for c in (0, 1))  # corner i is bit 2**i


def surface_codes(mask: Bool[np.ndarray, "slice row column"]) -> UInt8[np.ndarray, "slice1 row1 column1"]:
    """The code of every 2×2×2 block that holds a voxel of ``mask``: bit 4s + 2r + c is the block's voxel (s, r, c).

    Each axis is longer by one: block (i, j, k) ends at voxel (i, j, k) and begins one before it. Outside the array
    counts as outside the mask, so a mask that touches the border is closed there. Codes 0 and 255 hold no surface.
    """
    inside = np.pad(mask.view(np.uint8), 1)
    pairs = inside[:, :, :-1] | inside[:, :, 1:] << 1
    squares = pairs[:, :-1] | pairs[:, 1:] << 2
    return squares[:-1] | squares[1:] << 4


def surfel_areas_mm2(spacing_mm: SpacingMm) -> Float[np.ndarray, " codes=256"]:
    """The surface area in mm² inside a block of 2×2×2 voxel centres, for each of the 256 codes."""
    # The triangle's vector in mm: component a is its projection onto the plane of the two other axes.
    s, r, c = spacing_mm
    vectors, owner = _triangle_vectors()
    lengths = np.linalg.norm(vectors * np.array([r * c, s * c, s * r]), axis=1)
    return np.bincount(owner, weights=lengths, minlength=CODES)


@lru_cache(maxsize=1)
def _triangle_vectors() -> tuple[Float[np.ndarray, "triangles 3"], np.ndarray]:
    """Area vectors (length = area at unit spacing) of the triangles of all codes, and the code of each."""
    vectors, owner = [], []
    for code in range(CODES):
        for triangle in _triangles(code):
            vectors.append(_area_vector(triangle))
            owner.append(code)
    return np.array(vectors), np.array(owner)


def _triangles(code: int) -> list[Triangle]:
    inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
    outside = set(CORNERS) - inside
    cut_off = inside if len(inside) <= len(outside) else outside
    triangles = []
    for group in _joined(cut_off):
        spans = list(_spans(_contour(group)))
        triangles += max(spans, key=lambda span: sum(float(np.linalg.norm(_area_vector(part))) for part in span))
    return triangles


def _joined(corners: set[Corner]) -> Iterator[set[Corner]]:
    """The groups of ``corners`` that hang together along cube edges."""
    left = set(corners)
    while left:
        group = {left.pop()}
        while grown := {corner for corner in left if any(_neighbours(corner, member) for member in group)}:
            group |= grown
            left -= grown
        yield group


def _neighbours(a: Corner, b: Corner) -> bool:
    return sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _contour(group: set[Corner]) -> list[Point]:
    """The middles of the cube edges that leave ``group``, in order around it: neighbours lie on a common face."""
    middles: list[Point] = [
        ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
        for a in sorted(group)
        for b in CORNERS
        if b not in group and _neighbours(a, b)
    ]
    ring = [middles.pop(0)]
    while middles:
        ring.append(middles.pop(next(i for i, middle in enumerate(middles) if _same_face(middle, ring[-1]))))
    return ring


def _same_face(a: Point, b: Point) -> bool:
    return any(x == y and x in (0.0, 1.0) for x, y in zip(a, b, strict=True))


def _spans(ring: Sequence[Point]) -> Iterator[list[Triangle]]:
    """Every way to fill a polygon with triangles between its corners."""
    if len(ring) < 3:
        yield []
        return
    for k in range(1, len(ring) - 1):
        for before, after in itertools.product(_spans(ring[: k + 1]), _spans(ring[k:])):
            yield [*before, (ring[0], ring[k], ring[-1]), *after]


def _area_vector(triangle: Triangle) -> np.ndarray:
    a, b, c = (np.array(point) for point in triangle)
    return np.cross(b - a, c - a) / 2
