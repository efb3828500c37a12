"""What can be wrong with one case: are these Hounsfield units, what is drawn, does the patient lie as the header says?

Every check gives (kind, what was found, what was expected), of which ``Finding`` is made with the case's name.

The pairs of organs held in all 50 label maps of FLARE22 (13 organs) and all 167 of OpenKBP (brainstem, cord, parotids)
by more than ``APART_MM``, or are as certain (lungs above kidneys). Left and right of an unlabelled scan are not judged:
nothing in the voxels tells them apart reliably.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flarecps.datasets.label_names import LARGEST_ID
from flarecps.typing import LabelArray, SpacingMm
from flarecps.volumes.io import WHOLE_TOLERANCE

Found: TypeAlias = tuple[str, str, str]  # a key of findings.KINDS, what was found, what was expected

# --- Hounsfield units: what a CT's histogram says about how its values were made
LOWEST_HU, HIGHEST_HU = -4096, 16384  # of the histogram; what lies outside is counted at its ends
AIR_HU = (-1200, -500)  # air and lung; fill values such as -2000 lie below
TISSUE_HU = (-200, 300)  # fat to enhanced organs
TISSUE_STORED = (824, 1324)  # the same, 1024 higher
BETWEEN_STORED = (300, 700)  # nearly empty in stored values, between air and fat
NARROW = 64  # a CT spans more; [0, 1], [-1, 1] and z-scores do not
LEAST_AIR = 0.001  # shares of voxels
LEAST_TISSUE = 0.01
LEAST_STORED_TISSUE = 0.05
# Clipped: the last value has so many times the voxels of those beside it, and no fewer than these. No CT of OpenKBP
# that ends below 2900 HU has more than 2 voxels at its end; clipped at 1024 HU it has 50 times as many as beside it.
SPIKE, VALUES_BESIDE, FEWEST_CLIPPED = 4.0, 16, 8
SCANNER_END_HU = 2900  # ends from here on are scanners' own (2928 to 3095)
VERY_DENSE_HU = 5000  # bone ends at 2000, the usual scale at 3071


def hu_histogram(channel: np.ndarray) -> np.ndarray:
    """How many voxels have each whole HU from ``LOWEST_HU`` to ``HIGHEST_HU`` (int64)."""
    counts = np.zeros(HIGHEST_HU - LOWEST_HU + 1, np.int64)
    for plane in channel:  # plane by plane, so that no second copy of the scan is in memory
        whole = plane if plane.dtype.kind in "iu" else np.rint(plane)
        clipped = np.clip(whole.astype(np.float64 if whole.dtype.kind == "f" else np.int64), LOWEST_HU, HIGHEST_HU)
        counts += np.bincount(clipped.ravel().astype(np.int64) - LOWEST_HU, minlength=len(counts))
    return counts


def hounsfield_findings(counts: np.ndarray, lowest: float, highest: float, ends: tuple[int, int]) -> Iterator[Found]:
    """What is wrong with the values of one CT channel (which is not constant).

    Args:
        counts: ``hu_histogram`` of the channel.
        lowest, highest: its extreme values.
        ends: how many voxels have exactly the lowest and the highest value.
    """
    total = int(counts.sum())

    def within(bounds: tuple[int, int]) -> np.ndarray:
        """The counts from the lower bound to below the upper one."""
        return counts[bounds[0] - LOWEST_HU : bounds[1] - LOWEST_HU]

    air, tissue, stored, between = (
        float(within(bounds).sum() / total) for bounds in (AIR_HU, TISSUE_HU, TISSUE_STORED, BETWEEN_STORED)
    )
    span = f"values from {lowest:g} to {highest:g}"
    hounsfield = "HU, air near -1000 and soft tissue near 50"
    if highest - lowest < NARROW:
        yield "normalised", f"{span}, a width of {highest - lowest:.3g}", hounsfield
    elif lowest >= 0 and highest <= 255:
        yield "eight-bit", f"{span}, as in a picture", hounsfield
    elif air < LEAST_AIR and stored >= LEAST_STORED_TISSUE and between < stored / 2:
        peak = TISSUE_STORED[0] + int(np.argmax(np.convolve(within(TISSUE_STORED), np.ones(20), mode="same")))
        yield "not-rescaled", f"{span}, soft tissue near {peak}", hounsfield
    elif lowest >= 0:
        yield "not-ct", f"{span}, none negative, soft tissue not near 1000 either", hounsfield
    elif tissue < LEAST_TISSUE and air >= LEAST_AIR:
        where = f"{tissue:.1%} of the voxels between {TISSUE_HU[0]} and {TISSUE_HU[1]}"
        yield "rescaled-twice", f"{span}, {where}", f"soft tissue there: at least {LEAST_TISSUE:.0%}"
    elif tissue < LEAST_TISSUE:
        yield "not-ct", f"{span}, neither air nor soft tissue where HU have them", hounsfield
    else:  # plausible HU: were they clipped, and is there air?
        no_air, low, high = lowest > AIR_HU[1], round(lowest), round(highest)
        spikes = []
        if no_air and _is_spike(ends[0], counts[low + 1 - LOWEST_HU :]):
            spikes.append((ends[0], lowest))
        if highest < SCANNER_END_HU and _is_spike(ends[1], counts[: high - LOWEST_HU][::-1]):
            spikes.append((ends[1], highest))
        if spikes:
            at_ends = ", ".join(f"{count} voxels ({count / total:.2%}) at exactly {end:g}" for count, end in spikes)
            yield "clipped", f"{span}; {at_ends}", "HU from -1000 (air) to bone above 1000"
        elif no_air:
            yield "no-air", span, f"air below {AIR_HU[1]} HU"
        if highest > VERY_DENSE_HU:
            dense = int(counts[VERY_DENSE_HU + 1 - LOWEST_HU :].sum())
            yield "very-dense", f"{dense} voxels above {VERY_DENSE_HU} HU, up to {highest:g}", "at most 3071 HU"


def _is_spike(count: int, beside: np.ndarray) -> bool:
    """Whether an end's value has far more voxels than the nearest of the other values (their counts, from there)."""
    nearest = beside[beside > 0][:VALUES_BESIDE]
    return count >= max(FEWEST_CLIPPED, SPIKE * (float(nearest.mean()) if len(nearest) else 0.0))


# --- labels: their numbers, what is drawn, and whether it lies on the scan
LISTED = 6  # unknown ids that a message spells out
SOLID_HU = -300.0  # solid organs lie above, even fatty ones
FEWEST_JUDGED = 27  # voxels of a structure: 3 x 3 x 3
ON_AIR = 0.5  # of a solid structure's voxels
AIRY = (  # structures that may hold air
    "lung", "lobe", "trachea", "airway", "bronch", "sinus", "pharynx", "larynx", "air", "gas", "esophagus", "stomach",
    "duodenum", "bowel", "intestine", "colon", "rectum", "body", "external", "skin", "nasal", "oral",
)  # fmt: skip


def label_counts(array: np.ndarray) -> dict[int, int] | None:
    """How many voxels each whole number of a label map has; None when some numbers are not whole."""
    counts: dict[int, int] = {}
    for plane in array:
        if plane.dtype.kind == "f":
            whole = np.rint(plane)
            if (np.abs(plane - whole) > WHOLE_TOLERANCE).any():
                return None
            plane = whole.astype(np.int64)
        if plane.min() >= 0 and plane.max() <= LARGEST_ID:
            found = np.bincount(plane.ravel(), minlength=1)
            labels = np.flatnonzero(found)
            numbers = found[labels]
        else:
            labels, numbers = np.unique(plane, return_counts=True)
        for label, number in zip(labels.tolist(), numbers.tolist(), strict=True):
            counts[label] = counts.get(label, 0) + number
    return dict(sorted(counts.items()))


def value_findings(path: Path, array: np.ndarray, counts: Mapping[int, int] | None) -> Iterator[Found]:
    """Fractions, negative numbers, and whole numbers stored as floats (NIfTI's scaling included)."""
    if counts is None:
        fractions = sum(int((np.abs(plane - np.rint(plane)) > WHOLE_TOLERANCE).sum()) for plane in array)
        yield "fractional-labels", f"{path}: {fractions} voxels are not whole numbers", "0, 1, 2, …"
    elif negative := {label: number for label, number in counts.items() if label < 0}:
        yield "negative-labels", f"{path} holds {_listed(negative)}", "0, 1, 2, …"
    elif array.dtype.kind == "f":
        yield "float-labels", f"{path} stores whole labels as {array.dtype}", "integers"


def content_findings(
    path: Path, counts: Mapping[int, int], names: Mapping[int, str], annotated: Collection[int] | None
) -> Iterator[Found]:
    """Ids that nobody named, nothing at all, and structures that splits.json says are not drawn here.

    ``names``: structure by id, background included; ``annotated``: the ids drawn in this case, None for all.
    """
    unknown = {label: number for label, number in counts.items() if label > 0 and label not in names}
    if unknown:
        yield "unknown-labels", f"{path} holds {_listed(unknown)}", f"the ids of dataset.json, {sorted(names)}"
    if set(counts) <= {0}:
        yield "empty-labels", f"{path} is all background", "at least one structure"
        return
    listed = set(names if annotated is None else annotated) - {0}
    strange = ", ".join(names[label] for label in sorted(set(counts) & set(names) - listed - {0}))
    if strange:
        expected = ", ".join(names[label] for label in sorted(listed)) or "nothing"
        yield "not-annotated", f"{strange} drawn", f"only what splits.json lists as annotated here: {expected}"


def position_findings(labels: LabelArray, hu: np.ndarray, names: Mapping[int, str]) -> Iterator[Found]:
    """Solid structures that lie on air; arrays (slice, row, column) on one grid."""
    voxels, airy = np.zeros(LARGEST_ID + 1, np.int64), np.zeros(LARGEST_ID + 1, np.int64)
    for drawn, plane in zip(labels, hu, strict=True):
        voxels += np.bincount(drawn.ravel(), minlength=len(voxels))
        airy += np.bincount(drawn[plane < SOLID_HU], minlength=len(airy))
    for label, name in names.items():
        may_hold_air = any(word in name.lower() for word in AIRY)
        if label and not may_hold_air and voxels[label] >= FEWEST_JUDGED and airy[label] > ON_AIR * voxels[label]:
            share = f"{airy[label] / voxels[label]:.0%} of {name} lies below {SOLID_HU:g} HU"
            yield "misplaced-labels", share, "a solid structure on soft tissue"


def _listed(counts: Mapping[int, int]) -> str:
    shown = [f"{label} ({number} voxels)" for label, number in list(counts.items())[:LISTED]]
    return ", ".join(shown) + (f" and {len(counts) - LISTED} more ids" if len(counts) > LISTED else "")


# --- how the patient lies: judged by drawn organs, and for unlabelled CT of a torso by its voxels
# (the one above, the one below); each word must occur in the structure's name
ABOVE = (
    ("esophagus", "duodenum"), ("esophagus", "right kidney"), ("esophagus", "left kidney"), ("stomach", "duodenum"),
    ("liver", "duodenum"), ("spleen", "duodenum"), ("right adrenal", "right kidney"), ("left adrenal", "left kidney"),
    ("spleen", "left kidney"), ("liver", "right kidney"), ("lung", "kidney"), ("heart", "kidney"),
    ("liver", "bladder"), ("kidney", "bladder"), ("brainstem", "spinal cord"),
)  # fmt: skip
# (the one in front, the one behind)
IN_FRONT = (
    ("stomach", "right kidney"), ("stomach", "left kidney"), ("stomach", "aorta"), ("stomach", "spleen"),
    ("pancreas", "right kidney"), ("pancreas", "left kidney"), ("duodenum", "right kidney"),
    ("duodenum", "left kidney"), ("duodenum", "aorta"), ("gallbladder", "right kidney"),
    ("bladder", "rectum"), ("right parotid", "spinal cord"), ("left parotid", "spinal cord"),
)  # fmt: skip
NOT_THESE = {"bladder": "gallbladder"}  # a word that is part of another organ's name
APART_MM = 5.0  # centres nearer than this say nothing
CONTRADICTED = 2 / 3  # of the pairs that say something
LIVER_RIGHT_FROM = 0.4  # of the way from the scan's left edge to its right one

STEP_MM = 4.0  # voxels this far apart are enough to judge a torso
BODY_HU = -300.0
LUNG_HU = (-950.0, -600.0)
BONE_HU = (300.0, 3000.0)
TORSO_CM2 = 300.0  # section of the body, lungs included; of 142 scans of heads and necks none has more than 284
BONE_IN_FRONT = 0.05  # of the body's depth; 42 phantoms and 3 real torsos have -0.09 to -0.22
END_SHARE = 5  # the lowest and the highest fifth of the slices
LUNG_BELOW, LUNG_ABOVE = 0.10, 0.03  # share of the body's section
DIRECTIONS = ("up and down", "front and back")


@dataclass(frozen=True)
class StructureCentres:
    """Where drawn structures lie: name -> (height, depth, side) in mm from feet, back and left; and the width."""

    of: Mapping[str, tuple[float, float, float]]
    width_mm: float


def label_centres(labels: LabelArray, spacing_mm: SpacingMm, names: Mapping[int, str]) -> StructureCentres:
    """The centres of mass of all structures of a label map that have a name."""
    sums, totals = np.zeros((LARGEST_ID + 1, 3)), np.zeros(LARGEST_ID + 1)
    rows, columns = (np.arange(edge) + 0.5 for edge in labels.shape[1:])
    for index, plane in enumerate(labels):
        counts = np.bincount(plane.ravel(), minlength=len(totals))
        by_row, by_column = np.zeros((len(totals), len(rows))), np.zeros((len(totals), len(columns)))
        for label in (np.flatnonzero(counts[1:]) + 1).tolist():
            mask = plane == label
            by_row[label], by_column[label] = mask.sum(axis=1), mask.sum(axis=0)
        sums += np.stack([counts * (index + 0.5), by_row @ rows, by_column @ columns], axis=1)
        totals += counts
    centres = {}
    for label, name in names.items():
        if label and totals[label]:
            height, depth, side = sums[label] / totals[label] * np.asarray(spacing_mm)
            centres[name] = (float(height), float(depth), float(side))
    return StructureCentres(centres, labels.shape[2] * spacing_mm[2])


def label_orientation_findings(
    centres: StructureCentres, pairs: Collection[tuple[str, str]]
) -> tuple[list[Found], bool]:
    """What the drawn organs say; and whether they say anything about height and depth (``pairs``: right, left)."""
    findings: list[Found] = []
    for right, left in pairs:
        if right in centres.of and left in centres.of and centres.of[right][2] < centres.of[left][2]:
            findings.append(("sides-swapped", f"{right} lies left of {left}", "the right one on the patient's right"))
    liver, spleen = centres.of.get("liver"), centres.of.get("spleen")
    if liver and spleen and liver[2] < spleen[2]:
        findings.append(("liver-left", "the liver lies left of the spleen", "the liver on the patient's right"))
    elif liver and not spleen and liver[2] < LIVER_RIGHT_FROM * centres.width_mm:
        words = "the liver lies in the left part of the scan"
        findings.append(("maybe-liver-left", words, "it on the patient's right"))
    decided = True
    for code, table, axis, wrong, expected in (
        ("upside-down", ABOVE, 0, "below", "above it"),
        ("back-to-front", IN_FRONT, 1, "behind", "in front of it"),
    ):
        votes = [
            (upper, lower, apart_mm > 0)
            for upper_words, lower_words in table
            for upper in _named(centres, upper_words)
            for lower in _named(centres, lower_words)
            if abs(apart_mm := centres.of[upper][axis] - centres.of[lower][axis]) >= APART_MM
        ]
        wrong_way = [(upper, lower) for upper, lower, right_way in votes if not right_way]
        decided &= bool(votes)
        if len(wrong_way) > CONTRADICTED * len(votes):
            first, second = wrong_way[0]
            share = f"{len(wrong_way)} of {len(votes)} pairs of organs are the wrong way round"
            findings.append((code, f"{first} lies {wrong} {second} ({share})", expected))
    return findings, decided


def _named(centres: StructureCentres, words: str) -> list[str]:
    """The structures whose names hold the words, such as "right kidney" for "kidney" (not "adrenal", "gallbladder")."""
    unwanted = NOT_THESE.get(words, "\n")
    return [
        name
        for name in centres.of
        if words in (plain := name.lower().replace("_", " "))
        and unwanted not in plain
        and ("adrenal" in words) == ("adrenal" in plain)
    ]


def torso_findings(hu: np.ndarray, spacing_mm: SpacingMm, not_judged: list[str] | None = None) -> Iterator[Found]:
    """What the voxels (slice, row, column) of a CT without telling labels say; nothing unless it is a torso.

    ``not_judged`` is given the directions (of `DIRECTIONS`) about which they say nothing.
    """
    not_judged = [] if not_judged is None else not_judged
    steps = [max(1, round(STEP_MM / edge)) for edge in spacing_mm]
    hu = hu[:: steps[0], :: steps[1], :: steps[2]]
    body = hu > BODY_HU
    inside = np.maximum.accumulate(body, axis=2) & np.maximum.accumulate(body[:, :, ::-1], axis=2)[:, :, ::-1]
    areas_cm2 = inside.sum(axis=(1, 2)) * (steps[1] * spacing_mm[1] * steps[2] * spacing_mm[2] / 100)
    end = max(1, len(hu) // END_SHARE)
    if min(np.median(areas_cm2), np.median(areas_cm2[:end]), np.median(areas_cm2[-end:])) < TORSO_CM2:
        not_judged += DIRECTIONS
        return
    bone = (hu > BONE_HU[0]) & (hu < BONE_HU[1])
    rows = np.arange(hu.shape[1])
    depths = []  # how far bone lies in front of the body's centre, as a share of its depth, per slice
    for bone_plane, body_plane in zip(bone.sum(axis=2), body.sum(axis=2), strict=True):
        shown = np.flatnonzero(body_plane)
        if bone_plane.sum() >= 5 and len(shown) > 1:
            middle = (body_plane @ rows) / body_plane.sum()
            depths.append(((bone_plane @ rows) / bone_plane.sum() - middle) / (shown[-1] - shown[0] + 1))
    depth = float(np.median(depths)) if depths else 0.0
    if abs(depth) <= BONE_IN_FRONT:
        not_judged.append(DIRECTIONS[1])
    if depth > BONE_IN_FRONT:
        words = f"bone lies {depth:.0%} of the body's depth in front of the body's middle"
        yield "maybe-back-to-front", words, "the spine behind it"
    lung = (hu >= LUNG_HU[0]) & (hu < LUNG_HU[1]) & inside
    below, above = (lung[part].sum() / max(1, inside[part].sum()) for part in (slice(0, end), slice(-end, None)))
    if not (max(below, above) >= LUNG_BELOW and min(below, above) <= LUNG_ABOVE):
        not_judged.append(DIRECTIONS[0])
    elif below > above:
        words = f"{below:.0%} lung in the lowest fifth of the slices, {above:.0%} in the highest"
        yield "maybe-upside-down", words, "lung at the upper end"
