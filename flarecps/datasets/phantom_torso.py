"""The phantom's torso: what lies around the 13 organs, none of it labelled.

Body coordinates in mm, (superior, anterior, right): 0 is in front of the spine, between aorta and inferior vena
cava, at the height of the kidneys' middle. Distances between structures follow the mean of real label maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.datasets.phantom_shapes import (
    Clipped,
    Column,
    Displaced,
    Ellipsoid,
    Offset,
    Place,
    Repeated,
    Shape,
    Tube,
    Union,
    draw_waves,
)


@dataclass(frozen=True)
class Structure:
    """One painted structure: its shape, the tissues from its surface inwards, and its label if it is an organ.

    ``layers`` are (depth in mm, tissue); ``gas_above_mm`` is the anterior level above which the innermost layer is
    gas (the patient lies on the back); ``halo`` (mm, tissue) is painted around first, as fat planes are.
    """

    shape: Shape
    layers: tuple[tuple[float, str], ...]
    label: int | None = None
    gas_above_mm: float | None = None
    halo: tuple[float, str] | None = None


@dataclass(frozen=True)
class CavitySize:
    """The room that the abdomen's cavity must offer, in body coordinates (mm)."""

    girth_mm: float  # from the midline to either side
    front_mm: float
    back_mm: float
    tops_mm: tuple[float, float]  # height of the diaphragm's domes, right and left


@dataclass(frozen=True)
class Torso:
    """The walls that organs must respect, and what is painted before and after the bowel."""

    cavity: Shape
    domes: Shape  # below the diaphragm
    room: CavitySize
    wall: tuple[Structure, ...]


def draw_cavity_size(generator: np.random.Generator) -> CavitySize:
    """The room in a synthetic patient."""
    draw = generator.uniform
    depth, middle = draw(84, 102), draw(11, 19)
    return CavitySize(draw(130, 148), middle + depth, middle - depth, (draw(122, 152), draw(112, 142)))


def draw_torso(generator: np.random.Generator, variation: float = 1.0, room: CavitySize | None = None) -> Torso:
    """A body wall with fat, muscle, spine, ribs, pelvis, lungs and heart; ``variation`` 1 is a labelled case's.

    ``room`` is what the organs need; by default it is drawn too.
    """
    draw = generator.uniform
    room = room or draw_cavity_size(generator)
    girth, depth, middle = room.girth_mm, (room.front_mm - room.back_mm) / 2, (room.front_mm + room.back_mm) / 2
    cavity = Column((middle, draw(-3, 3)), (depth, girth), 2.3)
    back = middle - 8.0  # the wall is thicker behind
    muscle = Displaced(
        Column((back, 0.0), (depth + draw(15, 22), girth + draw(9, 16)), 2.3), draw_waves(generator, 180), 1.5
    )
    fat_mm = float(np.clip(generator.lognormal(np.log(15), 0.5 * variation), 4, 45))
    fat = Displaced(
        Column((back - 0.1 * fat_mm, 0.0), (depth + 20 + fat_mm, girth + 14 + 1.1 * fat_mm), 2.2),
        draw_waves(generator, 220),
        0.12 * fat_mm,
    )
    right_top, left_top = room.tops_mm
    domes = Union(
        (
            Ellipsoid((right_top - 98, 15, 58), (98, 100, 92)),
            Ellipsoid((left_top - 96, 12, -68), (96, 95, 86)),
        ),
        30,
    )
    mediastinum = Ellipsoid((185, 12, -10), (95, 48, 34))
    lungs = Clipped(
        Column((middle, 0), (depth - 4, girth - 6), 2.3, floor_mm=draw(20, 60)), without=(domes, mediastinum), gap_mm=2
    )
    wall = [
        Structure(Offset(fat, 1.8), ((0, "skin"),)),
        Structure(fat, ((0, "fat"),)),
        Structure(muscle, ((0, "muscle"),)),
        Structure(cavity, ((0, "fat"),)),
        *_back(generator),
        Structure(lungs, ((0, "lung"),), halo=(3.0, "muscle")),
        Structure(
            Ellipsoid((draw(172, 186), 48, -28), (46, 40, 58), (20, 0, 0)), ((0, "myocardium"), (10, "heart blood"))
        ),
        *_bones(generator, cavity),
    ]
    return Torso(cavity, domes, room, tuple(wall))


def _back(generator: np.random.Generator) -> list[Structure]:
    """Psoas, quadratus lumborum and paraspinal muscles of both sides."""
    found = []
    psoas, back = generator.uniform(0.75, 1.25, size=2)
    for side in (-1, 1):
        muscles: tuple[Shape, ...] = (
            Tube(((45, -30, 26 * side), (-30, -24, 38 * side), (-150, 0, 62 * side)), (6, 15 * psoas, 24 * psoas)),
            Tube(((40, -58, 55 * side), (-120, -52, 72 * side)), (12 * back, 15 * back)),
            Tube(((250, -72, 30 * side), (-200, -74, 34 * side)), (20 * back, 27 * back)),
        )
        found += [Structure(muscle, ((0, "muscle"),)) for muscle in muscles]
    return found


def _bones(generator: np.random.Generator, cavity: Shape) -> list[Structure]:
    """Spine with discs, canal and processes, ribs, and the wings of the pelvis."""
    draw = generator.uniform
    period, start = draw(32, 38), draw(0, 35)
    bone = ((0.0, "cortical bone"), (3.5, "marrow"))
    body = Column((-38, 0), (draw(17, 21), draw(20, 25)), 2.4)
    ring = Column((-64, 0), (14, 17))
    rib_slope = draw(0.35, 0.6)
    beneath = (Ellipsoid((-70, 190, 0), (190, 215, 400)), Column((0, 0), (400, 400), ceiling_mm=10))
    margin = Clipped(Offset(cavity, 5, 7), without=beneath)  # ribs end along a margin that rises towards the front
    solids = [
        Structure(body, ((0, "disc"),)),
        Structure(Repeated(body, period, period - 9, start), bone),
        Structure(Repeated(ring, period, period - 7, start), bone),
        Structure(Repeated(Column((-62, 0), (5, draw(34, 42))), period, 12, start), bone),
        Structure(Repeated(Column((-86, 0), (15, 4)), period, 22, start - 8), bone),
        Structure(Column((-64, 0), (8, 9)), ((0, "canal"),)),
        Structure(Repeated(margin, period * 0.95, 12, draw(0, 30), rib_slope), bone),
    ]
    for side in (-1, 1):
        wing = Ellipsoid((-150, -25, 98 * side), (58, 62, 8), (12.0 * side, 25.0 * side, 0))
        solids.append(Structure(wing, bone))
    return solids


def draw_bowel(generator: np.random.Generator, cavity: Shape, variation: float = 1.0) -> list[Structure]:
    """Colon and loops of small bowel: tubes at random places whose HU are like the organs'."""
    solids = [_colon(generator, cavity)]
    contents = ("chyme", "chyme", "bowel tissue", "bowel tissue", "bright chyme", "oral contrast")
    for _ in range(int(generator.integers(9, 15 + round(4 * variation)))):
        upper = generator.random() < 0.35  # loops also lie among the upper organs
        low, high = ((0, -5, -110), (90, 80, 90)) if upper else ((-150, 5, -105), (-5, 85, 105))
        solids.append(_loop(generator, cavity, generator.uniform(low, high), str(generator.choice(contents))))
    for _ in range(int(generator.integers(2, 5))):  # contracted loops: solid, as bright as an organ
        centre = generator.uniform((-140, 0, -90), (60, 80, 90))
        lump = Ellipsoid(_place(centre), _place(generator.uniform(14, 32, 3)), _place(generator.uniform(0, 180, 3)))
        solids.append(Structure(Clipped(lump, cavity, inset_mm=2), ((0, "lump"),), halo=(2.0, "fat")))
    return solids


def _loop(generator: np.random.Generator, cavity: Shape, start: np.ndarray, content: str) -> Structure:
    """One loop of small bowel wandering from ``start``."""
    places, heading = [start], generator.normal(size=3)
    for _ in range(int(generator.integers(2, 5))):
        heading = 0.5 * heading / np.linalg.norm(heading) + generator.normal(size=3) * 0.6
        places.append(places[-1] + heading / np.linalg.norm(heading) * generator.uniform(22, 36))
    radius = generator.uniform(9, 16)
    tube = Tube(tuple(_place(p) for p in places), tuple(radius * generator.uniform(0.8, 1.2, len(places))), bends=2)
    gas = float(start[1] + generator.uniform(0.2, 1.2) * radius) if generator.random() < 0.25 else None
    return Structure(
        Clipped(tube, cavity, inset_mm=2), ((0, "gut wall"), (3, content)), gas_above_mm=gas, halo=(2.0, "fat")
    )


def _colon(generator: np.random.Generator, cavity: Shape) -> Structure:
    """The colon around the abdomen: faeces below, gas above, with haustra."""
    nominal = np.array(
        [(-140, 5, 92), (-75, -5, 102), (-15, 5, 98), (0, 45, 82), (-20, 72, 45), (-38, 80, 0), (-15, 74, -48),
         (25, 50, -88), (42, 15, -112), (0, -8, -112), (-70, -12, -108), (-140, 0, -88)], float
    )  # fmt: skip
    places = nominal + generator.normal(0, (9, 5, 5), nominal.shape)
    places[3:8, 0] += generator.normal(0, 22)  # the transverse colon hangs at any height
    radii = generator.uniform(14, 24, len(places))
    tube = Displaced(Tube(tuple(_place(p) for p in places), tuple(radii), bends=2), draw_waves(generator, 32), 2.0)
    gas = generator.uniform(62, 95)
    return Structure(
        Clipped(tube, cavity, inset_mm=2), ((0, "gut wall"), (3, "faeces")), gas_above_mm=gas, halo=(2.0, "fat")
    )


def _place(values: np.ndarray) -> Place:
    return float(values[0]), float(values[1]), float(values[2])
