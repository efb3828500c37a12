"""From a phantom's body to one scan: the view (grid, position, stored order) and the painting, slab by slab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.datasets.phantom_appearance import AIR_HU, Material, Noise, Scanner, draw_materials, draw_scanner
from flarecps.datasets.phantom_organs import draw_organs
from flarecps.datasets.phantom_shapes import Column, Offset, Waves, draw_waves, rotation
from flarecps.datasets.phantom_torso import Structure, draw_bowel, draw_torso
from flarecps.typing import SpacingMm, Triple

OUTSIDE_HU = -1024  # outside the reconstructed field
SLAB_VOXELS = 2_000_000  # painted at a time: bounds the memory


@dataclass(frozen=True)
class Acquisition:
    """The grid of one scan and how the body lies in it.

    A grid point w (mm from the field's centre) shows the body at ``turn @ (w - shift) / scale`` plus a smooth warp.
    """

    shape: Triple
    spacing_mm: SpacingMm
    shift_mm: SpacingMm
    scale: SpacingMm
    turn: np.ndarray
    warp: tuple[Waves, Waves, Waves]
    warp_mm: float

    def axes_mm(self) -> list[np.ndarray]:
        """Positions (mm from the field's centre) along slices, rows and columns."""
        return [
            ((np.arange(n) - (n - 1) / 2) * spacing).astype(np.float32)
            for n, spacing in zip(self.shape, self.spacing_mm, strict=True)
        ]

    def body_points(self, first: int, last: int) -> np.ndarray:
        """Body coordinates (3, last - first, row, column) in mm of the slices [first, last)."""
        axes = self.axes_mm()
        axes[0] = axes[0][first:last]
        field = [
            (axis - np.float32(shift)) / np.float32(scale)
            for axis, shift, scale in zip(axes, self.shift_mm, self.scale, strict=True)
        ]
        grid = np.meshgrid(*field, indexing="ij")
        turn = self.turn.astype(np.float32)
        points = np.stack([turn[i, 0] * grid[0] + turn[i, 1] * grid[1] + turn[i, 2] * grid[2] for i in range(3)])
        offset = np.stack([waves(points) for waves in self.warp]) * np.float32(self.warp_mm)
        return points + offset


def draw_acquisition(generator: np.random.Generator, size: str, wide: bool) -> Acquisition:
    """A field of view; ``wide`` varies more in spacing, extent, zoom, position and turning."""
    draw = generator.uniform
    reach = 1.4 if wide else 1.0
    extent = (draw(240, 350) if wide else draw(270, 320), draw(350, 460) if wide else draw(370, 430))
    if size == "small":
        spacing = (draw(5.5, 7.5), draw(6.0, 7.2)) if wide else (draw(6.0, 6.8), draw(6.1, 6.7))
        shape = (round(extent[0] / spacing[0]), *(round(extent[1] / spacing[1]),) * 2)
    else:
        thickness = draw(1.0, 5.0) if wide else draw(1.0, 3.0)
        spacing = (thickness, extent[1] / 512)
        shape = (round(extent[0] / thickness), 512, 512)
    shift = generator.normal((-42, -5, 0), (26 * reach, 16 * reach, 20 * reach))
    shift = np.clip(shift, (-100, -45, -50), (20, 40, 50))
    common = draw(0.86, 1.14)
    scale = common * draw(0.93, 1.07, 3)
    turn = rotation((generator.normal(0, 5 * reach), generator.normal(0, 3 * reach), generator.normal(0, 3 * reach)))
    warp = (draw_waves(generator, 300), draw_waves(generator, 260), draw_waves(generator, 260))
    return Acquisition(
        shape, (spacing[0], spacing[1], spacing[1]), _triple(shift), _triple(scale), turn, warp, draw(3, 7) * reach
    )


@dataclass(frozen=True)
class Scene:
    """Everything one case needs to be painted."""

    view: Acquisition
    scanner: Scanner
    materials: dict[str, Material]
    solids: tuple[Structure, ...]


def draw_table() -> Structure:
    """The table's top, hollowed, below the patient's back."""
    return Structure(Offset(Column((520.0, 0.0), (660.0, 660.0)), 0, 9), ((0, "table"),))


def draw_scene(generator: np.random.Generator, size: str, wide: bool) -> Scene:
    """A patient in a scanner, drawn from ``generator``; ``size`` is ``small`` or ``full``, see ``draw_acquisition``."""
    variation = 1.3 if wide else 1.0
    scanner = draw_scanner(generator, wide)
    materials = draw_materials(generator, scanner.phase, wide)
    torso = draw_torso(generator, variation)
    bowel = draw_bowel(generator, torso.cavity, variation)
    solids = (draw_table(), *torso.wall, *bowel, *draw_organs(generator, torso))
    return Scene(draw_acquisition(generator, size, wide), scanner, materials, solids)


def paint(scene: Scene, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The scan (int16 HU) and its labels (uint8), both (slice, row, column) in RAS order."""
    view, scanner = scene.view, scene.scanner
    image = np.empty(view.shape, np.int16)
    labels = np.zeros(view.shape, np.uint8)
    offsets = generator.standard_normal(len(scene.solids))
    noise = Noise(generator, scanner, (view.spacing_mm[1], view.spacing_mm[2]))
    edge_mm = float(np.cbrt(np.prod(view.spacing_mm))) + 0.8
    thick = max(1, SLAB_VOXELS // (view.shape[1] * view.shape[2]))
    outside = _outside_field(view) if scanner.round_field else None
    for first in range(0, view.shape[0], thick):
        last = min(first + thick, view.shape[0])
        points = view.body_points(first, last)
        slab = np.full(points.shape[1:], np.float32(AIR_HU))
        reach = _Reach(points)
        for solid, offset in zip(scene.solids, offsets, strict=True):
            box = reach.box(solid, edge_mm)
            if box is not None:
                views = slab[box], labels[first:last][box], points[(slice(None), *box)]
                _paint_solid(*views, solid, scene.materials, offset, edge_mm)
        slab += np.float32(scanner.drift_hu) * scanner.drift(points) * (slab > -700)
        for index in range(first, last):
            hu = slab[index - first] + noise.next_slice((view.shape[1], view.shape[2]))
            if outside is not None:
                hu[outside] = OUTSIDE_HU
            image[index] = np.rint(np.clip(hu, OUTSIDE_HU, 3071))
    return image, labels


def _paint_solid(
    image: np.ndarray, labels: np.ndarray, points: np.ndarray, solid: Structure, materials: dict[str, Material],
    offset: float, edge_mm: float,
) -> None:  # fmt: skip
    """Paint one structure over views of the slab; ``offset`` is this structure's deviation in standard deviations."""
    depth = -solid.shape.distance_mm(points)
    edges: list[tuple[np.ndarray, str, float]] = []
    if solid.halo is not None:
        edges.append((depth + np.float32(solid.halo[0]), solid.halo[1], 0.0))
    edges += [(depth - np.float32(inset), tissue, offset) for inset, tissue in solid.layers]
    if solid.gas_above_mm is not None:
        above = points[1] - np.float32(solid.gas_above_mm)
        edges.append((np.minimum(depth - np.float32(solid.layers[-1][0]), above), "gas", 0.0))
    for inside, tissue, deviation in edges:
        share = np.clip(inside / np.float32(edge_mm) + np.float32(0.5), 0, 1)
        if not share.any():
            continue
        material = materials[tissue]
        hu = np.float32(material.hu + deviation * material.spread_hu)
        target = hu + np.float32(material.mottle_hu) * material.mottle(points)
        image += share * (target - image)
    if solid.label is not None:
        labels[depth > 0] = solid.label


class _Reach:
    """Which part of a slab a structure can touch: per slice, row and column, the range of body coordinates."""

    def __init__(self, points: np.ndarray) -> None:
        self._ranges = []
        for axis in range(3):
            others = tuple(other + 1 for other in range(3) if other != axis)
            self._ranges.append((points.min(axis=others), points.max(axis=others)))

    def box(self, solid: Structure, edge_mm: float) -> tuple[slice, slice, slice] | None:
        """Index box of the slab that holds the structure, or None where they do not meet."""
        margin = edge_mm + (solid.halo[0] if solid.halo is not None else 0.0)
        low, high = solid.shape.box_mm()
        found = []
        for lowest, highest in self._ranges:
            meets = ((highest >= (low - margin)[:, None]) & (lowest <= (high + margin)[:, None])).all(axis=0)
            hits = np.flatnonzero(meets)
            if not len(hits):
                return None
            found.append(slice(int(hits[0]), int(hits[-1]) + 1))
        return found[0], found[1], found[2]


def _outside_field(view: Acquisition) -> np.ndarray:
    """Mask (row, column) of what lies outside the inscribed circle."""
    _, rows, columns = view.axes_mm()
    radius = min(view.shape[1] * view.spacing_mm[1], view.shape[2] * view.spacing_mm[2]) / 2
    return rows[:, None] ** 2 + columns[None] ** 2 > radius**2


def _triple(values: np.ndarray) -> SpacingMm:
    return float(values[0]), float(values[1]), float(values[2])
