"""The 13 organs of FLARE22: ids, names, colours, NSD tolerances, left/right pairs.

Source of ids and tolerances: the organisers' evaluation (JunMa11/FLARE, FLARE22/Evaluation).
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Organ:
    """One structure of a label set."""

    id: int
    name: str
    column: str  # the name in FLARE22's result tables
    colour: tuple[int, int, int]  # RGB, 0-255
    tolerance_mm: float  # of the normalised surface distance


# The colours are told apart by everyone: organs that touch one another differ most, in normal and in colour-blind
# vision (tests/unit/test_anatomy.py states by how much). The aorta is red and the vena cava blue, as in every atlas.
FLARE22_ORGANS: tuple[Organ, ...] = (
    Organ(1, "liver", "Liver", (51, 170, 204), 5.0),
    Organ(2, "right kidney", "RK", (17, 119, 34), 3.0),
    Organ(3, "spleen", "Spleen", (187, 153, 17), 3.0),
    Organ(4, "pancreas", "Pancreas", (51, 238, 187), 5.0),
    Organ(5, "aorta", "Aorta", (221, 0, 34), 2.0),
    Organ(6, "inferior vena cava", "IVC", (51, 68, 238), 2.0),
    Organ(7, "right adrenal gland", "RAG", (255, 153, 136), 2.0),
    Organ(8, "left adrenal gland", "LAG", (221, 34, 153), 2.0),
    Organ(9, "gallbladder", "Gallbladder", (187, 238, 119), 2.0),
    Organ(10, "esophagus", "Esophagus", (238, 221, 0), 3.0),
    Organ(11, "stomach", "Stomach", (136, 51, 204), 5.0),
    Organ(12, "duodenum", "Duodenum", (187, 0, 102), 7.0),
    Organ(13, "left kidney", "LK", (238, 68, 255), 3.0),
)

FLARE22_LABELS: dict[str, int] = {"background": 0} | {organ.name: organ.id for organ in FLARE22_ORGANS}
FLARE22_PAIRS: tuple[tuple[int, int], ...] = ((2, 13), (7, 8))  # (right, left)
DEFAULT_TOLERANCE_MM = 2.0  # for structures outside FLARE22: the strictest of its tolerances


def _other_colours() -> Iterator[tuple[int, int, int]]:
    """Colours without end: FLARE22's, then others, hues a golden angle apart in three tones."""
    yield from (organ.colour for organ in FLARE22_ORGANS)
    number = 0
    while True:
        tone, strength = ((0.95, 0.55), (0.6, 0.9), (0.8, 0.3))[number % 3]
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, strength, tone)
        yield round(255 * red), round(255 * green), round(255 * blue)
        number += 1


def organs_of(labels: dict[str, int]) -> tuple[Organ, ...]:
    """The organs of a label set ``{name: id}``, ascending by id, background (0) left out.

    A name known from FLARE22 keeps its column, colour and tolerance; any other gets a colour that no other organ of the
    set has, and ``DEFAULT_TOLERANCE_MM``.
    """
    known = {organ.name: organ for organ in FLARE22_ORGANS}
    taken = {known[name].colour for name in labels if name in known}
    colours = _other_colours()
    found = []
    for name, label in sorted(labels.items(), key=lambda entry: entry[1]):
        if label and name in known:
            found.append(replace(known[name], id=label))
        elif label:
            colour = next(one for one in colours if one not in taken)
            taken.add(colour)
            found.append(Organ(label, name, name.replace(" ", "_"), colour, DEFAULT_TOLERANCE_MM))
    return tuple(found)
