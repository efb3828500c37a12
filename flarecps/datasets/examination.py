"""What can be wrong with one case, seen in its headers and voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from flarecps.datasets.layouts import Case
from flarecps.errors import ScanError
from flarecps.typing import LabelArray, ScanArray, SpacingMm, Triple
from flarecps.volumes.io import Volume, read_channels, read_labels
from flarecps.volumes.space import Space

Severity: TypeAlias = Literal["error", "warning", "note"]

FEWEST_VOXELS = 8  # along any axis; networks halve each axis two to five times
SPACING_MM = (0.1, 10.0)  # outside of it a header is more often wrong than the scanner unusual
EXTENT_MM = (30.0, 2500.0)  # shorter than a finger, longer than a patient
AIR_HU = -500.0  # a CT without any voxel below this shows no air: cropped, windowed or not HU
COLUMN_AXIS = 2  # grows towards the patient's right (see flarecps.typing)


@dataclass(frozen=True)
class Finding:
    """One thing to know about a case (or, with an empty name, about the data set)."""

    case: str
    severity: Severity
    code: str
    message: str


@dataclass(frozen=True)
class LabelSet:
    """The part of a catalogue that one case is examined against; small, so it travels to worker processes."""

    names: dict[int, str]  # id -> structure, background included
    left_right_pairs: tuple[tuple[int, int], ...]
    is_ct: bool


@dataclass(frozen=True)
class Examination:
    """What one case showed; ``content`` is a hash of its voxels, empty when they could not be read."""

    findings: tuple[Finding, ...] = ()
    content: str = ""
    shape_voxels: Triple | None = None
    spacing_mm: SpacingMm | None = None
    intensities: tuple[float, float] | None = None  # lowest, highest
    label_voxels: dict[int, int] = field(default_factory=dict)


def examine(case_and_labels: tuple[Case, LabelSet]) -> Examination:
    """Everything that reading one case once can tell. Unlabelled cases are judged by their images only."""
    case, label_set = case_and_labels
    try:
        volume = read_channels(case.images)
    except ScanError as error:
        return Examination((Finding(case.name, "error", _code_of(error), str(error)),))
    findings = [Finding(case.name, "warning", "header", remark) for remark in volume.warnings]
    findings += _grid_findings(case.name, volume.space)
    intensities = (float(volume.array.min()), float(volume.array.max()))
    findings += _intensity_findings(case.name, intensities, label_set.is_ct)
    counts: dict[int, int] = {}
    if case.labels is not None and case.role != "unlabelled":
        found, counts = _examine_labels(case, volume, label_set)
        findings += found
    return Examination(
        tuple(findings), content_hash(volume.array), volume.space.shape, volume.space.spacing_mm, intensities, counts
    )


def content_hash(array: ScanArray) -> str:
    """A hash of the values and shape of a scan, whatever the file's name, compression and number type."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for channel in array:
        for plane in channel:  # plane by plane, so that no second copy of the scan is in memory
            digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _code_of(error: ScanError) -> str:
    """The kind of a ScanError, as far as its words tell."""
    message = str(error)
    known = {"one-slice": "few-voxels", "NaN": "not-finite", "not on the grid": "grid-mismatch"}
    return next((code for words, code in known.items() if words in message), "unreadable")


def _grid_findings(name: str, space: Space) -> Iterator[Finding]:
    if min(space.shape) < FEWEST_VOXELS:
        yield Finding(
            name, "warning", "few-voxels",
            f"{_times(space.shape)} voxels; expected at least {FEWEST_VOXELS} along each axis: is the series complete?",
        )  # fmt: skip
    if min(space.spacing_mm) < SPACING_MM[0] or max(space.spacing_mm) > SPACING_MM[1]:
        yield Finding(
            name, "warning", "extreme-spacing",
            f"spacing {_times(space.spacing_mm)} mm; expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm: "
            "check the header (metres, or a missing spacing?)",
        )  # fmt: skip
    extent = space.extent_mm
    if min(extent) < EXTENT_MM[0] or max(extent) > EXTENT_MM[1]:
        yield Finding(
            name, "warning", "extreme-extent",
            f"field of view {_times(extent)} mm; expected {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm: check the spacing",
        )  # fmt: skip


def _intensity_findings(name: str, intensities: tuple[float, float], is_ct: bool) -> Iterator[Finding]:
    lowest, highest = intensities
    if lowest == highest:
        yield Finding(name, "error", "constant", f"every voxel is {lowest:g}; expected a scan: export it again")
    elif is_ct and lowest >= 0:
        yield Finding(
            name, "error", "not-hounsfield",
            f"values from {lowest:g} to {highest:g}, none negative; expected HU, with air near -1000: apply the "
            "rescale slope and intercept (or subtract 1024), or name another modality in dataset.json",
        )  # fmt: skip
    elif is_ct and lowest > AIR_HU:
        yield Finding(
            name, "warning", "no-air",
            f"values from {lowest:g} to {highest:g}, no air in a CT: windowed or normalised already? Expected plain HU",
        )  # fmt: skip


def _examine_labels(case: Case, volume: Volume, label_set: LabelSet) -> tuple[list[Finding], dict[int, int]]:
    assert case.labels is not None
    try:
        map_ = read_labels(case.labels)
    except ScanError as error:
        return [Finding(case.name, "error", _code_of(error), str(error))], {}
    if not map_.space.same_grid(volume.space):
        return [
            Finding(
                case.name, "error", "grid-mismatch",
                f"{case.labels} is not on the grid of its image ({map_.space.difference(volume.space)}): "
                "resample the labels to the image (nearest neighbour), or correct the header that is wrong",
            )
        ], {}  # fmt: skip
    labels = map_.array[0]
    voxels = np.bincount(labels.ravel(), minlength=256)
    counts = {int(label): int(voxels[label]) for label in np.flatnonzero(voxels)}
    findings = list(_value_findings(case, counts, label_set))
    findings += _side_findings(case.name, labels, label_set)
    return findings, counts


def _value_findings(case: Case, counts: dict[int, int], label_set: LabelSet) -> Iterator[Finding]:
    unknown = sorted(set(counts) - set(label_set.names))
    if unknown:
        listed = ", ".join(f"{label} ({counts[label]} voxels)" for label in unknown)
        yield Finding(
            case.name, "error", "unknown-labels",
            f"{case.labels} holds {listed}; dataset.json knows {sorted(label_set.names)}: name or clear them",
        )  # fmt: skip
    if set(counts) <= {0}:
        yield Finding(
            case.name, "warning", "empty-labels",
            f"{case.labels} is all background: if nothing was drawn, list the case as unlabelled in splits.json",
        )  # fmt: skip
        return
    annotated = set(label_set.names) if case.annotated is None else set(case.annotated) | {0}
    strange = sorted(set(counts) & set(label_set.names) - annotated)
    if strange:
        yield Finding(
            case.name, "warning", "not-annotated",
            f"{_listed(strange, label_set)} drawn, although splits.json does not list them as annotated here",
        )  # fmt: skip
    absent = sorted(annotated - set(counts) - {0})
    if absent:
        yield Finding(
            case.name, "note", "absent",
            f"no voxel of {_listed(absent, label_set)}: absent in the patient, or not drawn? If not drawn, list the "
            'drawn ids under "annotated" in splits.json',
        )  # fmt: skip


def _side_findings(name: str, labels: LabelArray, label_set: LabelSet) -> Iterator[Finding]:
    centres = _centres_right(labels)
    for right, left in label_set.left_right_pairs:
        if right in centres and left in centres and centres[right] < centres[left]:
            yield Finding(
                name, "error", "sides-swapped",
                f"{label_set.names[right]} lies left of {label_set.names[left]}: the header's orientation is wrong, "
                "the scan was flipped, or the two labels are exchanged",
            )  # fmt: skip
    ids = {structure.lower(): label for label, structure in label_set.names.items()}
    liver, spleen = ids.get("liver", -1), ids.get("spleen", -1)
    if liver in centres and spleen in centres and centres[liver] < centres[spleen]:
        yield Finding(
            name, "error", "liver-left",
            "the liver lies left of the spleen: a flipped scan or header (or, rarely, situs inversus)",
        )  # fmt: skip
    elif liver in centres and spleen not in centres and centres[liver] < 0.4:
        yield Finding(
            name, "warning", "liver-left", "the liver lies in the left part of the scan: is the orientation right?"
        )


def _centres_right(labels: LabelArray) -> dict[int, float]:
    """For each label present, where its centre of mass lies from the patient's left (0) to the right (1)."""
    width = labels.shape[COLUMN_AXIS]
    histogram = np.stack([np.bincount(labels[:, :, column].ravel(), minlength=256) for column in range(width)], axis=1)
    totals = histogram.sum(axis=1)
    places = (np.arange(width) + 0.5) / width
    return {int(one): float(histogram[one] @ places / totals[one]) for one in np.flatnonzero(totals) if one}


def _listed(labels: list[int], label_set: LabelSet) -> str:
    return ", ".join(label_set.names[label] for label in labels)


def _times(values: tuple[float, ...]) -> str:
    return "×".join(f"{value:.4g}" for value in values)
