"""How far two networks that were trained beside each other agree on a scan: a quality score that needs no reference.

Where siblings that saw the same data from different beginnings draw an organ differently, at least one is wrong; so
scans of low agreement are those to look at, or to annotate, first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flarecps.evaluation.overlap import dice_per_label
from flarecps.inference.case_records import Record, number
from flarecps.typing import LabelArray

KIND = "agreement"


def sibling_agreement(name: str, first: LabelArray, second: LabelArray, label_set: Mapping[str, int]) -> Record:
    """The Dice coefficient between two label maps of one scan, per organ, and its mean over organs.

    An organ that neither map has is None and left out of the mean; one that only one has is 0. With no organ at all the
    mean is None.

    >>> maps = np.array([[[1, 1, 0]]], np.uint8), np.array([[[1, 0, 0]]], np.uint8)
    >>> sibling_agreement("scan", *maps, {"background": 0, "liver": 1, "spleen": 2})
    {'case': 'scan', 'mean': 0.666667, 'organs': {'liver': 0.666667, 'spleen': None}}
    """
    overlaps = dice_per_label(first, second, [label for label in label_set.values() if label])
    organs = {organ: overlaps[label].dsc for organ, label in label_set.items() if label}
    present = [dsc for dsc in organs.values() if not np.isnan(dsc)]
    plain = {organ: None if np.isnan(dsc) else round(dsc, 6) for organ, dsc in organs.items()}
    return {"case": name, "mean": round(float(np.mean(present)), 6) if present else None, "organs": plain}


def ranked(records: Sequence[Record]) -> list[Record]:
    """The scans to look at first, first: none of the organs found, then by rising mean agreement."""
    return sorted(records, key=lambda record: (-1.0 if record["mean"] is None else record["mean"], record["case"]))


def agreement_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """A row per scan in the order given, with its rank; an organ that neither network found is left empty."""
    return [
        {"rank": rank, "case": record["case"], "mean_dsc": number(record["mean"], 4)}
        | {organ: number(dsc, 4) for organ, dsc in record["organs"].items()}
        for rank, record in enumerate(records, start=1)
    ]
