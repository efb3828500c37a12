"""Distances between two segmentation surfaces in mm, each surface element (surfel) weighted by its area.

Definitions of DeepMind's surface-distance (Nikolov et al. 2018, arXiv:1809.04430), and hence of FLARE, to which the
numbers are equal: the surface lies in the blocks of 2×2×2 voxels that hold inside and outside, the distance of a block
is the one to the nearest such block of the other surface, and every sum is weighted by the area in the block.

A block is a cube whose 8 corners are inside or outside: 256 codes. The area follows from the code (Lorensen and Cline,
"Marching cubes", 1987); the 256 areas are worked out here from the geometry, with three conventions, DeepMind's too:

1. the surface crosses a cube edge at its middle;
2. of the inside and the outside corners, the fewer are cut off, each group joined along cube edges by a contour of
   its own (so corners that only touch across a face or the cube stay apart);
3. a contour that is not flat is spanned by the triangles of greatest area at unit spacing, which keeps its flat
   pieces whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.spatial import cKDTree

from flarecps.evaluation.overlap import occupied_box
from flarecps.typing import SpacingMm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, UInt8

Mask: TypeAlias = "Bool[np.ndarray, 'slice row column']"
Corner: TypeAlias = tuple[int, ...]  # of the cube, (slice, row, column), each 0 or 1
CORNERS: tuple[Corner, ...] = tuple(itertools.product((0, 1), repeat=3))  # corner i is bit 2**i
NEAREST_PLACES = 256  # looked at before a search tree is built: 4 mm around at 2.5 × 0.7 × 0.7 mm


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surfel of two surfaces: its distance to the other surface (mm) and its area (mm²).

    A surface without surfels (an empty mask) leaves its arrays empty, and the other's distances infinite.
    """

    prediction_mm: Float[np.ndarray, " surfels_p"]
    prediction_area_mm2: Float[np.ndarray, " surfels_p"]
    reference_mm: Float[np.ndarray, " surfels_r"]
    reference_area_mm2: Float[np.ndarray, " surfels_r"]


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: SpacingMm) -> SurfaceDistances:
    """The distances between the surfaces of two masks on one grid.

    Masks that touch the border of the array are closed there. Raises ValueError when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"masks on one grid are needed, these have the shapes {prediction.shape}, {reference.shape}")
    box = occupied_box(prediction | reference)
    areas = surfel_areas_mm2(spacing_mm)
    codes_p, codes_r = surface_codes(prediction[box]), surface_codes(reference[box])
    # Where the surface passes, codes 1 to 254; 0 wraps around to 255.
    blocks_p, blocks_r = (np.flatnonzero((codes - np.uint8(1)) < 254) for codes in (codes_p, codes_r))
    return SurfaceDistances(
        prediction_mm=_distances_mm(blocks_p, blocks_r, codes_r, spacing_mm),
        prediction_area_mm2=areas[codes_p.ravel()[blocks_p]],
        reference_mm=_distances_mm(blocks_r, blocks_p, codes_p, spacing_mm),
        reference_area_mm2=areas[codes_r.ravel()[blocks_r]],
    )


def normalised_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """NSD: the share (0 to 1) of both surfaces' area that lies within ``tolerance_mm`` (inclusive) of the other.

    Both empty: NaN; one empty: 0.
    """
    d = distances
    total = d.reference_area_mm2.sum() + d.prediction_area_mm2.sum()
    if total == 0:
        return float("nan")
    near = d.reference_area_mm2[d.reference_mm <= tolerance_mm].sum()
    near += d.prediction_area_mm2[d.prediction_mm <= tolerance_mm].sum()
    return float(near / total)


def robust_hausdorff_mm(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """The Hausdorff distance in mm of the nearest ``percent`` (0-100) of either surface's area; HD95 by default.

    For each surface the smallest distance that at least ``percent`` of its area does not exceed; of the two, the
    larger. A surface empty or both: infinite.
    """
    d, found = distances, []
    for distance_mm, areas in ((d.reference_mm, d.reference_area_mm2), (d.prediction_mm, d.prediction_area_mm2)):
        if not distance_mm.size:
            return float("inf")
        order = np.argsort(distance_mm, kind="stable")
        share = np.cumsum(areas[order]) / areas.sum()
        place = int(np.searchsorted(share, percent / 100.0))
        found.append(float(distance_mm[order[min(place, distance_mm.size - 1)]]))
    return max(found)


def average_symmetric_distance_mm(distances: SurfaceDistances) -> float:
    """ASSD: the mean distance in mm over the area of both surfaces together. Both empty: NaN; one empty: infinite."""
    all_mm = np.concatenate([distances.prediction_mm, distances.reference_mm])
    areas = np.concatenate([distances.prediction_area_mm2, distances.reference_area_mm2])
    return float((all_mm * areas).sum() / areas.sum()) if all_mm.size else float("nan")


def _distances_mm(
    start: Integer[np.ndarray, " start"],
    goal: Integer[np.ndarray, " goal"],
    goal_codes: UInt8[np.ndarray, "s r c"],
    spacing_mm: SpacingMm,
) -> Float[np.ndarray, " start"]:
    """Distance in mm of every ``start`` block to the nearest ``goal`` block; infinite when there is none.

    No distance map over the whole box is made. Two similar segmentations lie a few voxels apart, so each block first
    looks at its nearest places, nearest first; for the few that find nothing there, a search tree holds the goal.
    """
    distances = np.zeros(start.size)
    if not goal.size:
        distances[:] = np.inf
        return distances
    far = _look_around(distances, start, goal, goal_codes.shape, spacing_mm)
    if far.size:
        places, goals = (np.stack(np.unravel_index(flat, goal_codes.shape), axis=1) for flat in (start[far], goal))
        tree = cKDTree(goals * np.array(spacing_mm), leafsize=32, balanced_tree=False, compact_nodes=False)
        _, nearest = tree.query(places * np.array(spacing_mm))
        distances[far] = _lengths_mm(places - goals[nearest], spacing_mm)
    return distances


def _look_around(
    distances: Float[np.ndarray, " start"],
    start: Integer[np.ndarray, " start"],
    goal: Integer[np.ndarray, " goal"],
    shape: tuple[int, ...],
    spacing_mm: SpacingMm,
) -> Integer[np.ndarray, " far"]:
    """Fill in the ``distances`` that one of the ``NEAREST_PLACES`` gives; the places in ``start`` that found none."""
    steps, lengths_mm = _nearest_steps(spacing_mm)
    margin = np.abs(steps).max(axis=0)  # so that no step leads out of the array
    wide = tuple(int(edge + 2 * more) for edge, more in zip(shape, margin, strict=True))

    def widened(flat: np.ndarray) -> np.ndarray:
        s, r, c = np.unravel_index(flat, shape)
        return ((s + margin[0]) * wide[1] + (r + margin[1])) * wide[2] + (c + margin[2])

    is_goal = np.zeros(wide[0] * wide[1] * wide[2], bool)
    is_goal[widened(goal)] = True
    at, left = widened(start), np.arange(start.size)
    for step, length_mm in zip((steps[:, 0] * wide[1] + steps[:, 1]) * wide[2] + steps[:, 2], lengths_mm, strict=True):
        found = is_goal[at + step]
        distances[left[found]] = length_mm
        at, left = at[~found], left[~found]
        if not left.size:
            break
    return left


@lru_cache(maxsize=8)
def _nearest_steps(spacing_mm: SpacingMm) -> tuple[Integer[np.ndarray, "steps 3"], Float[np.ndarray, " steps"]]:
    """The ``NEAREST_PLACES`` shortest voxel steps, none at all first, and their lengths in mm."""
    # A ball of this radius holds more steps than needed, so none that is shorter is left out.
    radius_mm = (NEAREST_PLACES * float(np.prod(spacing_mm))) ** (1 / 3) + max(spacing_mm)
    reach = [min(int(radius_mm / step), NEAREST_PLACES) for step in spacing_mm]
    steps = np.stack(np.meshgrid(*(np.arange(-most, most + 1) for most in reach), indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    lengths_mm = _lengths_mm(steps, spacing_mm)
    shortest = np.argsort(lengths_mm, kind="stable")[:NEAREST_PLACES]
    return steps[shortest], lengths_mm[shortest]


def _lengths_mm(steps: Integer[np.ndarray, "n 3"], spacing_mm: SpacingMm) -> Float[np.ndarray, " n"]:
    # From whole voxel steps, so that a distance that equals the tolerance is not off by a rounding of the positions.
    return np.sqrt(((steps * np.array(spacing_mm)) ** 2).sum(axis=1))


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
    return np.bincount(owner, weights=lengths, minlength=256)


@lru_cache(maxsize=1)
def _triangle_vectors() -> tuple[Float[np.ndarray, "triangles 3"], np.ndarray]:
    """Area vectors (length = area at unit spacing) of the triangles of all codes, and the code of each."""
    vectors: list[np.ndarray] = []
    owner: list[int] = []
    for code in range(256):
        inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
        for group in _joined(min(inside, set(CORNERS) - inside, key=len)):
            vectors += max(_spans(_contour(group)), key=lambda span: sum(float(np.linalg.norm(part)) for part in span))
        owner += [code] * (len(vectors) - len(owner))
    return np.array(vectors), np.array(owner)


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


def _contour(group: set[Corner]) -> list[np.ndarray]:
    """The middles of the cube edges that leave ``group``, in order around it: neighbours lie on a common face."""
    middles = [(np.array(a) + b) / 2 for a in sorted(group) for b in CORNERS if b not in group and _neighbours(a, b)]
    ring = [middles.pop(0)]
    while middles:
        on_one_face = (((one == ring[-1]) & (one != 0.5)).any() for one in middles)
        ring.append(middles.pop(list(on_one_face).index(True)))
    return ring


def _spans(ring: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Every way to fill a polygon with triangles between its corners, as the triangles' area vectors."""
    if len(ring) < 3:
        yield []
        return
    for k in range(1, len(ring) - 1):
        triangle = np.cross(ring[k] - ring[0], ring[-1] - ring[0]) / 2
        for before, after in itertools.product(_spans(ring[: k + 1]), _spans(ring[k:])):
            yield [*before, triangle, *after]
