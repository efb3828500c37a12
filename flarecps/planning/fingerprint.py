"""What a data set looks like: shapes, spacings, orientations, and exact HU histograms, overall and per structure.

Every number is taken after cropping to the field of view, as preprocessing does. Merging is addition, so the result
is the same for any order of cases, number of workers, or shards. Labelled and unlabelled scans are pooled for all
that needs no labels; test scans are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flarecps.casework import Outcome, work_through
from flarecps.datasets.catalogue import Case, Catalogue, Role
from flarecps.errors import DatasetError
from flarecps.planning.agreement import check_labels
from flarecps.planning.histogram import Histogram
from flarecps.planning.hounsfield import FILL_HU, to_hu
from flarecps.typing import SpacingMm, Triple
from flarecps.volumes.cropping import crop, field_box
from flarecps.volumes.io import Volume, read_channels, read_labels

CT_CHANNEL = "ct"  # a channel of this name (any case) holds HU


@dataclass(frozen=True)
class CaseFingerprint:
    """One case, after cropping. Triples are canonical (slice, row, column)."""

    name: str
    role: Role
    shape_voxels: Triple
    spacing_mm: SpacingMm
    orientation: str  # of the stored voxel axes (column, row, slice), e.g. "LPS"
    volumes_ml: dict[int, float]  # by label id, structures present only; empty without labels
    histogram: Histogram | None  # HU of all voxels; None when the scan is not CT
    label_histograms: dict[int, Histogram]  # HU per structure present; empty without labels or CT


@dataclass(frozen=True)
class CaseShape:
    """The part of a case's fingerprint that is kept case by case."""

    name: str
    role: Role
    shape_voxels: Triple
    spacing_mm: SpacingMm
    orientation: str
    volumes_ml: dict[int, float]


@dataclass(frozen=True)
class Fingerprint:
    """A data set, or a part of one."""

    cases: tuple[CaseShape, ...] = ()  # sorted by name
    histogram: Histogram | None = None
    label_histograms: dict[int, Histogram] = field(default_factory=dict)

    @staticmethod
    def of(cases: Iterable[CaseFingerprint]) -> Fingerprint:
        """The fingerprint of several cases."""
        shapes: list[CaseShape] = []
        histogram: Histogram | None = None
        label_histograms: dict[int, Histogram] = {}
        for case in cases:
            shapes.append(
                CaseShape(case.name, case.role, case.shape_voxels, case.spacing_mm, case.orientation, case.volumes_ml)
            )
            histogram = _sum_or_none(histogram, case.histogram)
            label_histograms = _sums(label_histograms, case.label_histograms)
        return Fingerprint(tuple(sorted(shapes, key=lambda case: case.name)), histogram, label_histograms)

    def merge(self, other: Fingerprint) -> Fingerprint:
        """The fingerprint of both parts. Raises ``ValueError`` when they share a case."""
        shared = {case.name for case in self.cases} & {case.name for case in other.cases}
        if shared:
            raise ValueError(f"both parts hold the case '{min(shared)}'")
        return Fingerprint(
            cases=tuple(sorted(self.cases + other.cases, key=lambda case: case.name)),
            histogram=_sum_or_none(self.histogram, other.histogram),
            label_histograms=_sums(self.label_histograms, other.label_histograms),
        )

    @property
    def foreground(self) -> Histogram:
        """HU of all labelled structures together."""
        return sum(self.label_histograms.values(), Histogram.empty())

    def count(self, role: Role) -> int:
        """Number of cases with this role."""
        return sum(case.role == role for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """Plain types; ``from_json`` restores it exactly."""
        return {
            "cases": [
                {
                    "name": case.name,
                    "role": case.role,
                    "shape_voxels": list(case.shape_voxels),
                    "spacing_mm": list(case.spacing_mm),
                    "orientation": case.orientation,
                    "volumes_ml": {str(label): volume for label, volume in case.volumes_ml.items()},
                }
                for case in self.cases
            ],
            "histogram_hu": None if self.histogram is None else self.histogram.to_json(),
            "label_histograms_hu": {str(label): one.to_json() for label, one in self.label_histograms.items()},
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> Fingerprint:
        """The inverse of ``to_json``."""
        histogram = content["histogram_hu"]
        return Fingerprint(
            cases=tuple(
                CaseShape(
                    name=case["name"],
                    role=case["role"],
                    shape_voxels=tuple(case["shape_voxels"]),
                    spacing_mm=tuple(case["spacing_mm"]),
                    orientation=case["orientation"],
                    volumes_ml={int(label): volume for label, volume in case["volumes_ml"].items()},
                )
                for case in content["cases"]
            ),
            histogram=None if histogram is None else Histogram.from_json(histogram),
            label_histograms={
                int(label): Histogram.from_json(one) for label, one in content["label_histograms_hu"].items()
            },
        )


def is_ct(channels: Iterable[str]) -> bool:
    """Whether all channels hold Hounsfield units, by their names.

    >>> is_ct(["CT"]), is_ct(["T1", "CT"])
    (True, False)
    """
    return all(channel.strip().lower() == CT_CHANNEL for channel in channels)


def fingerprint_case(
    volume: Volume, labels: Volume | None, *, name: str, role: Role, ct: bool, known_labels: Iterable[int]
) -> CaseFingerprint:
    """The fingerprint of one scan; ``labels`` (1, S, H, W) only where they may be used.

    Raises ``ScanError`` when the labels' grid or values do not fit.
    """
    array = to_hu(volume.array) if ct else volume.array
    box = field_box(array, FILL_HU if ct else 0)
    array = crop(array, box)
    volumes: dict[int, float] = {}
    label_histograms: dict[int, Histogram] = {}
    if labels is not None:
        check_labels(volume, labels, set(known_labels), name)
        cropped = crop(labels.array, box)[0]
        counts = np.bincount(labels.array.ravel())
        ml_per_voxel = volume.space.voxel_volume_mm3 / 1000
        volumes = {int(label): float(counts[label] * ml_per_voxel) for label in np.flatnonzero(counts) if label}
        if ct:
            label_histograms = _histograms_by_label(array, cropped)
    return CaseFingerprint(
        name=name,
        role=role,
        shape_voxels=box.shape,
        spacing_mm=volume.space.spacing_mm,
        orientation=orientation_code(volume.source.stored.direction),
        volumes_ml=volumes,
        histogram=Histogram.of(array) if ct else None,
        label_histograms=label_histograms,
    )


def fingerprint_dataset(
    catalogue: Catalogue, workers: int, progress: bool = True
) -> tuple[Fingerprint, list[Outcome[CaseFingerprint]]]:
    """The fingerprint of all labelled and unlabelled scans, and the outcomes of the cases that could not be read.

    Raises ``DatasetError`` when no labelled case could be read.
    """
    ct, known = is_ct(catalogue.channels), tuple(catalogue.labels.values())
    cases = [(case.name, (case, ct, known)) for case in (*catalogue.labelled, *catalogue.unlabelled)]
    outcomes = work_through(_read_and_fingerprint, cases, workers, "Fingerprint", progress)
    fingerprint = Fingerprint.of(outcome.value for outcome in outcomes if outcome.value is not None)
    failures = [outcome for outcome in outcomes if outcome.value is None]
    if not fingerprint.count("labelled"):
        first = f"; the first failed: {failures[0].error}" if failures else ""
        raise DatasetError(f"{catalogue.root}: no labelled case could be read{first}")
    return fingerprint, failures


def orientation_code(direction: tuple[float, ...]) -> str:
    """Where the stored axes (column, row, slice) point, as in nibabel: "RAS", "LPS", …, from ITK's direction cosines.

    >>> orientation_code((1, 0, 0, 0, 1, 0, 0, 0, 1))
    'LPS'
    """
    cosines = np.asarray(direction, dtype=float).reshape(3, 3)
    letters = (("R", "L"), ("A", "P"), ("I", "S"))  # towards smaller and larger LPS x, y, z
    strongest = np.abs(cosines).argmax(axis=0)
    return "".join(letters[row][int(cosines[row, column] > 0)] for column, row in enumerate(strongest))


def _read_and_fingerprint(entry: tuple[Case, bool, tuple[int, ...]]) -> CaseFingerprint:
    case, ct, known = entry
    volume = read_channels(case.images)
    use_labels = case.role == "labelled" and case.labels is not None
    labels = read_labels(case.labels) if use_labels and case.labels is not None else None
    return fingerprint_case(volume, labels, name=case.name, role=case.role, ct=ct, known_labels=known)


def _histograms_by_label(array: np.ndarray, labels: np.ndarray) -> dict[int, Histogram]:
    """HU histogram of every structure in ``labels`` (S, H, W), channels of ``array`` pooled."""
    inside = labels > 0
    ids = labels[inside]
    histograms: dict[int, Histogram] = {}
    for channel in array:
        values = channel[inside]
        for label in np.unique(ids):
            one = Histogram.of(values[ids == label])
            histograms[int(label)] = histograms.get(int(label), Histogram.empty()) + one
    return histograms


def _sums(one: dict[int, Histogram], other: dict[int, Histogram]) -> dict[int, Histogram]:
    return {
        label: one.get(label, Histogram.empty()) + other.get(label, Histogram.empty())
        for label in sorted({*one, *other})
    }


def _sum_or_none(one: Histogram | None, other: Histogram | None) -> Histogram | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
