"""A phantom's scan: what its tissues measure in HU, how the body lies in the grid, and the painting, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from flarecps.datasets.phantom_anatomy import TABLE, Structure, draw_bowel, draw_organs, draw_torso
from flarecps.datasets.phantom_shapes import Waves, draw_waves, rotation
from flarecps.typing import SpacingMm, Triple

AIR_HU = -1000.0
OUTSIDE_HU = -1024  # outside the reconstructed field
SLAB_VOXELS = 2_000_000  # painted at a time: bounds the memory
PHASES = ("native", "arterial", "portal venous", "late")

# Mean HU in the four phases; standard deviation between structures of one scan (HU); mottle within (HU, mm).
# The ranges overlap on purpose, between organs and with muscle and bowel: intensity alone must not tell them apart.
_TISSUES: dict[str, tuple[tuple[float, float, float, float], float, float, float]] = {
    "skin": ((20, 25, 30, 30), 0, 4, 20),
    "fat": ((-100, -100, -98, -98), 0, 7, 30),
    "muscle": ((52, 58, 66, 64), 3, 9, 14),
    "lung": ((-850, -840, -835, -840), 0, 35, 18),
    "myocardium": ((45, 90, 105, 90), 0, 6, 20),
    "heart blood": ((42, 230, 150, 120), 0, 5, 20),
    "cortical bone": ((420, 420, 430, 430), 30, 60, 15),
    "marrow": ((150, 155, 165, 165), 15, 40, 10),
    "disc": ((75, 75, 80, 80), 8, 10, 14),
    "canal": ((25, 30, 30, 30), 0, 5, 15),
    "liver": ((56, 68, 105, 94), 0, 6, 22),
    "portal vein": ((42, 85, 150, 122), 3, 4, 20),
    "spleen": ((48, 112, 126, 106), 0, 5, 25),
    "renal cortex": ((34, 168, 182, 150), 3, 6, 12),
    "renal medulla": ((30, 90, 162, 158), 3, 10, 16),
    "pancreas": ((38, 88, 92, 78), 0, 8, 12),
    "aorta": ((42, 260, 142, 118), 0, 4, 20),
    "cava": ((42, 66, 128, 116), 0, 6, 20),
    "adrenal": ((30, 66, 74, 62), 3, 5, 12),
    "bile": ((10, 10, 12, 12), 3, 4, 25),
    "dense bile": ((38, 38, 40, 40), 5, 6, 15),
    "esophagus": ((40, 58, 68, 62), 0, 7, 12),
    "esophagus lumen": ((30, 40, 48, 45), 8, 8, 12),
    "stomach wall": ((42, 72, 86, 78), 5, 7, 14),
    "gut wall": ((42, 76, 90, 80), 14, 8, 14),
    "water": ((12, 12, 14, 14), 4, 4, 25),
    "chyme": ((34, 36, 38, 38), 12, 12, 14),
    "food": ((48, 50, 52, 52), 14, 26, 14),
    "bright chyme": ((80, 84, 90, 86), 22, 16, 14),
    "oral contrast": ((190, 190, 190, 190), 55, 22, 20),
    "bowel tissue": ((44, 78, 100, 90), 18, 9, 14),
    "lump": ((46, 84, 106, 94), 20, 9, 20),
    "faeces": ((-10, -10, -5, -5), 20, 70, 13),
    "gas": ((-980, -980, -980, -980), 0, 5, 20),
    "table": ((-120, -120, -120, -120), 60, 20, 60),
}


@dataclass(frozen=True)
class Material:
    """One tissue of one scan: mean HU, its spread between structures (HU), and its mottle (HU, field)."""

    hu: float
    spread_hu: float
    mottle_hu: float
    mottle: Waves


@dataclass(frozen=True)
class Scanner:
    """How one scan was taken: its noise, drift and calibration, and the contrast phase."""

    phase: str
    noise_hu: float  # standard deviation of the noise
    grain_mm: float  # correlation length of the noise within a slice
    carry: float  # correlation of the noise between neighbouring slices, 0-1
    drift_hu: float  # standard deviation of the slow drift across the field
    drift: Waves
    round_field: bool  # nothing is reconstructed outside the circle


def draw_scanner(generator: np.random.Generator, wide: bool) -> Scanner:
    """A scanner: ``wide`` also has native scans, more noise and more drift, as other centres do."""
    shares = (0.2, 0.25, 0.3, 0.25) if wide else (0.0, 0.15, 0.6, 0.25)
    return Scanner(
        phase=str(generator.choice(PHASES, p=shares)),
        noise_hu=float(generator.uniform(8, 28) if wide else generator.uniform(8, 16)),
        grain_mm=float(generator.uniform(0.5, 4.5) if wide else generator.uniform(1.5, 3.5)),
        carry=float(generator.uniform(0.0, 0.5)),
        drift_hu=float(generator.uniform(0, 11) if wide else generator.uniform(0, 6)),
        drift=draw_waves(generator, 450, 4),
        round_field=bool(generator.random() < 0.35),
    )


def draw_materials(generator: np.random.Generator, phase: str, wide: bool) -> dict[str, Material]:
    """The tissues of one scan in a phase; timing, dose and fat differ between patients."""
    column = PHASES.index(phase)
    uptake = generator.uniform(0.6, 1.3) if wide else generator.uniform(0.85, 1.15)
    spread_of_uptake = 0.12 if wide else 0.06
    calibration = generator.normal(0, 6 if wide else 3)
    steatosis = generator.uniform(5, 40) if generator.random() < 0.3 else 0.0
    materials = {}
    for tissue, (means, spread, mottle, wavelength) in _TISSUES.items():
        native, enhanced = means[0], means[column]
        hu = native + (enhanced - native) * uptake * generator.uniform(1 - spread_of_uptake, 1 + spread_of_uptake)
        if tissue not in ("fat", "lung", "gas", "skin"):
            hu += generator.normal(0, 4) + calibration
        if tissue == "liver":
            hu -= steatosis
        materials[tissue] = Material(hu, spread, mottle, draw_waves(generator, wavelength))
    return materials


def noise_slices(
    generator: np.random.Generator, scanner: Scanner, in_plane_mm: tuple[float, float], shape: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Correlated noise in HU, float32, one slice (row, column) after the other."""
    sigma_voxels = tuple(scanner.grain_mm / spacing for spacing in in_plane_mm)
    before: np.ndarray | None = None
    while True:
        white = generator.standard_normal(shape, np.float32)
        fresh = ndimage.gaussian_filter(white, sigma_voxels, mode="wrap")
        fresh /= max(float(fresh.std()), 1e-6)
        if before is not None:
            fresh = scanner.carry * before + np.sqrt(1 - scanner.carry**2) * fresh
        before = fresh.astype(np.float32)
        yield before * np.float32(scanner.noise_hu)


@dataclass(frozen=True)
class Acquisition:
    """The grid of one scan and how the body lies in it.

    A grid point w (mm from the field's centre) shows the body at ``turn @ (w - shift) / scale`` plus a smooth warp.
    """

    shape: Triple
    spacing_mm: SpacingMm
    shift_mm: np.ndarray
    scale: np.ndarray
    turn: np.ndarray  # 3×3
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
    return Acquisition(shape, (spacing[0], spacing[1], spacing[1]), shift, scale, turn, warp, draw(3, 7) * reach)


@dataclass(frozen=True)
class Scene:
    """Everything one case needs to be painted."""

    view: Acquisition
    scanner: Scanner
    materials: dict[str, Material]
    solids: tuple[Structure, ...]


def draw_scene(generator: np.random.Generator, size: str, wide: bool) -> Scene:
    """A patient in a scanner, drawn from ``generator``; ``size`` is ``small`` or ``full``, see ``draw_acquisition``."""
    variation = 1.3 if wide else 1.0
    scanner = draw_scanner(generator, wide)
    materials = draw_materials(generator, scanner.phase, wide)
    torso = draw_torso(generator, variation)
    bowel = draw_bowel(generator, torso.cavity, variation)
    solids = (TABLE, *torso.wall, *bowel, *draw_organs(generator, torso))
    return Scene(draw_acquisition(generator, size, wide), scanner, materials, solids)


def paint(scene: Scene, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The scan (int16 HU) and its labels (uint8), both (slice, row, column) in RAS order."""
    view, scanner = scene.view, scene.scanner
    image = np.empty(view.shape, np.int16)
    labels = np.zeros(view.shape, np.uint8)
    offsets = generator.standard_normal(len(scene.solids))
    noise = noise_slices(generator, scanner, view.spacing_mm[1:], view.shape[1:])
    edge_mm = float(np.cbrt(np.prod(view.spacing_mm))) + 0.8
    thick = max(1, SLAB_VOXELS // (view.shape[1] * view.shape[2]))
    outside = None  # mask (row, column) of what lies outside the inscribed circle
    if scanner.round_field:
        _, rows, columns = view.axes_mm()
        radius = min(view.shape[1] * view.spacing_mm[1], view.shape[2] * view.spacing_mm[2]) / 2
        outside = rows[:, None] ** 2 + columns[None] ** 2 > radius**2
    for first in range(0, view.shape[0], thick):
        last = min(first + thick, view.shape[0])
        points = view.body_points(first, last)
        slab = np.full(points.shape[1:], np.float32(AIR_HU))
        ranges = [(points.min(axis=others), points.max(axis=others)) for others in ((2, 3), (1, 3), (1, 2))]
        for solid, offset in zip(scene.solids, offsets, strict=True):
            box = _touched(ranges, solid, edge_mm)
            if box is not None:
                views = slab[box], labels[first:last][box], points[(slice(None), *box)]
                _paint_solid(*views, solid, scene.materials, offset, edge_mm)
        slab += np.float32(scanner.drift_hu) * scanner.drift(points) * (slab > -700)
        for index in range(first, last):
            hu = slab[index - first] + next(noise)
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


def _touched(
    ranges: list[tuple[np.ndarray, np.ndarray]], solid: Structure, edge_mm: float
) -> tuple[slice, slice, slice] | None:
    """The index box of a slab that a structure can touch, or None where they do not meet.

    ``ranges``: per slice, row and column the lowest and highest body coordinates, each (3, n).
    """
    margin = edge_mm + (solid.halo[0] if solid.halo is not None else 0.0)
    low, high = solid.shape.box_mm
    found = []
    for lowest, highest in ranges:
        meets = ((highest >= (low - margin)[:, None]) & (lowest <= (high + margin)[:, None])).all(axis=0)
        hits = np.flatnonzero(meets)
        if not len(hits):
            return None
        found.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return found[0], found[1], found[2]
