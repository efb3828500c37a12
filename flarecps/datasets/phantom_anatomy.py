"""The phantom's anatomy: its 13 organs (ids of ``flarecps.anatomy``), and the torso and bowel around them, unlabelled.

Body coordinates in mm, (superior, anterior, right): 0 is in front of the spine, between aorta and inferior vena
cava, at the height of the kidneys' middle. Places, sizes and their spread follow the label maps of FLARE22's training
set, with more spread, so that knowing the mean anatomy is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from flarecps.datasets.phantom_shapes import (
    Place,
    Shape,
    clipped,
    column,
    displaced,
    draw_waves,
    ellipsoid,
    grown,
    repeated,
    tube,
    union,
)

NO_GALLBLADDER = 0.2  # share of patients without one
RIGHT, LEFT = 1, -1
Draw: TypeAlias = np.random.Generator


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


# the top of the table, hollowed, below the patient's back
TABLE = Structure(grown(column((520.0, 0.0), (660.0, 660.0)), 0, 9), ((0, "table"),))


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
    tops_mm: tuple[float, float]
    wall: tuple[Structure, ...]


def draw_torso(generator: Draw, variation: float = 1.0, room: CavitySize | None = None) -> Torso:
    """A body wall with fat, muscle, spine, ribs, pelvis, lungs and heart; ``variation`` 1 is a labelled case's.

    ``room`` is what the organs need; by default it is drawn too.
    """
    draw = generator.uniform
    if room is None:
        depth, middle = draw(84, 102), draw(11, 19)
        room = CavitySize(draw(130, 148), middle + depth, middle - depth, (draw(122, 152), draw(112, 142)))
    girth, depth, middle = room.girth_mm, (room.front_mm - room.back_mm) / 2, (room.front_mm + room.back_mm) / 2
    cavity = column((middle, draw(-3, 3)), (depth, girth), 2.3)
    back = middle - 8.0  # the wall is thicker behind
    muscle = column((back, 0.0), (depth + draw(15, 22), girth + draw(9, 16)), 2.3)
    muscle = displaced(muscle, draw_waves(generator, 180), 1.5)
    fat_mm = float(np.clip(generator.lognormal(np.log(15), 0.5 * variation), 4, 45))
    fat = column((back - 0.1 * fat_mm, 0.0), (depth + 20 + fat_mm, girth + 14 + 1.1 * fat_mm), 2.2)
    fat = displaced(fat, draw_waves(generator, 220), 0.12 * fat_mm)
    right_top, left_top = room.tops_mm
    right_dome, left_dome = (right_top - 98, 15, 58), (left_top - 96, 12, -68)
    domes = union((ellipsoid(right_dome, (98, 100, 92)), ellipsoid(left_dome, (96, 95, 86))), 30)
    mediastinum = ellipsoid((185, 12, -10), (95, 48, 34))
    chest = column((middle, 0), (depth - 4, girth - 6), 2.3, floor_mm=draw(20, 60))
    lungs = clipped(chest, without=(domes, mediastinum), gap_mm=2)
    wall = [
        Structure(grown(fat, 1.8), ((0, "skin"),)),
        Structure(fat, ((0, "fat"),)),
        Structure(muscle, ((0, "muscle"),)),
        Structure(cavity, ((0, "fat"),)),
        *_back(generator),
        Structure(lungs, ((0, "lung"),), halo=(3.0, "muscle")),
        Structure(
            ellipsoid((draw(172, 186), 48, -28), (46, 40, 58), (20, 0, 0)), ((0, "myocardium"), (10, "heart blood"))
        ),
        *_bones(generator, cavity),
    ]
    return Torso(cavity, domes, room.tops_mm, tuple(wall))


def _back(generator: Draw) -> list[Structure]:
    """Psoas, quadratus lumborum and paraspinal muscles of both sides."""
    muscles = []
    psoas, back = generator.uniform(0.75, 1.25, size=2)
    for side in (LEFT, RIGHT):
        muscles += [
            tube(((45, -30, 26 * side), (-30, -24, 38 * side), (-150, 0, 62 * side)), (6, 15 * psoas, 24 * psoas)),
            tube(((40, -58, 55 * side), (-120, -52, 72 * side)), (12 * back, 15 * back)),
            tube(((250, -72, 30 * side), (-200, -74, 34 * side)), (20 * back, 27 * back)),
        ]
    return [Structure(muscle, ((0, "muscle"),)) for muscle in muscles]


def _bones(generator: Draw, cavity: Shape) -> list[Structure]:
    """Spine with discs, canal and processes, ribs, and the wings of the pelvis."""
    draw = generator.uniform
    period, start = draw(32, 38), draw(0, 35)
    bone = ((0.0, "cortical bone"), (3.5, "marrow"))
    body = column((-38, 0), (draw(17, 21), draw(20, 25)), 2.4)
    ring = column((-64, 0), (14, 17))
    rib_slope = draw(0.35, 0.6)
    beneath = (ellipsoid((-70, 190, 0), (190, 215, 400)), column((0, 0), (400, 400), ceiling_mm=10))
    margin = clipped(grown(cavity, 5, 7), without=beneath)  # ribs end along a margin that rises towards the front
    solids = [
        Structure(body, ((0, "disc"),)),
        Structure(repeated(body, period, period - 9, start), bone),
        Structure(repeated(ring, period, period - 7, start), bone),
        Structure(repeated(column((-62, 0), (5, draw(34, 42))), period, 12, start), bone),
        Structure(repeated(column((-86, 0), (15, 4)), period, 22, start - 8), bone),
        Structure(column((-64, 0), (8, 9)), ((0, "canal"),)),
        Structure(repeated(margin, period * 0.95, 12, draw(0, 30), rib_slope), bone),
    ]
    for side in (LEFT, RIGHT):
        wing = ellipsoid((-150, -25, 98 * side), (58, 62, 8), (12.0 * side, 25.0 * side, 0))
        solids.append(Structure(wing, bone))
    return solids


def draw_bowel(generator: Draw, cavity: Shape, variation: float = 1.0) -> list[Structure]:
    """Colon and loops of small bowel: tubes at random places whose HU are like the organs'."""
    solids = [_colon(generator, cavity)]
    contents = ("chyme", "chyme", "bowel tissue", "bowel tissue", "bright chyme", "oral contrast")
    for _ in range(int(generator.integers(9, 15 + round(4 * variation)))):
        upper = generator.random() < 0.35  # loops also lie among the upper organs
        low, high = ((0, -5, -110), (90, 80, 90)) if upper else ((-150, 5, -105), (-5, 85, 105))
        solids.append(_loop(generator, cavity, generator.uniform(low, high), str(generator.choice(contents))))
    for _ in range(int(generator.integers(2, 5))):  # contracted loops: solid, as bright as an organ
        centre = generator.uniform((-140, 0, -90), (60, 80, 90))
        lump = ellipsoid(centre, generator.uniform(14, 32, 3), generator.uniform(0, 180, 3))
        solids.append(Structure(clipped(lump, cavity, inset_mm=2), ((0, "lump"),), halo=(2.0, "fat")))
    return solids


def _loop(generator: Draw, cavity: Shape, start: np.ndarray, content: str) -> Structure:
    """One loop of small bowel wandering from ``start``."""
    places, heading = [start], generator.normal(size=3)
    for _ in range(int(generator.integers(2, 5))):
        heading = 0.5 * heading / np.linalg.norm(heading) + generator.normal(size=3) * 0.6
        places.append(places[-1] + heading / np.linalg.norm(heading) * generator.uniform(22, 36))
    radius = generator.uniform(9, 16)
    loop = tube(places, radius * generator.uniform(0.8, 1.2, len(places)), bends=2)
    gas = float(start[1] + generator.uniform(0.2, 1.2) * radius) if generator.random() < 0.25 else None
    layers = ((0, "gut wall"), (3, content))
    return Structure(clipped(loop, cavity, inset_mm=2), layers, gas_above_mm=gas, halo=(2.0, "fat"))


def _colon(generator: Draw, cavity: Shape) -> Structure:
    """The colon around the abdomen: faeces below, gas above, with haustra."""
    nominal = np.array(
        [(-140, 5, 92), (-75, -5, 102), (-15, 5, 98), (0, 45, 82), (-20, 72, 45), (-38, 80, 0), (-15, 74, -48),
         (25, 50, -88), (42, 15, -112), (0, -8, -112), (-70, -12, -108), (-140, 0, -88)], float
    )  # fmt: skip
    places = nominal + generator.normal(0, (9, 5, 5), nominal.shape)
    places[3:8, 0] += generator.normal(0, 22)  # the transverse colon hangs at any height
    colon = tube(places, generator.uniform(14, 24, len(places)), bends=2)
    colon = clipped(displaced(colon, draw_waves(generator, 32), 2.0), cavity, inset_mm=2)
    gas = generator.uniform(62, 95)
    return Structure(colon, ((0, "gut wall"), (3, "faeces")), gas_above_mm=gas, halo=(2.0, "fat"))


@dataclass(frozen=True)
class _OrganPose:
    """Where an organ came to lie: scaled by ``scale`` around ``anchor``, then shifted by ``shift`` (mm)."""

    anchor: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, *nominal: Sequence[float]) -> np.ndarray:
        """The nominal places in this pose, (n, 3) in mm."""
        return self.anchor + self.scale * np.subtract(nominal, self.anchor) + self.shift

    def ellipsoid(self, centre: Sequence[float], radii_mm: Place, turned_degrees: Place = (0.0, 0.0, 0.0)) -> Shape:
        """An ellipsoid of nominal centre and radii (mm) in this pose."""
        return ellipsoid(self(centre)[0], self.scale * radii_mm, turned_degrees)


def _draw_pose(generator: Draw, anchor: Place, shift_mm: float, scale: float, lifted_mm: float = 0.0) -> _OrganPose:
    """A pose with normal shifts of standard deviation ``shift_mm`` and scales of about exp(±``scale``), lifted."""
    shift = generator.normal(0, shift_mm, 3).clip(-2.2 * shift_mm, 2.2 * shift_mm)
    common = generator.normal(0, scale)
    scales = np.exp((common + generator.normal(0, scale * 0.6, 3)).clip(-2.2 * scale, 2.2 * scale))
    return _OrganPose(np.asarray(anchor), np.add(shift, (lifted_mm, 0, 0)), scales)


def draw_organs(generator: Draw, torso: Torso) -> list[Structure]:
    """The organs and the vessels between them, in the order in which they are painted (later over earlier)."""
    right_kidney, left_kidney = _kidney(generator, 2, RIGHT), _kidney(generator, 13, LEFT)
    gut = _draw_pose(generator, (0, 40, 20), 9, 0.08)  # pancreas and duodenum move together
    pancreas = _pancreas(generator, gut)
    stomach, cardia = _stomach(generator, torso)
    *branches, cava, aorta = _vessels(generator)
    return [
        *_liver(generator, torso, right_kidney.shape),
        _spleen(generator, torso),
        pancreas,
        stomach,
        *branches,
        right_kidney,
        left_kidney,
        _duodenum(generator, gut),
        *_gallbladder(generator, torso),
        *_adrenals(generator),
        cava,
        aorta,
        _esophagus(generator, cardia),
    ]


def _liver(generator: Draw, torso: Torso, kidney: Shape) -> list[Structure]:
    pose = _draw_pose(generator, (80, 20, 75), 9, 0.09)
    reach = generator.uniform(0.55, 1.35)  # of the left lobe across the midline
    top, tip = torso.tops_mm[0] + 4, generator.uniform(-38, 18)  # of the right lobe, which fills the dome
    lobes = union(
        (
            ellipsoid(
                ((top + tip) / 2, *pose((0, 2, 84))[0, 1:]),
                ((top - tip) / 2, *(pose.scale * (0, 72, 56))[1:]),
                (0, 0, generator.normal(0, 6)),
            ),
            pose.ellipsoid((82, 34, 54), (52, 58, 52)),
            pose.ellipsoid((86, 62, 48 - 42 * reach), (30, 34, 62 * reach), (0, generator.normal(-6, 8), 0)),
        ),
        24,
    )
    bed = ellipsoid(np.add(*kidney.box_mm) / 2 - (12, 22, 8), (66, 42, 38))  # the kidney's, which the liver borders on
    spine = column((-30, -6), (50, 38))
    shape = clipped(
        clipped(displaced(lobes, draw_waves(generator, 75), 2.0), torso.cavity, inset_mm=3),
        within=torso.domes,
        inset_mm=4,
        without=(kidney, bed, spine),
        gap_mm=3,
    )
    solids = [Structure(shape, ((0, "liver"),), 1, halo=(2.0, "fat"))]
    root = pose((50, 32, 40))[0]
    for _ in range(int(generator.integers(4, 7))):  # portal branches and hepatic veins
        middle = root + generator.normal((22, -3, 24), (16, 18, 16))
        end = middle + generator.normal((18, 0, 18), (18, 20, 14))
        branch = tube((root, middle, end), (5.5, 4.0, 2.0))
        solids.append(Structure(clipped(branch, shape), ((0, "portal vein"),)))
    for _ in range(int(generator.poisson(0.6))):
        cyst = ellipsoid(generator.normal(pose((70, 15, 80))[0], (25, 25, 20)), (generator.uniform(5, 16),) * 3)
        solids.append(Structure(clipped(cyst, shape), ((0, str(generator.choice(["water", "lump"]))),)))
    return solids


def _spleen(generator: Draw, torso: Torso) -> Structure:
    pose = _draw_pose(generator, (62, -25, -108), 9, 0.13, lifted_mm=0.8 * (torso.tops_mm[1] - 122))
    body = pose.ellipsoid((62, -22, -100), (47, 45, 34), (0, generator.normal(12, 8), generator.normal(0, 12)))
    hollow = pose.ellipsoid((48, 6, -54), (56, 46, 34))
    shape = clipped(
        clipped(displaced(body, draw_waves(generator, 60), 1.5), torso.cavity, (hollow,), inset_mm=3),
        within=torso.domes,
        inset_mm=4,
    )
    return Structure(shape, ((0, "spleen"),), 3, halo=(2.5, "fat"))


def _kidney(generator: Draw, label: int, side: int) -> Structure:
    low = -4 if side == RIGHT else 4
    pose = _draw_pose(generator, (low, -18, 70 * side), 9, 0.1)
    turned = (side * generator.normal(25, 10), side * generator.normal(8, 6), generator.normal(8, 6))
    bean = pose.ellipsoid((low, -18, 70 * side), (52, 31, 27), turned)
    sinus = pose.ellipsoid((low, -10, 52 * side), (19, 15, 20))
    shape = clipped(displaced(bean, draw_waves(generator, 45), 1.0), without=(sinus,))
    return Structure(shape, ((0, "renal cortex"), (8, "renal medulla")), label, halo=(5.0, "fat"))


def _stomach(generator: Draw, torso: Torso) -> tuple[Structure, Place]:
    """The stomach, and where the esophagus enters it."""
    pose = _draw_pose(generator, (65, 50, -55), 10, 0.1, lifted_mm=0.8 * (torso.tops_mm[1] - 127))
    filling = generator.uniform(0.65, 1.25)
    hang = generator.uniform(-30, 15)  # how low the greater curvature reaches
    places = pose(
        (102, 8, -62), (78, 34, -74), (50 + 0.5 * hang, 60, -64), (24 + hang, 70, -34), (20 + 0.6 * hang, 68, -4),
        (26, 60, 26),
    )  # fmt: skip
    radii = (*(r * filling for r in (34, 36, 33, 27, 20)), 11.0)
    inside = clipped(displaced(tube(places, radii), draw_waves(generator, 50), 2.0), torso.cavity, inset_mm=4)
    shape = clipped(inside, torso.domes, inset_mm=5)
    content = str(generator.choice(("water", "chyme", "food", "bright chyme"), p=(0.35, 0.25, 0.35, 0.05)))
    gas = float(places[2][1] + generator.uniform(0.0, 1.2) * radii[2])
    solid = Structure(shape, ((0, "stomach wall"), (4.5, content)), 11, gas_above_mm=gas, halo=(2.0, "fat"))
    return solid, np.add(places[0], (-12, 10, 24 * filling))


def _duodenum(generator: Draw, pose: _OrganPose) -> Structure:
    places = pose(
        (26, 58, 30), (18, 54, 46), (-8, 40, 54), (-34, 30, 46), (-44, 24, 20), (-40, 24, -10), (-22, 30, -28)
    )
    radii = generator.uniform(9, 14) * generator.uniform(0.85, 1.15, len(places))
    shape = displaced(tube(places, radii), draw_waves(generator, 40), 1.0)
    content = str(generator.choice(["water", "chyme", "bowel tissue", "bright chyme", "oral contrast"]))
    gas = float(pose((0, 48, 0))[0, 1]) if generator.random() < 0.3 else None
    return Structure(shape, ((0, "gut wall"), (4, content)), 12, gas_above_mm=gas, halo=(1.5, "fat"))


def _pancreas(generator: Draw, pose: _OrganPose) -> Structure:
    rise = generator.uniform(-8, 22)  # of the tail
    places = pose(
        (-22, 38, 30), (4, 44, 30), (20, 52, 8), (26 + 0.3 * rise, 50, -20), (32 + 0.7 * rise, 34, -50),
        (36 + rise, 12, -78),
    )  # fmt: skip
    radii = generator.uniform(0.8, 1.2) * np.array((10.0, 16.0, 10.0, 12.0, 11.5, 9.5))
    lobulated = displaced(tube(places, radii), draw_waves(generator, 28), 1.8)
    return Structure(lobulated, ((0, "pancreas"),), 4, halo=(1.5, "fat"))


def _gallbladder(generator: Draw, torso: Torso) -> list[Structure]:
    pose = _draw_pose(generator, (20, 62, 68), 9, 0.15)
    width = generator.uniform(9, 18)
    absent = generator.random() < NO_GALLBLADDER
    bag = tube(pose((38, 48, 55), (24, 60, 66), (8, 70, 76)), (4.0, width * 0.85, width))
    content = "bile" if generator.random() < 0.75 else "dense bile"
    return [] if absent else [Structure(clipped(bag, torso.cavity, inset_mm=3), ((0, "gut wall"), (2, content)), 9)]


def _adrenals(generator: Draw) -> list[Structure]:
    solids = []
    for label, side, anchor in ((7, RIGHT, (57.0, -6.0, 30.0)), (8, LEFT, (46.0, 4.0, -43.0))):
        pose = _draw_pose(generator, anchor, 6, 0.12)
        z, y, x = anchor
        medial, lateral = generator.uniform(0.7, 1.3, size=2)
        ridge = (z + 14, y + 4, x), (z, y + 3, x), (z - 12, y + 2, x + 2 * side)
        limbs = (z - 8, y - 14 * medial, x + 2 * side), (z - 12, y - 12 * lateral, x + 13 * side)
        gland = [tube(pose(*ridge), (3.6, 5.2, 4.4)), *(tube(pose(ridge[1], end), (4.8, 3.8)) for end in limbs)]
        solids.append(Structure(union(gland, 3), ((0, "adrenal"),), label, halo=(4.0, "fat")))
    return solids


def _vessels(generator: Draw) -> list[Structure]:
    """Unlabelled branches first, then the inferior vena cava (6) and the aorta (5)."""
    aorta, cava = generator.normal(0, 3, (2, 3))

    def shifted(places: Sequence[tuple[float, float, float]], by: np.ndarray) -> np.ndarray:
        return np.add(places, by * (0, 1, 1)) + generator.normal(0, 1.8, (len(places), 3))

    end = generator.uniform(-85, -55)  # where both fork
    width = generator.uniform(9.5, 14.5)
    places = [(320, -14, -22), (160, -12, -26), (100, -4, -20), (40, 0, -15), (-20, 4, -14), (end, 2, -8)]
    aorta_places = shifted(places, aorta)
    aorta_radii = width * np.array((1.15, 1.12, 1.0, 0.95, 0.85, 0.8))
    cava_radii = generator.uniform(9, 14) * np.array((1.15, 1.15, 1.0, 0.95, 0.95))
    cava_places = shifted([(128, 32, 20), (95, 24, 24), (50, 14, 20), (0, 7, 17), (end, 2, 15)], cava)
    branches = [
        tube(((-42, 40, 8), (12, 40, 10), (36, 36, 28), (52, 34, 42)), (5.5, 7.5, 7.5, 6.5)),  # portal vein
        tube(((14, 40, 8), (30, 26, -44), (48, -2, -88)), (6.0, 4.5, 4.0)),  # splenic vein
        tube((aorta_places[3], (8, 24, -12), (-22, 34, -4), (-70, 40, 4)), (4.5, 4.5, 4.0, 3.0)),  # mesenteric artery
        tube((cava_places[3], (-2, -6, 46)), (5.0, 4.0)),
        tube((cava_places[3], (6, 16, -10), (4, -4, -50)), (5.0, 4.5, 4.0)),
        *(
            tube((trunk[-1], (end - 40, -2, 34 * side), (end - 90, 8, 62 * side)), (8.0, 7.0, 6.0))
            for trunk in (aorta_places, cava_places)
            for side in (LEFT, RIGHT)
        ),
    ]
    tissues = ["portal vein", "portal vein", "aorta", "cava", "cava", "aorta", "aorta", "cava", "cava"]
    return [
        *(Structure(branch, ((0, tissue),)) for branch, tissue in zip(branches, tissues, strict=True)),
        Structure(tube(cava_places, cava_radii), ((0, "cava"),), 6, halo=(1.0, "fat")),
        Structure(tube(aorta_places, aorta_radii), ((0, "aorta"),), 5, halo=(1.5, "fat")),
    ]


def _esophagus(generator: Draw, cardia: Place) -> Structure:
    hiatus = (generator.normal(112, 5), generator.normal(14, 3), generator.normal(-14, 3))
    width = generator.uniform(7, 11)
    places = ((320, -2, 2), (190, 2, -4), (150, 6, -8), hiatus, cardia)
    shape = tube(places, (width * 0.9, width * 0.9, width, width, width))
    gas = hiatus[1] + 2.0 if generator.random() < 0.3 else None
    return Structure(shape, ((0, "esophagus"), (4.5, "esophagus lumen")), 10, gas_above_mm=gas, halo=(1.5, "fat"))
