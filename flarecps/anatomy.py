"""The 13 organs of FLARE22: ids, names, colours, NSD tolerances, left/right pairs.

Source of ids and tolerances: the organisers' evaluation (JunMa11/FLARE, FLARE22/Evaluation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Organ:
    """One structure of a label set."""

    id: int
    name: str
    column: str  # the name in FLARE22's result tables
    colour: tuple[int, int, int]  # RGB, 0-255
    tolerance_mm: float  # of the normalised surface distance


FLARE22_ORGANS: tuple[Organ, ...] = (
    Organ(1, "liver", "Liver", (178, 58, 46), 5.0),
    Organ(2, "right kidney", "RK", (232, 158, 48), 3.0),
    Organ(3, "spleen", "Spleen", (126, 87, 194), 3.0),
    Organ(4, "pancreas", "Pancreas", (244, 208, 63), 5.0),
    Organ(5, "aorta", "Aorta", (229, 57, 53), 2.0),
    Organ(6, "inferior vena cava", "IVC", (30, 136, 229), 2.0),
    Organ(7, "right adrenal gland", "RAG", (0, 172, 193), 2.0),
    Organ(8, "left adrenal gland", "LAG", (0, 105, 120), 2.0),
    Organ(9, "gallbladder", "Gallbladder", (76, 175, 80), 2.0),
    Organ(10, "esophagus", "Esophagus", (216, 124, 172), 3.0),
    Organ(11, "stomach", "Stomach", (255, 138, 101), 5.0),
    Organ(12, "duodenum", "Duodenum", (141, 110, 99), 7.0),
    Organ(13, "left kidney", "LK", (255, 193, 116), 3.0),
)

FLARE22_LABELS: dict[str, int] = {"background": 0} | {organ.name: organ.id for organ in FLARE22_ORGANS}
FLARE22_PAIRS: tuple[tuple[int, int], ...] = ((2, 13), (7, 8))  # (right, left)
DEFAULT_TOLERANCE_MM = 2.0  # for structures outside FLARE22: the strictest of its tolerances

# Colours for label sets other than FLARE22's, told apart on grey (ids wrap around).
_PALETTE = tuple(organ.colour for organ in FLARE22_ORGANS)


def organs_of(labels: dict[str, int]) -> tuple[Organ, ...]:
    """The organs of a label set ``{name: id}``, ascending by id, background (0) left out.

    A name known from FLARE22 keeps its column, colour and tolerance; any other gets the palette's colour
    of its id and ``DEFAULT_TOLERANCE_MM``.
    """
    known = {organ.name: organ for organ in FLARE22_ORGANS}
    found = []
    for name, label in sorted(labels.items(), key=lambda entry: entry[1]):
        if label and name in known:
            found.append(replace(known[name], id=label))
        elif label:
            colour = _PALETTE[(label - 1) % len(_PALETTE)]
            found.append(Organ(label, name, name.replace(" ", "_"), colour, DEFAULT_TOLERANCE_MM))
    return tuple(found)
