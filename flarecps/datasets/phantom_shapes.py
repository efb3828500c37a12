"""Smooth solids by approximate signed distance in millimetres: negative inside, and cheap to combine.

Points are float32 arrays (3, slice, row, column) of body coordinates in mm, in the order (superior, anterior, right)
of a RAS grid; a place is a triple in the same order. Distances are exact enough near the surface to give partial
volume at the edges and layers of a given thickness (a wall, a cortex). Source of the ellipsoid's and the smooth
minimum's approximation: I. Quilez, "distance functions" and "smooth minimum" (2008-2013).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Place: TypeAlias = Sequence[float] | np.ndarray  # mm: (superior, anterior, right)
FAR_MM = np.float32(1000)  # the distance given where nothing is near
NEAR_MM = 25.0  # pieces of a tube are not measured from farther away than this


@dataclass(frozen=True)
class Shape:
    """A solid: its signed distance in mm at points (3, ...), negative inside, and a box that holds it.

    The box is its lowest and highest (superior, anterior, right) in mm; they may be infinite.
    """

    distance_mm: Callable[[np.ndarray], np.ndarray]
    box_mm: tuple[np.ndarray, np.ndarray]


def rotation(degrees: Place) -> np.ndarray:
    """A 3×3 rotation by three angles in degrees, about the superior, then the anterior, then the right axis."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def ellipsoid(centre: Place, radii_mm: Place, turned_degrees: Place = (0.0, 0.0, 0.0)) -> Shape:
    """An ellipsoid with three radii in mm, turned about its centre."""
    turn = rotation(turned_degrees)

    def distance_mm(points: np.ndarray) -> np.ndarray:
        offset = [points[i] - np.float32(centre[i]) for i in range(3)]
        once = np.zeros(points.shape[1:], np.float32)
        twice = np.zeros(points.shape[1:], np.float32)
        for (a, b, c), radius in zip(turn.astype(np.float32), np.asarray(radii_mm, np.float32), strict=True):
            along = a * offset[0] + b * offset[1] + c * offset[2]
            along /= radius
            once += along * along
            along /= radius
            twice += along * along
        norm = np.sqrt(once)
        return norm * (norm - 1) / np.maximum(np.sqrt(twice), np.float32(1e-6))

    reach = np.sqrt((turn.T**2) @ np.square(radii_mm))
    return Shape(distance_mm, (np.subtract(centre, reach), np.add(centre, reach)))


def tube(places: Sequence[Place] | np.ndarray, radii_mm: Sequence[float] | np.ndarray, bends: int = 3) -> Shape:
    """A tube along a Catmull-Rom curve through ``places``, with a radius in mm at each.

    ``bends``: straight pieces from one place to the next.
    """
    knots = np.column_stack([np.asarray(places, float), radii_mm])
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    pieces = [
        0.5
        * (
            2 * start
            + (end - before) * t
            + (2 * before - 5 * start + 4 * end - after) * t**2
            + (3 * start - before - 3 * end + after) * t**3
        )
        for before, start, end, after in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True)
        for t in np.arange(bends) / bends
    ]
    curve = np.array([*pieces, knots[-1]])
    path, radii = curve[:, :3], np.maximum(curve[:, 3], 0.5)

    def distance_mm(points: np.ndarray) -> np.ndarray:
        nearest = np.full(points.shape[1:], FAR_MM)
        low, high = points.reshape(3, -1).min(1), points.reshape(3, -1).max(1)
        ends, widths = path.astype(np.float32), radii.astype(np.float32)
        for start, end, radius, next_radius in zip(ends[:-1], ends[1:], widths[:-1], widths[1:], strict=True):
            reach = max(radius, next_radius) + NEAR_MM
            if (np.minimum(start, end) - reach > high).any() or (np.maximum(start, end) + reach < low).any():
                continue  # no point is near this piece
            along = end - start
            length2 = max(np.float32((along * along).sum()), np.float32(1e-6))
            offset = [points[i] - start[i] for i in range(3)]
            t = (offset[0] * along[0] + offset[1] * along[1] + offset[2] * along[2]) / length2
            np.clip(t, 0, 1, out=t)
            square = np.zeros_like(t)
            for axis in range(3):
                rest = offset[axis] - t * along[axis]
                square += rest * rest
            np.minimum(nearest, np.sqrt(square) - (radius + t * (next_radius - radius)), out=nearest)
        return nearest

    return Shape(distance_mm, ((path - radii[:, None]).min(0), (path + radii[:, None]).max(0)))


def union(parts: Sequence[Shape], blend_mm: float) -> Shape:
    """Several shapes grown together, their seams rounded over ``blend_mm``."""
    blend = np.float32(blend_mm)

    def distance_mm(points: np.ndarray) -> np.ndarray:
        first, *others = (part.distance_mm(points) for part in parts)
        for other in others:
            overlap = np.maximum(blend - np.abs(first - other), 0) / blend
            first = np.minimum(first, other) - overlap * overlap * np.float32(blend_mm / 4)
        return first

    lows, highs = zip(*(part.box_mm for part in parts), strict=True)
    return Shape(distance_mm, (np.min(lows, 0) - blend_mm / 4, np.max(highs, 0) + blend_mm / 4))


def clipped(
    whole: Shape, within: Shape | None = None, without: Sequence[Shape] = (), inset_mm: float = 0.0, gap_mm: float = 0.0
) -> Shape:
    """``whole`` kept inside ``within`` by ``inset_mm`` and clear of ``without`` by ``gap_mm``."""

    def distance_mm(points: np.ndarray) -> np.ndarray:
        distance = whole.distance_mm(points)
        if within is not None:
            distance = np.maximum(distance, within.distance_mm(points) + np.float32(inset_mm))
        for other in without:
            distance = np.maximum(distance, np.float32(gap_mm) - other.distance_mm(points))
        return distance

    (low, high), (other_low, other_high) = whole.box_mm, (within or whole).box_mm
    return Shape(distance_mm, (np.maximum(low, other_low), np.minimum(high, other_high)))


def column(
    centre: tuple[float, float],
    radii_mm: tuple[float, float],
    exponent: float = 2.0,
    floor_mm: float = -np.inf,
    ceiling_mm: float = np.inf,
) -> Shape:
    """An upright column between two heights, its cross-section a superellipse around (anterior, right) in mm."""

    def distance_mm(points: np.ndarray) -> np.ndarray:
        anterior, right = (points[i + 1] - np.float32(centre[i]) for i in range(2))
        y, x = np.abs(anterior) / np.float32(radii_mm[0]), np.abs(right) / np.float32(radii_mm[1])
        if exponent == 2.0:
            level = np.sqrt(y * y + x * x)
        else:
            power = np.float32(exponent)
            level = (y**power + x**power) ** (1 / power)
        level = np.maximum(level, np.float32(1e-3))
        radius = np.sqrt(anterior * anterior + right * right) / level  # of the cross-section, this way
        distance = (level - 1) * np.maximum(radius, np.float32(min(radii_mm)))
        if np.isfinite(floor_mm):
            distance = np.maximum(distance, np.float32(floor_mm) - points[0])
        if np.isfinite(ceiling_mm):
            distance = np.maximum(distance, points[0] - np.float32(ceiling_mm))
        return distance

    (y, x), (b, a) = centre, radii_mm
    return Shape(distance_mm, (np.array([floor_mm, y - b, x - a]), np.array([ceiling_mm, y + b, x + a])))


def repeated(whole: Shape, period_mm: float, height_mm: float, start_mm: float = 0.0, slope: float = 0.0) -> Shape:
    """Pieces of ``whole``, ``height_mm`` high, one every ``period_mm`` upwards: vertebrae, ribs.

    ``slope`` is how far a piece sinks per mm towards anterior; the first piece is centred at ``start_mm``.
    """

    def distance_mm(points: np.ndarray) -> np.ndarray:
        period = np.float32(period_mm)
        height = points[0] + np.float32(slope) * points[1] - np.float32(start_mm)
        off_centre = np.abs(np.mod(height + period / 2, period) - period / 2)
        return np.maximum(whole.distance_mm(points), off_centre - np.float32(height_mm / 2))

    return Shape(distance_mm, whole.box_mm)


def grown(seed: Shape, by_mm: float, wall_mm: float | None = None) -> Shape:
    """A shape grown by ``by_mm`` all around (shrunk where negative); the shell of it where ``wall_mm`` is given."""

    def distance_mm(points: np.ndarray) -> np.ndarray:
        distance = seed.distance_mm(points) - np.float32(by_mm)
        return distance if wall_mm is None else np.abs(distance) - np.float32(wall_mm / 2)

    reach = by_mm + (wall_mm or 0.0) / 2
    return Shape(distance_mm, (seed.box_mm[0] - reach, seed.box_mm[1] + reach))


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves of standard deviation 1 and about the given wavelength in mm."""

    vectors: np.ndarray  # (n, 3) rad/mm
    phases: np.ndarray  # (n,)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The field at ``points`` (3, ...), float32."""
        total = np.zeros(points.shape[1:], np.float32)
        for (a, b, c), phase in zip(self.vectors.astype(np.float32), self.phases.astype(np.float32), strict=True):
            total += np.sin(a * points[0] + b * points[1] + c * points[2] + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))


def draw_waves(generator: np.random.Generator, wavelength_mm: float, count: int = 6) -> Waves:
    """Plane waves of random direction and phase, wavelengths within 30 % of the one asked for."""
    directions = generator.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength_mm * generator.uniform(0.7, 1.3, size=(count, 1))
    return Waves(directions * 2 * np.pi / lengths, generator.uniform(0, 2 * np.pi, size=count))


def displaced(smooth: Shape, waves: Waves, depth_mm: float) -> Shape:
    """A shape whose surface goes in and out by about ``depth_mm`` (standard deviation), as lobulated organs' do."""
    reach = depth_mm * np.sqrt(2 * len(waves.phases))  # the most the waves can add up to
    return Shape(
        lambda points: smooth.distance_mm(points) + np.float32(depth_mm) * waves(points),
        (smooth.box_mm[0] - reach, smooth.box_mm[1] + reach),
    )
