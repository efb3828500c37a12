"""The scores of one case under FLARE22's rules (``official``) or under careful ones (``strict``).

Source of the official rules: the organisers' evaluation, JunMa11/FLARE, folder FLARE22/Evaluation. It is a script with
quirks; ``official`` keeps each of them, marked "Quirk", because only so the numbers are those of the challenge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy.ndimage import find_objects

from flarecps.anatomy import Organ
from flarecps.dice import dice_coefficient
from flarecps.errors import ScanError, first_few
from flarecps.evaluation.overlap import joint_box, joint_histogram, occupied_box, overlap_per_label
from flarecps.evaluation.surface import (
    Mask,
    average_symmetric_distance_mm,
    normalised_surface_dice,
    robust_hausdorff_mm,
    surface_distances,
)
from flarecps.typing import SpacingMm

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

Protocol: TypeAlias = Literal["official", "strict"]
LabelMap: TypeAlias = "UInt8[np.ndarray, 'slice row column']"

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
        return self.prediction_ml - self.reference_ml if self.prediction_ml or self.reference_ml else None

    @property
    def volume_error_relative(self) -> float | None:
        """The volume error as a share of the reference (0.1: a tenth too much); None when the reference is empty."""
        return (self.prediction_ml - self.reference_ml) / self.reference_ml if self.reference_ml else None


def count_case(
    prediction: LabelMap,
    reference: LabelMap,
    spacing_mm: SpacingMm,
    organs: Sequence[Organ],
    histogram: Int64[np.ndarray, "256 256"] | None = None,
    protocol: Protocol = "strict",
) -> dict[str, OrganScore]:
    """What the voxel counts tell of every organ, by name: DSC (NaN: empty in both) and volumes of the whole masks.

    ``histogram`` is the pair's `joint_histogram` where the caller has it. Raises ScanError for label values that are no
    organ's (``official``: in the reference), ValueError for different shapes.
    """
    histogram = joint_histogram(prediction, reference) if histogram is None else histogram
    for whose, counts in (("prediction", histogram.sum(axis=1)), ("reference", histogram.sum(axis=0))):
        # Quirk: the script looks for its organs only; what else a prediction holds is background to it.
        judged = whose == "reference" or protocol == "strict"
        strange = [str(value) for value in foreign_values(counts, organs)] if judged else []
        if strange:
            named = first_few([f"{organ.id} {organ.name}" for organ in organs], 4)
            raise ScanError(
                f"the {whose} holds the label value{'s' if len(strange) > 1 else ''} {', '.join(strange)}; expected 0 "
                f"and {named}: name the right dataset.json with --labels"
            )
    overlaps, voxel_mm3 = overlap_per_label(histogram, [organ.id for organ in organs]), math.prod(spacing_mm)
    scores = {}
    for organ in organs:
        found = overlaps[organ.id]
        reference_ml, prediction_ml = (voxels * voxel_mm3 / 1000.0 for voxels in (found.reference, found.prediction))
        scores[organ.name] = OrganScore(found.dsc, None, reference_ml=reference_ml, prediction_ml=prediction_ml)
    return scores


def foreign_values(counts: np.ndarray, organs: Sequence[Organ]) -> list[int]:
    """The label values that occur, by voxels per value (256,), and are neither an organ's nor background's."""
    known = {0, *(organ.id for organ in organs)}
    return [value for value in np.flatnonzero(counts).tolist() if value not in known]


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
    stored. Further as `count_case`.
    """
    counted = count_case(prediction, reference, spacing_mm, organs, histogram, protocol)
    whole = joint_box(occupied_box(prediction), occupied_box(reference))
    prediction, reference = prediction[whole], reference[whole]
    boxes = [find_objects(labels, max_label=255) for labels in (prediction, reference)]
    judge = _official if protocol == "official" else _strict
    scores = {}
    for organ in organs:
        found, box = counted[organ.name], joint_box(*(ours[organ.id - 1] for ours in boxes))
        if box is None:
            # Quirk: an organ absent from both counts as perfect and enters the mean. Emptiness is of the whole scan.
            perfect = 1.0 if protocol == "official" else None
            scores[organ.name] = OrganScore(perfect, perfect, remark=BOTH_EMPTY)
        elif not found.reference_ml or not found.prediction_ml:
            # On the whole scan, too: voxels outside the crop of a tube count for that.
            remark = ONLY_REFERENCE if found.reference_ml else ONLY_PREDICTION
            scores[organ.name] = replace(found, dsc=0.0, nsd=0.0, remark=remark)
        else:
            scores[organ.name] = judge(
                found, prediction[box] == organ.id, reference[box] == organ.id, spacing_mm, organ
            )
    return scores


def _official(found: OrganScore, prediction: Mask, reference: Mask, spacing_mm: SpacingMm, organ: Organ) -> OrganScore:
    # Quirk: the three tubes are scored only between the reference's first and last slice, and the upper bound is
    # exclusive, so the reference's last slice (as stored, whatever its anatomical end) is dropped.
    remark = ""
    if organ.name in CROPPED_ORGANS:
        slices = np.flatnonzero(reference.any(axis=(1, 2)))
        if slices[0] == slices[-1]:
            # The organisers' script fails on a one-slice organ (its crop is empty). Ours: the whole organ counts.
            remark = NOT_CROPPED
        else:
            prediction, reference = (mask[slices[0] : slices[-1]] for mask in (prediction, reference))
    dsc = dice_coefficient(int((prediction & reference).sum()), int(prediction.sum()) + int(reference.sum()))
    # Quirk: a DSC below 0.2 (before rounding) makes the NSD 0, however near the surfaces are.
    nsd = 0.0
    if dsc >= NSD_NEEDS_DSC:
        nsd = normalised_surface_dice(surface_distances(prediction, reference, spacing_mm), organ.tolerance_mm)
    # Quirk: rounded case by case, before any mean; NumPy's rounding, as the script's numbers are NumPy's.
    dsc, nsd = (float(np.round(value, OFFICIAL_DECIMALS)) for value in (dsc, nsd))
    return replace(found, dsc=dsc, nsd=nsd, remark=remark)


def _strict(found: OrganScore, prediction: Mask, reference: Mask, spacing_mm: SpacingMm, organ: Organ) -> OrganScore:
    distances = surface_distances(prediction, reference, spacing_mm)
    return replace(
        found,
        nsd=normalised_surface_dice(distances, organ.tolerance_mm),
        hd95_mm=robust_hausdorff_mm(distances),
        assd_mm=average_symmetric_distance_mm(distances),
    )
