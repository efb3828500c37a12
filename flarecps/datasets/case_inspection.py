"""Everything that reading one case once can tell: what is wrong with it, and what is worth recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flarecps.datasets.case_checks import (
    LOWEST_HU,
    Found,
    content_findings,
    hounsfield_findings,
    hu_histogram,
    label_centres,
    label_counts,
    label_orientation_findings,
    position_findings,
    torso_findings,
    value_findings,
)
from flarecps.datasets.duplicates import ScanHashes, scan_hashes
from flarecps.datasets.findings import KINDS, Finding
from flarecps.datasets.label_names import LARGEST_ID
from flarecps.datasets.layouts import Case
from flarecps.errors import ScanError
from flarecps.typing import SpacingMm, Triple
from flarecps.volumes.io import Volume, on_grid, read_channels, read_volume
from flarecps.volumes.space import Space, axis_codes

FEWEST_VOXELS = 8  # along any axis; networks halve each axis two to five times
SPACING_MM = (0.1, 10.0)  # outside of it a header is more often wrong than the scanner unusual
EXTENT_MM = (30.0, 2500.0)  # shorter than a finger, longer than a patient
COARSE_HU = np.arange(-1100, 1521, 20)  # edges of the histogram that is kept of each CT
UNREADABLE = {  # words of errors
    "one-slice": "one-slice",
    "NaN": "not-finite",
    "not on the grid": "grid-mismatch",
    "sizes would be wrong": "missing-slices",
    "expected one stack of slices": "several-stacks",
    "DICOM series in one folder": "several-stacks",
}
REMARKS = {
    "no orientation": "no-orientation",
    "sheared": "sheared",
    "gantry tilt": "sheared",
    "beside the line": "missing-slices",
    "slice distances are uneven": "missing-slices",
    "counted once": "odd-slices",
    "passed over": "odd-slices",
    "MONOCHROME1": "odd-slices",
}
WHAT_WAS_EXPECTED = {
    "one-slice": "a 3D scan",
    "not-finite": "numbers everywhere",
    "grid-mismatch": "all channels on one grid",
    "unreadable": "a whole image file",
    "header": "one geometry",
    "no-orientation": "an sform or qform with a code",
    "sheared": "axes at right angles",
    "missing-slices": "slices at even distances",
    "several-stacks": "one stack of slices",
    "odd-slices": "the slices of one stack, each once",
}


@dataclass(frozen=True)
class CaseInspection:
    """What one case showed; without ``shape_voxels`` its image could not be read."""

    findings: tuple[Finding, ...] = ()
    hashes: ScanHashes = field(default_factory=ScanHashes)
    shape_voxels: Triple | None = None
    spacing_mm: SpacingMm | None = None
    stored_as: str = ""  # axis codes of the file's (column, row, slice), as nibabel's: "LPS"
    intensities: tuple[float, float] | None = None  # lowest, highest
    histogram: tuple[int, ...] = ()  # of a CT's first channel, over COARSE_HU
    label_voxels: dict[int, int] = field(default_factory=dict)  # every id in the label map, known or not
    labels_hash: str = ""  # equal for equal label maps
    not_judged: tuple[str, ...] = ()  # directions of a CT of which neither organs nor voxels tell the right sense


@dataclass(frozen=True)
class LabelSet:
    """The part of a catalogue that one case is examined against; small, so it travels to worker processes."""

    names: dict[int, str]  # id -> structure, background included
    left_right_pairs: tuple[tuple[int, int], ...]
    ct_channels: tuple[bool, ...]


def inspect_case(case_and_labels: tuple[Case, LabelSet]) -> CaseInspection:
    """What reading this case once tells. Labels of unlabelled cases are not looked at."""
    case, label_set = case_and_labels
    drawn = None if case.role == "unlabelled" else case.labels
    files = case.images if drawn is None else (*case.images, drawn)
    empty = [path for path in files if path.is_file() and path.stat().st_size == 0]
    if empty:
        return CaseInspection(tuple(Finding(case.name, "empty-file", f"{path}: 0 bytes", "a scan") for path in empty))
    try:
        volume = read_channels(case.images)
    except ScanError as error:
        return CaseInspection((Finding(case.name, *_unreadable(error)),))
    findings: list[Found] = []
    for remark in volume.warnings:
        code = next((code for words, code in REMARKS.items() if words in remark), "header")
        findings.append((code, remark, WHAT_WAS_EXPECTED[code]))
    findings += _grid_findings(volume.space)
    intensities, histogram, has_hu = _inspect_channels(case, volume, label_set, findings)
    counts: dict[int, int] = {}
    labels_hash, decided = "", False
    if drawn is not None:
        counts, labels_hash, decided = _inspect_labels(case, drawn, volume, label_set, has_hu, findings)
    not_judged: list[str] = []
    if has_hu and not decided:
        findings += torso_findings(volume.array[0], volume.space.spacing_mm, not_judged)
    return CaseInspection(
        tuple(Finding(case.name, *found) for found in findings),
        scan_hashes(volume.array),
        volume.space.shape,
        volume.space.spacing_mm,
        axis_codes(volume.source.stored.direction),
        intensities,
        histogram,
        counts,
        labels_hash,
        tuple(not_judged),
    )


def _unreadable(error: ScanError) -> Found:
    """A ScanError as a finding; its kind is known by its words."""
    message = str(error)
    code = next((code for words, code in UNREADABLE.items() if words in message), "unreadable")
    return code, message.split("; expected")[0].split(": the file is probably")[0], WHAT_WAS_EXPECTED[code]


def _grid_findings(space: Space) -> Iterator[Found]:
    shape, spacing, extent = (
        "×".join(f"{value:.4g}" for value in values) for values in (space.shape, space.spacing_mm, space.extent_mm)
    )
    if min(space.shape) < FEWEST_VOXELS:
        yield "few-voxels", f"{shape} voxels", f"at least {FEWEST_VOXELS} along each axis"
    if min(space.spacing_mm) < SPACING_MM[0] or max(space.spacing_mm) > SPACING_MM[1]:
        yield "extreme-spacing", f"spacing {spacing} mm", f"{SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm"
    if min(space.extent_mm) < EXTENT_MM[0] or max(space.extent_mm) > EXTENT_MM[1]:
        yield "extreme-extent", f"field of view {extent} mm", f"{EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm"


def _inspect_channels(
    case: Case, volume: Volume, label_set: LabelSet, findings: list[Found]
) -> tuple[tuple[float, float], tuple[int, ...], bool]:
    """Extreme values and coarse histogram of the first channel, and whether it holds plausible HU; adds findings."""
    kept: list[tuple[tuple[float, float], tuple[int, ...], bool]] = []
    for number, channel in enumerate(volume.array):
        lowest, highest = float(channel.min()), float(channel.max())
        is_ct = number < len(label_set.ct_channels) and label_set.ct_channels[number]
        coarse: tuple[int, ...] = ()
        found: list[Found] = []
        if lowest == highest:
            found = [("constant", f"every voxel of {case.images[number]} is {lowest:g}", "a scan")]
        elif is_ct:
            counts = hu_histogram(channel)
            ends = (int((channel == channel.min()).sum()), int((channel == channel.max()).sum()))
            found = list(hounsfield_findings(counts, lowest, highest, ends))
            coarse = tuple(np.add.reduceat(counts, COARSE_HU - LOWEST_HU)[:-1].tolist())
        findings += found
        has_hu = is_ct and not any(KINDS[code].severity == "error" for code, _, _ in found)
        kept.append(((lowest, highest), coarse, has_hu))
    return kept[0]


def _inspect_labels(
    case: Case, path: Path, volume: Volume, label_set: LabelSet, has_hu: bool, findings: list[Found]
) -> tuple[dict[int, int], str, bool]:
    """Voxels per id, the map's hash, and whether the organs tell how the patient lies; adds findings."""
    try:
        map_ = read_volume(path)
    except ScanError as error:
        findings.append(_unreadable(error))
        return {}, "", False
    array = map_.array[0]
    counts = label_counts(array)
    findings += value_findings(path, array, counts)
    try:
        array = on_grid(map_, volume.space, "its image").array[0]
    except ScanError as error:
        findings.append(("grid-mismatch", str(error), "the grid of the image"))
        return counts or {}, "", False
    if counts is None:
        return {}, "", False
    findings += content_findings(path, counts, label_set.names, case.annotated)
    if min(counts) < 0 or max(counts) > LARGEST_ID or set(counts) <= {0}:
        return counts, "", False
    labels = np.rint(array).astype(np.uint8) if array.dtype != np.uint8 else array
    names = {label: name for label, name in label_set.names.items() if 0 <= label <= LARGEST_ID}  # that labels can hold
    centres = label_centres(labels, volume.space.spacing_mm, names)
    pairs = [(label_set.names[right], label_set.names[left]) for right, left in label_set.left_right_pairs]
    found, decided = label_orientation_findings(centres, pairs)
    findings += found
    if has_hu:
        findings += position_findings(labels, volume.array[0], names)
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels).data)
    return counts, digest.hexdigest(), decided
