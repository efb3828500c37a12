"""The scores of one case under FLARE22's rules (``official``) or under careful ones (``strict``).

Source of the official rules: the organisers' evaluation, JunMa11/FLARE, folder FLARE22/Evaluation. It is a script with
quirks; ``official`` keeps each of them, marked "Quirk", because only so the numbers are those of the challenge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from jaxtyping import Int64, UInt8

from flarecps.anatomy import Organ
from flarecps.errors import ScanError
from flarecps.evaluation.overlap import Box, Overlap, joint_box, joint_histogram, label_boxes, overlap_per_label
from flarecps.evaluation.surface import (
    average_symmetric_distance_mm,
    normalised_surface_dice,
    robust_hausdorff_mm,
    surface_distances,
)
from flarecps.typing import SpacingMm

Protocol: TypeAlias = Literal["official", "strict"]
LabelMap: TypeAlias = UInt8[np.ndarray, "slice row column"]

CROPPED_ORGANS = frozenset({"aorta", "inferior vena cava", "esophagus"})  # tubes, annotated over part of their length
NSD_NEEDS_DSC = 0.2
OFFICIAL_DECIMALS = 4

BOTH_EMPTY = "both empty"
ONLY_REFERENCE = "not predicted"
ONLY_PREDICTION = "not in the reference"
NOT_CROPPED = "one slice, scored uncropped"


@dataclass(frozen=True)
class OrganScore:
    """The scores of one organ in one case. None: the protocol gives no number here; ``remark`` says why.

    DSC and NSD are shares from 0 to 1; HD95 and ASSD millimetres (``strict`` only, where both masks hold voxels);
    volumes are of the whole masks in millilitres.
    """

    dsc: float | None
    nsd: float | None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    reference_ml: float = 0.0
    prediction_ml: float = 0.0
    remark: str = ""

    @property
    def volume_error_ml(self) -> float | None:
        """Prediction minus reference in ml, of the whole masks; None when both are empty."""
        empty = not self.prediction_ml and not self.reference_ml
        return None if empty else volume_error_ml(self.prediction_ml, self.reference_ml)

    @property
    def volume_error_relative(self) -> float | None:
        """The volume error as a share of the reference (0.1: a tenth too much); None when the reference is empty."""
        return relative_volume_error(self.prediction_ml, self.reference_ml) if self.reference_ml else None


class _Volumes(TypedDict):
    reference_ml: float
    prediction_ml: float


def score_case(
    prediction: LabelMap,
    reference: LabelMap,
    spacing_mm: SpacingMm,
    organs: Sequence[Organ],
    protocol: Protocol,
    histogram: Int64[np.ndarray, "256 256"] | None = None,
) -> dict[str, OrganScore]:
    """The scores of every organ, by name, of one pair of uint8 label maps on one grid.

    For ``official`` both arrays must be in the voxel order of their files: its crop goes along the slice axis as
    stored. ``histogram`` is the pair's `joint_histogram` where the caller has it. Raises ScanError for label values
    that are no organ's, ValueError for different shapes.
    """
    histogram = joint_histogram(prediction, reference) if histogram is None else histogram
    for whose, counts in (("prediction", histogram.sum(axis=1)), ("reference", histogram.sum(axis=0))):
        check_values(whose, np.flatnonzero(counts), organs)
    ids = [organ.id for organ in organs]
    overlaps = overlap_per_label(histogram, ids)
    boxes_p, boxes_r = label_boxes(prediction, ids), label_boxes(reference, ids)
    scores = {}
    for organ in organs:
        overlap = overlaps[organ.id]
        volumes = _Volumes(
            reference_ml=volume_ml(overlap.reference, spacing_mm),
            prediction_ml=volume_ml(overlap.prediction, spacing_mm),
        )
        box = joint_box(boxes_p[organ.id], boxes_r[organ.id])
        if protocol == "official":
            scores[organ.name] = _official(prediction, reference, box, spacing_mm, organ, overlap, volumes)
        else:
            scores[organ.name] = _strict(prediction, reference, box, spacing_mm, organ, overlap, volumes)
    return scores


def score_missing(reference: LabelMap, spacing_mm: SpacingMm, organs: Sequence[Organ]) -> dict[str, OrganScore]:
    """The ``strict`` scores of a case without prediction: 0 for every organ that the reference holds.

    It counts as a prediction of background alone, so an organ that the reference lacks too is left out of the means.
    """
    return score_case(np.zeros_like(reference), reference, spacing_mm, organs, "strict")


def check_values(whose: str, values: Sequence[int] | np.ndarray, organs: Sequence[Organ]) -> None:
    """Raise ScanError when a label map holds values that are neither background nor an organ of the label set."""
    known = {0, *(organ.id for organ in organs)}
    strange = [int(value) for value in values if int(value) not in known]
    if strange:
        names = ", ".join(f"{organ.id} {organ.name}" for organ in organs[:4]) + (", …" if len(organs) > 4 else "")
        raise ScanError(
            f"the {whose} holds the label value{'s' if len(strange) > 1 else ''} {', '.join(map(str, strange))}; "
            f"expected 0 and {names}: name the right dataset.json with --labels"
        )


def _official(
    prediction: LabelMap, reference: LabelMap, box: Box | None, spacing_mm: SpacingMm, organ: Organ, overlap: Overlap,
    volumes: _Volumes,
) -> OrganScore:  # fmt: skip
    # Quirk: an organ absent from both counts as perfect and enters the mean. Emptiness is that of the whole scan.
    if box is None:
        return OrganScore(1.0, 1.0, remark=BOTH_EMPTY)
    # One of the two empty is 0, on the whole scan too: voxels outside the crop of a tube count for that.
    if not overlap.reference:
        return OrganScore(0.0, 0.0, **volumes, remark=ONLY_PREDICTION)
    remark = "" if overlap.prediction else ONLY_REFERENCE
    # Quirk: the three tubes are scored only between the reference's first and last slice, and the upper bound is
    # exclusive, so the reference's last slice (as stored, whatever its anatomical end) is dropped.
    if organ.name in CROPPED_ORGANS:
        slices = np.flatnonzero((reference[box] == organ.id).any(axis=(1, 2))) + box[0].start
        if slices[0] == slices[-1]:
            # The organisers' script fails on a one-slice organ (its crop is empty). Ours: the whole organ counts.
            remark = remark or NOT_CROPPED
        else:
            box = (slice(int(slices[0]), int(slices[-1])), box[1], box[2])
    mask_p, mask_r = prediction[box] == organ.id, reference[box] == organ.id
    counts = Overlap(int(mask_p.sum()), int(mask_r.sum()), int((mask_p & mask_r).sum()))
    # Quirk: a DSC below 0.2 (before rounding) makes the NSD 0, however near the surfaces are.
    nsd = 0.0
    if counts.dsc >= NSD_NEEDS_DSC:
        nsd = normalised_surface_dice(surface_distances(mask_p, mask_r, spacing_mm), organ.tolerance_mm)
    return OrganScore(_rounded(counts.dsc), _rounded(nsd), **volumes, remark=remark)


def _strict(
    prediction: LabelMap, reference: LabelMap, box: Box | None, spacing_mm: SpacingMm, organ: Organ, overlap: Overlap,
    volumes: _Volumes,
) -> OrganScore:  # fmt: skip
    if box is None:
        return OrganScore(None, None, remark=BOTH_EMPTY)
    if not overlap.reference or not overlap.prediction:
        return OrganScore(0.0, 0.0, **volumes, remark=ONLY_REFERENCE if overlap.reference else ONLY_PREDICTION)
    distances = surface_distances(prediction[box] == organ.id, reference[box] == organ.id, spacing_mm)
    return OrganScore(
        dsc=overlap.dsc,
        nsd=normalised_surface_dice(distances, organ.tolerance_mm),
        hd95_mm=robust_hausdorff_mm(distances),
        assd_mm=average_symmetric_distance_mm(distances),
        **volumes,
    )


def _rounded(value: float) -> float:
    # Quirk: rounded case by case, before any mean; NumPy's rounding, as the script's numbers are NumPy's.
    return float(np.round(value, OFFICIAL_DECIMALS))


def volume_ml(voxels: int, spacing_mm: SpacingMm) -> float:
    """The volume of so many voxels in millilitres (1 ml = 1000 mm³).

    >>> volume_ml(500, (2.0, 1.0, 1.0))
    1.0
    """
    return voxels * math.prod(spacing_mm) / 1000.0


def volume_error_ml(prediction_ml: float, reference_ml: float) -> float:
    """Prediction minus reference in millilitres: negative where too little was found. Both empty: 0."""
    return prediction_ml - reference_ml


def relative_volume_error(prediction_ml: float, reference_ml: float) -> float:
    """The volume error as a share of the reference: 0.1 is 10 % too much, -1 nothing found. Reference empty: NaN.

    >>> relative_volume_error(prediction_ml=33.0, reference_ml=30.0)
    0.1
    """
    return volume_error_ml(prediction_ml, reference_ml) / reference_ml if reference_ml else float("nan")
