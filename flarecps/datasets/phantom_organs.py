"""The phantom's 13 organs (ids of ``flarecps.anatomy``), drawn anew for every case.

Coordinates as in ``phantom_torso``. Places, sizes and their spread follow the label maps of FLARE22's training set,
with more spread, so that knowing the mean anatomy is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flarecps.datasets.phantom_shapes import (
    Clipped,
    Column,
    Displaced,
    Ellipsoid,
    Place,
    Shape,
    Tube,
    Union,
    draw_waves,
)
from flarecps.datasets.phantom_torso import Structure, Torso

NO_GALLBLADDER = 0.2  # share of patients without one
RIGHT, LEFT = 1, -1

Draw = np.random.Generator


@dataclass(frozen=True)
class OrganPose:
    """Where an organ came to lie: scaled by ``scale`` around ``anchor``, then shifted by ``shift`` (mm)."""

    anchor: Place
    shift: Place
    scale: Place

    def __call__(self, superior: float, anterior: float, right: float) -> Place:
        """The nominal place (mm) in this pose."""
        place = [
            a + s * (value - a) + d
            for value, a, s, d in zip((superior, anterior, right), self.anchor, self.scale, self.shift, strict=True)
        ]
        return place[0], place[1], place[2]

    def radii(self, superior: float, anterior: float, right: float) -> Place:
        """Nominal radii (mm) in this pose."""
        return superior * self.scale[0], anterior * self.scale[1], right * self.scale[2]


def draw_organ_pose(generator: Draw, anchor: Place, shift_mm: float, scale: float, lifted_mm: float = 0.0) -> OrganPose:
    """A pose with normal shifts of standard deviation ``shift_mm`` and scales of about exp(±``scale``), lifted."""
    shift = generator.normal(0, shift_mm, 3).clip(-2.2 * shift_mm, 2.2 * shift_mm)
    common = generator.normal(0, scale)
    scales = np.exp((common + generator.normal(0, scale * 0.6, 3)).clip(-2.2 * scale, 2.2 * scale))
    return OrganPose(anchor, (shift[0] + lifted_mm, shift[1], shift[2]), (scales[0], scales[1], scales[2]))


def draw_organs(generator: Draw, torso: Torso) -> list[Structure]:
    """The organs and the vessels between them, in the order in which they are painted (later over earlier)."""
    right_kidney = _kidney(generator, 2, RIGHT)
    left_kidney = _kidney(generator, 13, LEFT)
    gut = draw_organ_pose(generator, (0, 40, 20), 9, 0.08)  # pancreas and duodenum move together
    pancreas = _pancreas(generator, gut)
    stomach, cardia = _stomach(generator, torso)
    drop_aorta, drop_cava = generator.normal(0, 3, 3), generator.normal(0, 3, 3)
    vessels = _vessels(generator, drop_aorta, drop_cava)
    return [
        *_liver(generator, torso, right_kidney.shape),
        *_spleen(generator, torso),
        pancreas,
        *stomach,
        *vessels[:-2],
        right_kidney,
        left_kidney,
        _duodenum(generator, gut),
        *_gallbladder(generator, torso),
        *_adrenals(generator),
        *vessels[-2:],
        _esophagus(generator, torso, cardia),
    ]


def _liver(generator: Draw, torso: Torso, kidney: Shape) -> list[Structure]:
    pose = draw_organ_pose(generator, (80, 20, 75), 9, 0.09)
    reach = generator.uniform(0.55, 1.35)  # of the left lobe across the midline
    top, tip = torso.room.tops_mm[0] + 4, generator.uniform(-38, 18)  # of the right lobe, which fills the dome
    lobes = Union(
        (
            Ellipsoid(
                ((top + tip) / 2, *pose(0, 2, 84)[1:]), ((top - tip) / 2, *pose.radii(0, 72, 56)[1:]),
                (0, 0, generator.normal(0, 6)),
            ),
            Ellipsoid(pose(82, 34, 54), pose.radii(52, 58, 52)),
            Ellipsoid(pose(86, 62, 48 - 42 * reach), pose.radii(30, 34, 62 * reach), (0, generator.normal(-6, 8), 0)),
        ),
        24,
    )  # fmt: skip
    low, high = kidney.box_mm()
    z, y, x = (low + high) / 2
    behind = Ellipsoid((z - 12, y - 22, x - 8), (66, 42, 38))  # the kidney's bed, which the liver only borders on
    spine = Column((-30, -6), (50, 38))
    shape = Clipped(
        Clipped(Displaced(lobes, draw_waves(generator, 75), 2.0), torso.cavity, inset_mm=3),
        within=torso.domes,
        inset_mm=4,
        without=(kidney, behind, spine),
        gap_mm=3,
    )
    solids = [Structure(shape, ((0, "liver"),), 1, halo=(2.0, "fat"))]
    root = np.array(pose(50, 32, 40))
    for _ in range(int(generator.integers(4, 7))):  # portal branches and hepatic veins
        middle = root + generator.normal((22, -3, 24), (16, 18, 16))
        end = middle + generator.normal((18, 0, 18), (18, 20, 14))
        branch = Tube((_place(root), _place(middle), _place(end)), (5.5, 4.0, 2.0))
        solids.append(Structure(Clipped(branch, shape), ((0, "portal vein"),)))
    for _ in range(int(generator.poisson(0.6))):
        cyst = Ellipsoid(_place(generator.normal(pose(70, 15, 80), (25, 25, 20))), (generator.uniform(5, 16),) * 3)
        solids.append(Structure(Clipped(cyst, shape), ((0, str(generator.choice(["water", "lump"]))),)))
    return solids


def _spleen(generator: Draw, torso: Torso) -> list[Structure]:
    pose = draw_organ_pose(generator, (62, -25, -108), 9, 0.13, lifted_mm=0.8 * (torso.room.tops_mm[1] - 122))
    body = Ellipsoid(pose(62, -22, -100), pose.radii(47, 45, 34), (0, generator.normal(12, 8), generator.normal(0, 12)))
    hollow = Ellipsoid(pose(48, 6, -54), pose.radii(56, 46, 34))
    shape = Clipped(
        Clipped(Displaced(body, draw_waves(generator, 60), 1.5), torso.cavity, (hollow,), inset_mm=3),
        within=torso.domes,
        inset_mm=4,
    )
    return [Structure(shape, ((0, "spleen"),), 3, halo=(2.5, "fat"))]


def _kidney(generator: Draw, label: int, side: int) -> Structure:
    low = -4 if side == RIGHT else 4
    pose = draw_organ_pose(generator, (low, -18, 70 * side), 9, 0.1)
    turned = (side * generator.normal(25, 10), side * generator.normal(8, 6), generator.normal(8, 6))
    bean = Ellipsoid(pose(low, -18, 70 * side), pose.radii(52, 31, 27), turned)
    sinus = Ellipsoid(pose(low, -10, 52 * side), pose.radii(19, 15, 20))
    shape = Clipped(Displaced(bean, draw_waves(generator, 45), 1.0), without=(sinus,))
    return Structure(shape, ((0, "renal cortex"), (8, "renal medulla")), label, halo=(5.0, "fat"))


def _stomach(generator: Draw, torso: Torso) -> tuple[list[Structure], Place]:
    pose = draw_organ_pose(generator, (65, 50, -55), 10, 0.1, lifted_mm=0.8 * (torso.room.tops_mm[1] - 127))
    filling = generator.uniform(0.65, 1.25)
    hang = generator.uniform(-30, 15)  # how low the greater curvature reaches
    fundus = pose(102, 8, -62)
    places = (
        fundus, pose(78, 34, -74), pose(50 + 0.5 * hang, 60, -64), pose(24 + hang, 70, -34),
        pose(20 + 0.6 * hang, 68, -4), pose(26, 60, 26),
    )  # fmt: skip
    radii = (*(float(r * filling) for r in (34, 36, 33, 27, 20)), 11.0)
    inside = Clipped(Displaced(Tube(places, radii), draw_waves(generator, 50), 2.0), torso.cavity, inset_mm=4)
    shape = Clipped(inside, torso.domes, inset_mm=5)
    contents = ("water", "chyme", "food", "bright chyme")
    content = str(generator.choice(contents, p=(0.35, 0.25, 0.35, 0.05)))
    gas = float(places[2][1] + generator.uniform(0.0, 1.2) * radii[2])
    solid = Structure(shape, ((0, "stomach wall"), (4.5, content)), 11, gas_above_mm=gas, halo=(2.0, "fat"))
    return [solid], (fundus[0] - 12, fundus[1] + 10, fundus[2] + 24 * filling)


def _duodenum(generator: Draw, pose: OrganPose) -> Structure:
    places = (
        pose(26, 58, 30), pose(18, 54, 46), pose(-8, 40, 54), pose(-34, 30, 46), pose(-44, 24, 20),
        pose(-40, 24, -10), pose(-22, 30, -28),
    )  # fmt: skip
    radii = tuple(generator.uniform(9, 14) * generator.uniform(0.85, 1.15, len(places)))
    tube = Displaced(Tube(places, radii), draw_waves(generator, 40), 1.0)
    content = str(generator.choice(["water", "chyme", "bowel tissue", "bright chyme", "oral contrast"]))
    gas = float(pose(0, 48, 0)[1]) if generator.random() < 0.3 else None
    return Structure(tube, ((0, "gut wall"), (4, content)), 12, gas_above_mm=gas, halo=(1.5, "fat"))


def _pancreas(generator: Draw, pose: OrganPose) -> Structure:
    rise = generator.uniform(-8, 22)  # of the tail
    places = (
        pose(-22, 38, 30), pose(4, 44, 30), pose(20, 52, 8), pose(26 + 0.3 * rise, 50, -20),
        pose(32 + 0.7 * rise, 34, -50), pose(36 + rise, 12, -78),
    )  # fmt: skip
    radii = tuple(generator.uniform(0.8, 1.2) * np.array((10.0, 16.0, 10.0, 12.0, 11.5, 9.5)))
    lobulated = Displaced(Tube(places, radii), draw_waves(generator, 28), 1.8)
    return Structure(lobulated, ((0, "pancreas"),), 4, halo=(1.5, "fat"))


def _gallbladder(generator: Draw, torso: Torso) -> list[Structure]:
    pose = draw_organ_pose(generator, (20, 62, 68), 9, 0.15)
    width = generator.uniform(9, 18)
    absent = generator.random() < NO_GALLBLADDER
    bag = Tube((pose(38, 48, 55), pose(24, 60, 66), pose(8, 70, 76)), (4.0, width * 0.85, width))
    content = "bile" if generator.random() < 0.75 else "dense bile"
    return [] if absent else [Structure(Clipped(bag, torso.cavity, inset_mm=3), ((0, "gut wall"), (2, content)), 9)]


def _adrenals(generator: Draw) -> list[Structure]:
    solids = []
    for label, side, anchor in ((7, RIGHT, (57.0, -6.0, 30.0)), (8, LEFT, (46.0, 4.0, -43.0))):
        pose = draw_organ_pose(generator, anchor, 6, 0.12)
        z, y, x = anchor
        medial, lateral = generator.uniform(0.7, 1.3, size=2)
        gland = Union(
            (
                Tube((pose(z + 14, y + 4, x), pose(z, y + 3, x), pose(z - 12, y + 2, x + 2 * side)), (3.6, 5.2, 4.4)),
                Tube((pose(z, y + 3, x), pose(z - 8, y - 14 * medial, x + 2 * side)), (4.8, 3.8)),
                Tube((pose(z, y + 3, x), pose(z - 12, y - 12 * lateral, x + 13 * side)), (4.8, 3.8)),
            ),
            3,
        )
        solids.append(Structure(gland, ((0, "adrenal"),), label, halo=(4.0, "fat")))
    return solids


def _vessels(generator: Draw, aorta: np.ndarray, cava: np.ndarray) -> list[Structure]:
    """Unlabelled branches first, then the inferior vena cava (6) and the aorta (5)."""

    def shifted(places: list[Place], by: np.ndarray) -> tuple[Place, ...]:
        wander = generator.normal(0, 1.8, (len(places), 3))
        return tuple(_place(np.add(p, by * (0, 1, 1)) + w) for p, w in zip(places, wander, strict=True))

    end = generator.uniform(-85, -55)  # where both fork
    width = generator.uniform(9.5, 14.5)
    aorta_places = shifted(
        [(320, -14, -22), (160, -12, -26), (100, -4, -20), (40, 0, -15), (-20, 4, -14), (end, 2, -8)], aorta
    )
    aorta_radii = tuple(width * k for k in (1.15, 1.12, 1.0, 0.95, 0.85, 0.8))
    cava_width = generator.uniform(9, 14)
    cava_places = shifted([(128, 32, 20), (95, 24, 24), (50, 14, 20), (0, 7, 17), (end, 2, 15)], cava)
    branches = [
        Tube(((-42, 40, 8), (12, 40, 10), (36, 36, 28), (52, 34, 42)), (5.5, 7.5, 7.5, 6.5)),  # portal vein
        Tube(((14, 40, 8), (30, 26, -44), (48, -2, -88)), (6.0, 4.5, 4.0)),  # splenic vein
        Tube((aorta_places[3], (8, 24, -12), (-22, 34, -4), (-70, 40, 4)), (4.5, 4.5, 4.0, 3.0)),  # mesenteric artery
        Tube((cava_places[3], (-2, -6, 46)), (5.0, 4.0)),
        Tube((cava_places[3], (6, 16, -10), (4, -4, -50)), (5.0, 4.5, 4.0)),
        *(
            Tube((trunk[-1], (end - 40, -2, 34 * side), (end - 90, 8, 62 * side)), (8.0, 7.0, 6.0))
            for trunk in (aorta_places, cava_places)
            for side in (LEFT, RIGHT)
        ),
    ]
    tissues = ["portal vein", "portal vein", "aorta", "cava", "cava", "aorta", "aorta", "cava", "cava"]
    return [
        *(Structure(tube, ((0, tissue),)) for tube, tissue in zip(branches, tissues, strict=True)),
        Structure(Tube(cava_places, (cava_width * 1.15, *(cava_width * k for k in (1.15, 1.0, 0.95, 0.95)))),
              ((0, "cava"),), 6, halo=(1.0, "fat")),
        Structure(Tube(aorta_places, aorta_radii), ((0, "aorta"),), 5, halo=(1.5, "fat")),
    ]  # fmt: skip


def _esophagus(generator: Draw, torso: Torso, cardia: Place) -> Structure:
    hiatus = (generator.normal(112, 5), generator.normal(14, 3), generator.normal(-14, 3))
    width = generator.uniform(7, 11)
    tube = Tube(
        ((320, -2, 2), (190, 2, -4), (150, 6, -8), hiatus, cardia), (width * 0.9, width * 0.9, width, width, width)
    )
    gas = hiatus[1] + 2.0 if generator.random() < 0.3 else None
    return Structure(tube, ((0, "esophagus"), (4.5, "esophagus lumen")), 10, gas_above_mm=gas, halo=(1.5, "fat"))


def _place(values: np.ndarray) -> Place:
    return float(values[0]), float(values[1]), float(values[2])
