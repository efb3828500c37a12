"""What can be wrong with one label map: its numbers, what is drawn, and where it lies on the scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flarecps.datasets.findings import Finding
from flarecps.datasets.layouts import Case
from flarecps.typing import LabelArray
from flarecps.volumes.io import WHOLE_TOLERANCE

MAX_LABEL = 255  # labels are stored as uint8
LISTED = 6  # unknown ids that a message spells out
SOLID_HU = -300.0  # solid organs lie above, even fatty ones
FEWEST_JUDGED = 27  # voxels of a structure: 3 x 3 x 3
ON_AIR = 0.5  # of a solid structure's voxels
AIRY = (  # structures that may hold air
    "lung", "lobe", "trachea", "airway", "bronch", "sinus", "pharynx", "larynx", "air", "gas", "esophagus", "stomach",
    "duodenum", "bowel", "intestine", "colon", "rectum", "body", "external", "skin", "nasal", "oral",
)  # fmt: skip


@dataclass(frozen=True)
class LabelSet:
    """The part of a catalogue that one case is examined against; small, so it travels to worker processes."""

    names: dict[int, str]  # id -> structure, background included
    left_right_pairs: tuple[tuple[int, int], ...]
    ct_channels: tuple[bool, ...]


def label_counts(array: np.ndarray) -> dict[int, int] | None:
    """How many voxels each whole number of a label map has; None when some numbers are not whole."""
    counts: dict[int, int] = {}
    for plane in array:
        if plane.dtype.kind == "f":
            whole = np.rint(plane)
            if (np.abs(plane - whole) > WHOLE_TOLERANCE).any():
                return None
            plane = whole.astype(np.int64)
        if plane.min() >= 0 and plane.max() <= MAX_LABEL:
            found = np.bincount(plane.ravel(), minlength=1)
            labels = np.flatnonzero(found)
            numbers = found[labels]
        else:
            labels, numbers = np.unique(plane, return_counts=True)
        for label, number in zip(labels.tolist(), numbers.tolist(), strict=True):
            counts[label] = counts.get(label, 0) + number
    return dict(sorted(counts.items()))


def number_findings(case: Case, array: np.ndarray, counts: Mapping[int, int] | None) -> Iterator[Finding]:
    """Fractions, negative numbers, and whole numbers stored as floats (NIfTI's scaling included)."""
    if counts is None:
        fractions = sum(int((np.abs(plane - np.rint(plane)) > WHOLE_TOLERANCE).sum()) for plane in array)
        yield Finding(
            case.name, "fractional-labels", f"{case.labels}: {fractions} voxels are not whole numbers", "0, 1, 2, …"
        )
        return
    negative = {label: number for label, number in counts.items() if label < 0}
    if negative:
        yield Finding(case.name, "negative-labels", f"{case.labels} holds {_listed(negative)}", "0, 1, 2, …")
    elif array.dtype.kind == "f":
        yield Finding(case.name, "float-labels", f"{case.labels} stores whole labels as {array.dtype}", "integers")


def drawn_findings(case: Case, counts: Mapping[int, int], label_set: LabelSet) -> Iterator[Finding]:
    """Ids that nobody named, nothing at all, and structures that splits.json says are not drawn here."""
    unknown = {label: number for label, number in counts.items() if label > 0 and label not in label_set.names}
    if unknown:
        yield Finding(
            case.name, "unknown-labels", f"{case.labels} holds {_listed(unknown)}",
            f"the ids of dataset.json, {sorted(label_set.names)}",
        )  # fmt: skip
    if set(counts) <= {0}:
        yield Finding(case.name, "empty-labels", f"{case.labels} is all background", "at least one structure")
        return
    annotated = set(label_set.names) if case.annotated is None else set(case.annotated) | {0}
    strange = sorted(set(counts) & set(label_set.names) - annotated)
    if strange:
        yield Finding(
            case.name, "not-annotated", f"{_named(strange, label_set)} drawn",
            f"only what splits.json lists as annotated here: {_named(sorted(annotated - {0}), label_set) or 'nothing'}",
        )  # fmt: skip


def place_findings(case: str, labels: LabelArray, hu: np.ndarray, label_set: LabelSet) -> Iterator[Finding]:
    """Solid structures that lie on air; arrays (slice, row, column) on one grid."""
    voxels, airy = np.zeros(MAX_LABEL + 1, np.int64), np.zeros(MAX_LABEL + 1, np.int64)
    for drawn, plane in zip(labels, hu, strict=True):
        voxels += np.bincount(drawn.ravel(), minlength=len(voxels))
        airy += np.bincount(drawn[plane < SOLID_HU], minlength=len(airy))
    for label, name in label_set.names.items():
        may_hold_air = any(word in name.lower() for word in AIRY)
        if label and not may_hold_air and voxels[label] >= FEWEST_JUDGED and airy[label] > ON_AIR * voxels[label]:
            yield Finding(
                case, "misplaced-labels", f"{airy[label] / voxels[label]:.0%} of {name} lies below {SOLID_HU:g} HU",
                "a solid structure on soft tissue",
            )  # fmt: skip


def _listed(counts: Mapping[int, int]) -> str:
    shown = [f"{label} ({number} voxels)" for label, number in list(counts.items())[:LISTED]]
    return ", ".join(shown) + (f" and {len(counts) - LISTED} more ids" if len(counts) > LISTED else "")


def _named(labels: list[int], label_set: LabelSet) -> str:
    return ", ".join(label_set.names[label] for label in labels)
