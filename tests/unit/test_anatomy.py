"""Colours of organs: told apart by everyone, and never one colour for two things on a page."""

from __future__ import annotations

import itertools

import numpy as np

from flarecps.anatomy import FLARE22_LABELS, FLARE22_ORGANS, FLARE22_PAIRS, organs_of
from flarecps.reporting.case_figures import MISSED, PREDICTION, TOO_MUCH
from flarecps.reporting.plotting import RUN_COLOURS

# Machado, Oliveira & Fernandes (IEEE TVCG 15, 2009), severity 1, of linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
NEIGHBOURS = """liver: right kidney, gallbladder, stomach, inferior vena cava, right adrenal gland, duodenum, esophagus
spleen: stomach, left kidney, left adrenal gland, pancreas
pancreas: stomach, duodenum, left adrenal gland, left kidney, aorta, inferior vena cava, gallbladder
aorta: inferior vena cava, esophagus, left adrenal gland, left kidney, right adrenal gland
inferior vena cava: right adrenal gland, right kidney, duodenum
right kidney: right adrenal gland, duodenum, gallbladder, left kidney
left adrenal gland: left kidney, stomach, right adrenal gland
duodenum: gallbladder, stomach
stomach: gallbladder, esophagus"""
NEAREST_NEIGHBOURS = {"normal": 34.0, "protanopia": 25.0, "deuteranopia": 25.0, "tritanopia": 25.0}  # ΔE*ab
NEAREST_OF_ALL = {"normal": 19.0, "protanopia": 14.0, "deuteranopia": 14.0, "tritanopia": 14.0}


def lab(colour: tuple[int, int, int], vision: str = "normal") -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as someone sees it."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(VISIONS[vision]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ linear / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: tuple[int, int, int], other: tuple[int, int, int], vision: str = "normal") -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


def rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def test_lab_by_known_values() -> None:
    np.testing.assert_allclose(lab((255, 255, 255)), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab((255, 0, 0)), [53.24, 80.09, 67.20], atol=0.02)  # Lindbloom's calculator
    assert distance((255, 0, 0), (140, 110, 0), "protanopia") < distance((255, 0, 0), (140, 110, 0)) / 2


def test_organs_are_told_apart_in_every_vision() -> None:
    colours = {organ.name: organ.colour for organ in FLARE22_ORGANS}
    touching = {
        frozenset((one, other))
        for line in NEIGHBOURS.splitlines()
        for one, others in [line.split(": ")]
        for other in others.split(", ")
    }
    ids = {organ.id: organ.name for organ in FLARE22_ORGANS}
    assert {frozenset((ids[right], ids[left])) for right, left in FLARE22_PAIRS} <= touching
    for vision in VISIONS:
        apart = {
            frozenset(pair): distance(colours[pair[0]], colours[pair[1]], vision)
            for pair in itertools.combinations(colours, 2)
        }
        assert touching <= set(apart)
        assert min(apart.values()) >= NEAREST_OF_ALL[vision], (vision, min(apart, key=lambda pair: apart[pair]))
        nearest = min(touching, key=lambda pair: apart[pair])
        assert apart[nearest] >= NEAREST_NEIGHBOURS[vision], (vision, nearest)


def test_no_organ_has_the_colour_of_a_run_or_of_an_error() -> None:
    others = [rgb(one) for one in (*RUN_COLOURS, MISSED, TOO_MUCH, PREDICTION, "#ffffff")]
    assert min(distance(organ.colour, other) for organ in FLARE22_ORGANS for other in others) >= 10
    errors = [rgb(one) for one in (MISSED, TOO_MUCH, PREDICTION, "#ffffff")]
    for vision in VISIONS:
        assert min(distance(one, other, vision) for one, other in itertools.combinations(errors, 2)) >= 18, vision


def test_any_number_of_organs_has_as_many_colours() -> None:
    labels = FLARE22_LABELS | {f"part {number}": number for number in range(14, 200)}
    organs = organs_of(labels)
    assert organs[:13] == FLARE22_ORGANS
    assert len({organ.colour for organ in organs}) == len(organs) == 199
    mixed = organs_of({"background": 0, "bone": 1, "liver": 2, "tumour": 3})
    assert len({organ.colour for organ in mixed}) == 3
    assert mixed[1].colour == FLARE22_ORGANS[0].colour
