"""Does the patient lie as the header says? Judged by drawn organs, and for unlabelled CT of a torso by its voxels.

The pairs of organs held in all 50 label maps of FLARE22 (13 organs) and all 167 of OpenKBP (brainstem, cord, parotids)
by more than ``APART_MM``, or are as certain (lungs above kidneys). Left and right of an unlabelled scan are not judged:
nothing in the voxels tells them apart reliably.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flarecps.datasets.findings import Finding
from flarecps.typing import LabelArray, SpacingMm

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
TORSO_CM2 = 350.0  # section of the body, lungs included; heads and necks have less
BONE_IN_FRONT = 0.05  # of the body's depth; 42 phantoms and 3 real torsos have -0.09 to -0.22
END_SHARE = 5  # the lowest and the highest fifth of the slices
LUNG_BELOW, LUNG_ABOVE = 0.10, 0.03  # share of the body's section


@dataclass(frozen=True)
class StructureCentres:
    """Where drawn structures lie: name -> (height, depth, side) in mm from feet, back and left; and the width."""

    of: Mapping[str, tuple[float, float, float]]
    width_mm: float


def label_centres(labels: LabelArray, spacing_mm: SpacingMm, names: Mapping[int, str]) -> StructureCentres:
    """The centres of mass of all structures of a label map that have a name."""
    sums = np.zeros((256, 3))
    totals = np.zeros(256)
    rows, columns = (np.arange(edge) + 0.5 for edge in labels.shape[1:])
    for index, plane in enumerate(labels):
        counts = np.bincount(plane.ravel(), minlength=256)
        by_row = np.zeros((256, plane.shape[0]))
        by_column = np.zeros((256, plane.shape[1]))
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
    case: str, centres: StructureCentres, pairs: tuple[tuple[str, str], ...]
) -> tuple[list[Finding], bool]:
    """What the drawn organs say; and whether they say anything about height and depth (``pairs``: right, left)."""
    findings = []
    for right, left in pairs:
        if right in centres.of and left in centres.of and centres.of[right][2] < centres.of[left][2]:
            findings.append(
                Finding(case, "sides-swapped", f"{right} lies left of {left}", "the right one on the patient's right")
            )
    findings += _liver_findings(case, centres)
    decided = True
    for code, table, axis, words in (
        ("upside-down", ABOVE, 0, ("below", "above it")),
        ("back-to-front", IN_FRONT, 1, ("behind", "in front of it")),
    ):
        right_way, wrong_way = _votes(centres, table, axis)
        decided &= bool(right_way or wrong_way)
        if len(wrong_way) > CONTRADICTED * (len(right_way) + len(wrong_way)):
            first, second = wrong_way[0]
            findings.append(
                Finding(
                    case, code, f"{first} lies {words[0]} {second} ({len(wrong_way)} of "
                    f"{len(right_way) + len(wrong_way)} pairs of organs are the wrong way round)", words[1],
                )
            )  # fmt: skip
    return findings, decided


def _liver_findings(case: str, centres: StructureCentres) -> Iterator[Finding]:
    liver, spleen = centres.of.get("liver"), centres.of.get("spleen")
    if liver is not None and spleen is not None and liver[2] < spleen[2]:
        yield Finding(case, "liver-left", "the liver lies left of the spleen", "the liver on the patient's right")
    elif liver is not None and spleen is None and liver[2] < LIVER_RIGHT_FROM * centres.width_mm:
        yield Finding(
            case, "maybe-liver-left", "the liver lies in the left part of the scan", "it on the patient's right"
        )


def _votes(
    centres: StructureCentres, table: tuple[tuple[str, str], ...], axis: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of drawn structures that are the right and the wrong way round along an axis."""
    right_way: list[tuple[str, str]] = []
    wrong_way: list[tuple[str, str]] = []
    for upper_word, lower_word in table:
        for upper in _named(centres, upper_word):
            for lower in _named(centres, lower_word):
                apart = centres.of[upper][axis] - centres.of[lower][axis]
                if abs(apart) >= APART_MM:
                    (right_way if apart > 0 else wrong_way).append((upper, lower))
    return right_way, wrong_way


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


def torso_findings(case: str, hu: np.ndarray, spacing_mm: SpacingMm) -> Iterator[Finding]:
    """What the voxels (slice, row, column) of a CT without telling labels say; nothing unless it is a torso."""
    steps = [max(1, round(STEP_MM / edge)) for edge in spacing_mm]
    hu = hu[:: steps[0], :: steps[1], :: steps[2]]
    body = hu > BODY_HU
    inside = np.maximum.accumulate(body, axis=2) & np.maximum.accumulate(body[:, :, ::-1], axis=2)[:, :, ::-1]
    areas_cm2 = inside.sum(axis=(1, 2)) * (steps[1] * spacing_mm[1] * steps[2] * spacing_mm[2] / 100)
    end = max(1, len(hu) // END_SHARE)
    if min(np.median(areas_cm2), np.median(areas_cm2[:end]), np.median(areas_cm2[-end:])) < TORSO_CM2:
        return
    bone = _bone_depth(hu, body)
    if bone > BONE_IN_FRONT:
        yield Finding(
            case, "maybe-back-to-front", f"bone lies {bone:.0%} of the body's depth in front of the body's middle",
            "the spine behind it",
        )  # fmt: skip
    lung = (hu >= LUNG_HU[0]) & (hu < LUNG_HU[1]) & inside
    below, above = (lung[part].sum() / max(1, inside[part].sum()) for part in (slice(0, end), slice(-end, None)))
    if below >= LUNG_BELOW and above <= LUNG_ABOVE:
        yield Finding(
            case, "maybe-upside-down",
            f"{below:.0%} lung in the lowest fifth of the slices, {above:.0%} in the highest", "lung at the upper end",
        )  # fmt: skip


def _bone_depth(hu: np.ndarray, body: np.ndarray) -> float:
    """How far bone lies in front of the body's centre, as a share of its depth: the median over slices; NaN without."""
    bone = (hu > BONE_HU[0]) & (hu < BONE_HU[1])
    rows = np.arange(hu.shape[1])
    depths = []
    for bone_plane, body_plane in zip(bone.sum(axis=2), body.sum(axis=2), strict=True):
        shown = np.flatnonzero(body_plane)
        if bone_plane.sum() >= 5 and len(shown) > 1:
            middle = (body_plane @ rows) / body_plane.sum()
            depths.append(((bone_plane @ rows) / bone_plane.sum() - middle) / (shown[-1] - shown[0] + 1))
    return float(np.median(depths)) if depths else float("nan")
