"""Everything that reading one case once can tell: what is wrong with it, and what is worth recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flarecps.datasets.duplicates import ScanHashes, scan_hashes
from flarecps.datasets.findings import Finding
from flarecps.datasets.hounsfield_checks import LOWEST_HU, hounsfield_findings, hu_histogram
from flarecps.datasets.label_checks import (
    MAX_LABEL,
    LabelSet,
    drawn_findings,
    label_counts,
    number_findings,
    place_findings,
)
from flarecps.datasets.layouts import Case
from flarecps.datasets.orientation_checks import label_centres, label_orientation_findings, torso_findings
from flarecps.errors import ScanError
from flarecps.typing import SpacingMm, Triple
from flarecps.volumes.io import Volume, read_channels, read_volume
from flarecps.volumes.space import Direction, Space

FEWEST_VOXELS = 8  # along any axis; networks halve each axis two to five times
SPACING_MM = (0.1, 10.0)  # outside of it a header is more often wrong than the scanner unusual
EXTENT_MM = (30.0, 2500.0)  # shorter than a finger, longer than a patient
COARSE_HU = np.arange(-1100, 1521, 20)  # edges of the histogram that is kept of each CT
UNREADABLE = {"one-slice": "one-slice", "NaN": "not-finite", "not on the grid": "grid-mismatch"}  # words of errors
REMARKS = {"no orientation": "no-orientation", "sheared": "sheared", "slice distances are uneven": "missing-slices"}
WHAT_WAS_EXPECTED = {
    "one-slice": "a 3D scan",
    "not-finite": "numbers everywhere",
    "grid-mismatch": "all channels on one grid",
    "unreadable": "a whole image file",
    "header": "one geometry",
    "no-orientation": "an sform or qform with a code",
    "sheared": "axes at right angles",
    "missing-slices": "slices at even distances",
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


def inspect_case(case_and_labels: tuple[Case, LabelSet]) -> CaseInspection:
    """What reading this case once tells. Labels of unlabelled cases are not looked at."""
    case, label_set = case_and_labels
    empty = [path for path in _files(case) if path.is_file() and path.stat().st_size == 0]
    if empty:
        return CaseInspection(tuple(Finding(case.name, "empty-file", f"{path}: 0 bytes", "a scan") for path in empty))
    try:
        volume = read_channels(case.images)
    except ScanError as error:
        return CaseInspection((_unreadable(case.name, error),))
    findings = [_remark(case.name, remark) for remark in volume.warnings]
    findings += _grid_findings(case.name, volume.space)
    first, has_hu = _channel_findings(case, volume, label_set, findings)
    counts: dict[int, int] = {}
    labels_hash, decided = "", False
    if case.labels is not None and case.role != "unlabelled":
        counts, labels_hash, decided = _inspect_labels(case, volume, label_set, has_hu, findings)
    if has_hu and not decided:
        findings += torso_findings(case.name, volume.array[0], volume.space.spacing_mm)
    return CaseInspection(
        tuple(findings),
        scan_hashes(volume.array),
        volume.space.shape,
        volume.space.spacing_mm,
        axis_codes(volume.source.stored.direction),
        first[0],
        first[1],
        counts,
        labels_hash,
    )


def axis_codes(direction: Direction) -> str:
    """The patient directions in which a file's (column, row, slice) indices grow, as nibabel's codes.

    >>> axis_codes((1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    'LPS'
    """
    cosines = np.asarray(direction, float).reshape(3, 3)
    nearest = np.abs(cosines).argmax(axis=0)
    return "".join(
        ("LPS" if cosines[axis, stored] > 0 else "RAI")[axis] for stored, axis in enumerate(nearest.tolist())
    )


def _files(case: Case) -> Iterator[Path]:
    yield from case.images
    if case.labels is not None and case.role != "unlabelled":
        yield case.labels


def _unreadable(name: str, error: ScanError) -> Finding:
    """A ScanError as a finding; its kind is known by its words."""
    message = str(error)
    code = next((code for words, code in UNREADABLE.items() if words in message), "unreadable")
    return Finding(
        name, code, message.split("; expected")[0].split(": the file is probably")[0], WHAT_WAS_EXPECTED[code]
    )


def _remark(name: str, remark: str) -> Finding:
    """A remark of the reader on a header as a finding."""
    code = next((code for words, code in REMARKS.items() if words in remark), "header")
    return Finding(name, code, remark, WHAT_WAS_EXPECTED[code])


def _grid_findings(name: str, space: Space) -> Iterator[Finding]:
    if min(space.shape) < FEWEST_VOXELS:
        yield Finding(name, "few-voxels", f"{_times(space.shape)} voxels", f"at least {FEWEST_VOXELS} along each axis")
    if min(space.spacing_mm) < SPACING_MM[0] or max(space.spacing_mm) > SPACING_MM[1]:
        yield Finding(
            name, "extreme-spacing", f"spacing {_times(space.spacing_mm)} mm",
            f"{SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm",
        )  # fmt: skip
    extent = space.extent_mm
    if min(extent) < EXTENT_MM[0] or max(extent) > EXTENT_MM[1]:
        yield Finding(
            name, "extreme-extent", f"field of view {_times(extent)} mm", f"{EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm"
        )


def _channel_findings(
    case: Case, volume: Volume, label_set: LabelSet, findings: list[Finding]
) -> tuple[tuple[tuple[float, float], tuple[int, ...]], bool]:
    """Extreme values and coarse histogram of the first channel, and whether it holds plausible HU; adds findings."""
    kept: list[tuple[tuple[float, float], tuple[int, ...]]] = []
    has_hu = False
    for number, channel in enumerate(volume.array):
        lowest, highest = float(channel.min()), float(channel.max())
        is_ct = number < len(label_set.ct_channels) and label_set.ct_channels[number]
        coarse: tuple[int, ...] = ()
        found: list[Finding] = []
        if lowest == highest:
            found = [
                Finding(case.name, "constant", f"every voxel of {case.images[number]} is {lowest:g}", "a scan"),
            ]
        elif is_ct:
            counts = hu_histogram(channel)
            ends = (int((channel == channel.min()).sum()), int((channel == channel.max()).sum()))
            found = list(hounsfield_findings(case.name, counts, lowest, highest, ends))
            coarse = tuple(_coarse(counts).tolist())
        findings += found
        if number == 0:
            has_hu = is_ct and not any(one.severity == "error" for one in found)
        kept.append(((lowest, highest), coarse))
    return kept[0], has_hu


def _coarse(counts: np.ndarray) -> np.ndarray:
    """A histogram of whole HU summed over the bins of COARSE_HU; what lies outside is left out."""
    return np.add.reduceat(counts, COARSE_HU - LOWEST_HU)[:-1]


def _inspect_labels(
    case: Case, volume: Volume, label_set: LabelSet, has_hu: bool, findings: list[Finding]
) -> tuple[dict[int, int], str, bool]:
    """Voxels per id, the map's hash, and whether the organs tell how the patient lies; adds findings."""
    assert case.labels is not None
    try:
        map_ = read_volume(case.labels)
    except ScanError as error:
        findings.append(_unreadable(case.name, error))
        return {}, "", False
    counts = label_counts(map_.array[0])
    findings += number_findings(case, map_.array[0], counts)
    if not map_.space.same_grid(volume.space):
        findings.append(
            Finding(
                case.name, "grid-mismatch",
                f"{case.labels} is not on the grid of its image ({map_.space.difference(volume.space)})",
                "the grid of the image",
            )
        )  # fmt: skip
        return counts or {}, "", False
    if counts is None:
        return {}, "", False
    findings += drawn_findings(case, counts, label_set)
    if min(counts) < 0 or max(counts) > MAX_LABEL or set(counts) <= {0}:
        return counts, "", False
    labels = np.rint(map_.array[0]).astype(np.uint8) if map_.array.dtype != np.uint8 else map_.array[0]
    centres = label_centres(labels, volume.space.spacing_mm, label_set.names)
    pairs = tuple((label_set.names[right], label_set.names[left]) for right, left in label_set.left_right_pairs)
    found, decided = label_orientation_findings(case.name, centres, pairs)
    findings += found
    if has_hu:
        findings += place_findings(case.name, labels, volume.array[0], label_set)
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels).data)
    return counts, digest.hexdigest(), decided


def _times(values: tuple[float, ...]) -> str:
    return "×".join(f"{value:.4g}" for value in values)
