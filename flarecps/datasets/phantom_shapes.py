"""Smooth solids by approximate signed distance in millimetres: negative inside, and cheap to combine.

Points are float32 arrays (3, slice, row, column) of body coordinates in mm, in the order (superior, anterior, right)
of a RAS grid; a place is a triple in the same order. Distances are exact enough near the surface to give partial
volume at the edges and layers of a given thickness (a wall, a cortex). Source of the ellipsoid's and the smooth
minimum's approximation: I. Quilez, "distance functions" and "smooth minimum" (2008-2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Place = tuple[float, float, float]  # mm: (superior, anterior, right)
Distances = np.ndarray
FAR_MM = np.float32(1000)  # the distance given where nothing is near
NEAR_MM = 25.0  # pieces of a tube are not measured from farther away than this


class Shape(Protocol):
    """A solid: its signed distance in mm at points, and a box that holds it."""

    def distance_mm(self, points: np.ndarray) -> Distances:
        """Signed distance in mm at ``points`` (3, ...), negative inside."""
        ...

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest (superior, anterior, right) in mm; may be infinite."""
        ...


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


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with three radii in mm, turned about its centre."""

    centre: Place
    radii_mm: Place
    turned_degrees: Place = (0.0, 0.0, 0.0)

    def distance_mm(self, points: np.ndarray) -> Distances:
        turn = rotation(self.turned_degrees).astype(np.float32)
        offset = [points[i] - np.float32(self.centre[i]) for i in range(3)]
        once = np.zeros(points.shape[1:], np.float32)
        twice = np.zeros(points.shape[1:], np.float32)
        for axis in range(3):
            along = turn[axis, 0] * offset[0] + turn[axis, 1] * offset[1] + turn[axis, 2] * offset[2]
            along /= np.float32(self.radii_mm[axis])
            once += along * along
            along /= np.float32(self.radii_mm[axis])
            twice += along * along
        norm = np.sqrt(once)
        return norm * (norm - 1) / np.maximum(np.sqrt(twice), np.float32(1e-6))

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt((rotation(self.turned_degrees).T ** 2) @ np.square(self.radii_mm))
        return np.subtract(self.centre, reach), np.add(self.centre, reach)


@dataclass(frozen=True)
class Tube:
    """A tube along a curve through ``places`` with a radius in mm at each; ``bends`` straight pieces per place."""

    places: tuple[Place, ...]
    radii_mm: tuple[float, ...]
    bends: int = 3

    def path(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 3) and radii (n,) in mm on a Catmull-Rom curve through the places."""
        knots = np.column_stack([np.asarray(self.places, float), self.radii_mm])
        padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
        pieces = []
        for before, start, end, after in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
            for t in np.arange(self.bends) / self.bends:
                pieces.append(
                    0.5
                    * (
                        2 * start
                        + (end - before) * t
                        + (2 * before - 5 * start + 4 * end - after) * t**2
                        + (3 * start - before - 3 * end + after) * t**3
                    )
                )
        pieces.append(knots[-1])
        path = np.array(pieces)
        return path[:, :3], np.maximum(path[:, 3], 0.5)

    def distance_mm(self, points: np.ndarray) -> Distances:
        path, radii = (values.astype(np.float32) for values in self.path())
        nearest = np.full(points.shape[1:], FAR_MM)
        low, high = points.reshape(3, -1).min(1), points.reshape(3, -1).max(1)
        for start, end, radius, next_radius in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
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

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        path, radii = self.path()
        return (path - radii[:, None]).min(0), (path + radii[:, None]).max(0)


@dataclass(frozen=True)
class Union:
    """Several shapes grown together, their seams rounded over ``blend_mm``."""

    parts: tuple[Shape, ...]
    blend_mm: float = 0.0

    def distance_mm(self, points: np.ndarray) -> Distances:
        first, *others = (part.distance_mm(points) for part in self.parts)
        for other in others:
            if self.blend_mm > 0:
                overlap = np.maximum(np.float32(self.blend_mm) - np.abs(first - other), 0) / np.float32(self.blend_mm)
                first = np.minimum(first, other) - overlap * overlap * np.float32(self.blend_mm / 4)
            else:
                first = np.minimum(first, other)
        return first

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        boxes = [part.box_mm() for part in self.parts]
        swell = self.blend_mm / 4
        return np.min([low for low, _ in boxes], 0) - swell, np.max([high for _, high in boxes], 0) + swell


@dataclass(frozen=True)
class Clipped:
    """``whole`` kept inside ``within`` by ``inset_mm`` and clear of ``without`` by ``gap_mm``."""

    whole: Shape
    within: Shape | None = None
    without: tuple[Shape, ...] = ()
    inset_mm: float = 0.0
    gap_mm: float = 0.0

    def distance_mm(self, points: np.ndarray) -> Distances:
        distance = self.whole.distance_mm(points)
        if self.within is not None:
            distance = np.maximum(distance, self.within.distance_mm(points) + np.float32(self.inset_mm))
        for other in self.without:
            distance = np.maximum(distance, np.float32(self.gap_mm) - other.distance_mm(points))
        return distance

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.whole.box_mm()
        if self.within is None:
            return low, high
        other_low, other_high = self.within.box_mm()
        return np.maximum(low, other_low), np.minimum(high, other_high)


@dataclass(frozen=True)
class Column:
    """An upright column between two heights, its cross-section a superellipse around (anterior, right) in mm."""

    centre: tuple[float, float]
    radii_mm: tuple[float, float]
    exponent: float = 2.0
    floor_mm: float = -np.inf
    ceiling_mm: float = np.inf

    def distance_mm(self, points: np.ndarray) -> Distances:
        anterior, right = (points[i + 1] - np.float32(self.centre[i]) for i in range(2))
        y, x = np.abs(anterior) / np.float32(self.radii_mm[0]), np.abs(right) / np.float32(self.radii_mm[1])
        if self.exponent == 2.0:
            level = np.sqrt(y * y + x * x)
        else:
            power = np.float32(self.exponent)
            level = (y**power + x**power) ** (1 / power)
        level = np.maximum(level, np.float32(1e-3))
        radius = np.sqrt(anterior * anterior + right * right) / level  # of the cross-section, this way
        distance = (level - 1) * np.maximum(radius, np.float32(min(self.radii_mm)))
        if np.isfinite(self.floor_mm):
            distance = np.maximum(distance, np.float32(self.floor_mm) - points[0])
        if np.isfinite(self.ceiling_mm):
            distance = np.maximum(distance, points[0] - np.float32(self.ceiling_mm))
        return distance

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        (y, x), (b, a) = self.centre, self.radii_mm
        return np.array([self.floor_mm, y - b, x - a]), np.array([self.ceiling_mm, y + b, x + a])


@dataclass(frozen=True)
class Repeated:
    """Pieces of ``whole``, ``height_mm`` high, one every ``period_mm`` upwards: vertebrae, ribs.

    ``slope`` is how far a piece sinks per mm towards anterior; the first piece is centred at ``start_mm``.
    """

    whole: Shape
    period_mm: float
    height_mm: float
    start_mm: float = 0.0
    slope: float = 0.0

    def distance_mm(self, points: np.ndarray) -> Distances:
        period = np.float32(self.period_mm)
        height = points[0] + np.float32(self.slope) * points[1] - np.float32(self.start_mm)
        off_centre = np.abs(np.mod(height + period / 2, period) - period / 2)
        return np.maximum(self.whole.distance_mm(points), off_centre - np.float32(self.height_mm / 2))

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        return self.whole.box_mm()


@dataclass(frozen=True)
class Offset:
    """A shape grown by ``by_mm`` all around (shrunk where negative); the shell of it where ``wall_mm`` is given."""

    seed: Shape
    by_mm: float
    wall_mm: float | None = None

    def distance_mm(self, points: np.ndarray) -> Distances:
        distance = self.seed.distance_mm(points) - np.float32(self.by_mm)
        return distance if self.wall_mm is None else np.abs(distance) - np.float32(self.wall_mm / 2)

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.seed.box_mm()
        reach = self.by_mm + (self.wall_mm or 0.0) / 2
        return low - reach, high + reach


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


@dataclass(frozen=True)
class Displaced:
    """A shape whose surface goes in and out by about ``depth_mm`` (standard deviation), as lobulated organs' do."""

    smooth: Shape
    waves: Waves
    depth_mm: float

    def distance_mm(self, points: np.ndarray) -> Distances:
        return self.smooth.distance_mm(points) + np.float32(self.depth_mm) * self.waves(points)

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.smooth.box_mm()
        reach = self.depth_mm * np.sqrt(2 * len(self.waves.phases))  # the most the waves can add up to
        return low - reach, high + reach
