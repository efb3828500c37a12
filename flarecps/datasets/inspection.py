"""The data set doctor: what would break training, what is doubtful, what is good to know, case by case."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.batch_processing import process_cases
from flarecps.datasets.case_checks import DIRECTIONS
from flarecps.datasets.case_inspection import COARSE_HU, CaseInspection, LabelSet, inspect_case
from flarecps.datasets.catalogue import Catalogue, read_catalogue
from flarecps.datasets.duplicates import find_duplicates
from flarecps.datasets.findings import SEVERITIES, Finding, FindingCollector, Severity
from flarecps.datasets.relabelling import Renumbering, propose_renumbering
from flarecps.datasets.splits import split_to_json

__all__ = ["Finding", "Inspection", "Severity", "inspect_catalogue", "inspect_folder", "inspection_to_json"]

FEWEST_ORIENTATIONS = 20  # cases, before one that is stored differently is odd
ODD_SHARE = 0.05
FORMAT = "flarecps-inspection"
VERSION = 3


@dataclass(frozen=True)
class Inspection:
    """All findings, worst first; what every case showed; a summary in plain JSON types; and the proposals."""

    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    catalogue: Catalogue
    examined: Mapping[str, CaseInspection]
    renumbering: Renumbering | None = None

    @property
    def breaks_training(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def role_of(self, name: str) -> str:
        """labelled, validation, unlabelled or test; empty for a name that is no case."""
        if name in self.catalogue.validation_names:
            return "validation"
        return next((case.role for case in self.catalogue.cases if case.name == name), "")

    def annotated_proposal(self) -> dict[str, Any]:
        """The split with, for each labelled case that lacks a structure, the ids that are drawn in it.

        It is what splits.json holds, to be reviewed: a structure that the patient does not have belongs on the list
        too. Cases already listed keep their list.
        """
        split = self.catalogue.split
        known = set(self.catalogue.labels.values()) - {0}
        annotated = dict(split.annotated)
        for name in split.labelled + split.validation:
            drawn = known & set(self.examined[name].label_voxels) if name in self.examined else set()
            if drawn and drawn != known and name not in annotated:
                annotated[name] = tuple(sorted(drawn))
        return split_to_json(replace(split, annotated=annotated))


def inspect_folder(
    dataset: Path | str, split: str | None = None, workers: int = 1, progress: bool = True
) -> Inspection:
    """The inspection of a data set folder; its own faults (labels without image, …) are findings too.

    Raises DatasetError where there is no data set to speak of: no folder, no images, no labels, no dataset.json.
    """
    complaints = FindingCollector(collect=True)
    catalogue = read_catalogue(dataset, split, complaints)
    return inspect_catalogue(catalogue, workers, progress, tuple(complaints.findings))


def inspect_catalogue(
    catalogue: Catalogue, workers: int = 1, progress: bool = True, already: tuple[Finding, ...] = ()
) -> Inspection:
    """Read every image and every label map that training or testing uses, and say what is wrong.

    Errors would break training or make its result false; warnings are worth a look; notes are for the record
    (`flarecps.datasets.findings.KINDS` has them all). One bad case never hides the others. ``already``: findings
    about the folder that are to be listed too.
    """
    label_set = LabelSet(
        {label: name for name, label in catalogue.labels.items()},
        catalogue.left_right_pairs,
        tuple(channel.upper() == "CT" for channel in catalogue.channels),
    )
    cases = [(case.name, (case, label_set)) for case in catalogue.cases]
    outcomes = process_cases(inspect_case, cases, workers, "Inspecting", progress)
    examined = {one.name: one.value for one in outcomes if one.value is not None}
    findings = [*already, *(finding for one in examined.values() for finding in one.findings)]
    findings += [
        Finding(one.name, "not-examined", f"could not be examined: {one.error}", "a case like the others")
        for one in outcomes
        if one.error is not None
    ]
    findings += _duplicate_findings(catalogue, examined)
    findings += _never_drawn(catalogue, examined)
    findings += _absent(catalogue, examined)
    findings += _odd_orientations(examined)
    findings.sort(key=lambda one: (SEVERITIES.index(one.severity), one.code, one.case))
    root = str(catalogue.root)  # paths are told as seen from there
    findings = [replace(one, found=one.found.replace(f"{root}/", "").replace(f"{root}: ", "")) for one in findings]
    maps = [tuple(one.label_voxels) for one in examined.values() if one.label_voxels]
    renumbering = propose_renumbering(catalogue.labels, maps, catalogue.left_right_pairs, catalogue.label_folders)
    listed = {label for case in catalogue.cases for label in case.annotated or ()}
    if renumbering is not None and listed & set(renumbering.ids):
        also = '; change the ids under "annotated" in splits.json in the same way'
        renumbering = replace(renumbering, reason=renumbering.reason + also)
    return Inspection(tuple(findings), _summary(catalogue, examined, findings), catalogue, examined, renumbering)


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """The inspection as plain JSON types."""
    names = {label: name for name, label in inspection.catalogue.labels.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "breaks_training": inspection.breaks_training,
        "summary": inspection.summary,
        "findings": [finding.to_json() for finding in inspection.findings],
        "renumbering": None if inspection.renumbering is None else inspection.renumbering.to_json(),
        "annotated": inspection.annotated_proposal().get("annotated", {}),
        "cases": {
            case.name: _case_record(inspection.role_of(case.name), inspection.examined[case.name], names)
            for case in inspection.catalogue.cases
            if case.name in inspection.examined
        },
    }


def volumes_ml(one: CaseInspection, names: Mapping[int, str]) -> dict[str, float]:
    """The volume of every known structure of a case in millilitres; {} without labels or grid."""
    if one.spacing_mm is None:
        return {}
    ml = float(np.prod(one.spacing_mm)) / 1000
    return {
        names[label]: round(voxels * ml, 3) for label, voxels in one.label_voxels.items() if label and label in names
    }


def _case_record(role: str, one: CaseInspection, names: Mapping[int, str]) -> dict[str, Any]:
    record: dict[str, Any] = {"role": role, "readable": one.shape_voxels is not None}
    if one.shape_voxels is not None and one.spacing_mm is not None and one.intensities is not None:
        record |= {
            "shape_voxels": list(one.shape_voxels),
            "spacing_mm": [round(edge, 5) for edge in one.spacing_mm],
            "stored_as": one.stored_as,
            "lowest": one.intensities[0],
            "highest": one.intensities[1],
            "content_sha256": one.hashes.exact,
        }
    if one.label_voxels:
        record["volumes_ml"] = volumes_ml(one, names)
    return record


def _duplicate_findings(catalogue: Catalogue, examined: Mapping[str, CaseInspection]) -> Iterator[Finding]:
    """Scans that are the same scan, and label maps that belong to two different ones."""
    held_out = set(catalogue.validation_names)
    roles = {case.name: "validation" if case.name in held_out else case.role for case in catalogue.cases}
    order = ("labelled", "unlabelled", "validation", "test")
    same_scan: dict[str, int] = {}
    for number, (group, alike) in enumerate(find_duplicates({name: one.hashes for name, one in examined.items()})):
        names = sorted(group, key=lambda name: order.index(roles[name]))
        same_scan |= dict.fromkeys(names, number)
        kinds = {roles[name] for name in names}
        listed = ", ".join(f"{name} ({roles[name]})" for name in names)
        if kinds & {"labelled", "unlabelled"} and kinds & {"test", "validation"}:
            code, expected = "leak", "training and judged scans to be different"
        elif kinds == {"labelled", "unlabelled"}:
            code, expected = "pool-overlap", "each scan in one role"
        else:
            code, expected = "duplicate", "each scan once"
        yield Finding(names[0], code, f"the same scan: {listed}: {alike}", expected)
    owners: dict[str, list[str]] = defaultdict(list)
    for name, one in examined.items():
        if one.labels_hash:
            owners[one.labels_hash].append(name)
    for names in owners.values():
        different = len({same_scan.get(name, -1 - index) for index, name in enumerate(names)})
        if different > 1:
            yield Finding(names[0], "same-labels", f"{', '.join(names)} have equal labels", "each scan to have its own")


def _never_drawn(catalogue: Catalogue, examined: Mapping[str, CaseInspection]) -> list[Finding]:
    """Structures that no labelled case holds; nothing can be learned about them."""
    labelled = [examined[case.name].label_voxels for case in catalogue.labelled if case.name in examined]
    if not any(labelled):
        return []
    drawn = {label for counts in labelled for label in counts}
    return [
        Finding("", "never-drawn", f"{name} (id {label}) is in no labelled case", "every structure in some case")
        for name, label in catalogue.labels.items()
        if label and label not in drawn
    ]


def _absent(catalogue: Catalogue, examined: Mapping[str, CaseInspection]) -> Iterator[Finding]:
    """Structures that a case should hold and does not, unless no case holds them."""
    drawn = {label for one in examined.values() for label in one.label_voxels}
    for case in catalogue.cases:
        counts = examined[case.name].label_voxels if case.name in examined else {}
        if set(counts) <= {0}:
            continue
        annotated = set(catalogue.labels.values()) if case.annotated is None else set(case.annotated)
        absent = [name for name, label in catalogue.labels.items() if label in (annotated & drawn) - {0} - set(counts)]
        if absent:
            yield Finding(case.name, "absent", f"no voxel of {', '.join(absent)}", "every structure of the set")


def _odd_orientations(examined: Mapping[str, CaseInspection]) -> Iterator[Finding]:
    """The few cases that are stored in another order than nearly all."""
    stored = {name: one.stored_as for name, one in examined.items() if one.stored_as}
    counts = Counter(stored.values())
    if len(stored) < FEWEST_ORIENTATIONS or not counts:
        return
    usual, most = counts.most_common(1)[0]

    def handedness(codes: str) -> float:
        """+1 for a right-handed storage order, -1 for a mirrored one (column, row, slice codes such as "RAS")."""
        return float(
            np.sign(np.linalg.det([[(c == up) - (c == down) for up, down in ("RL", "AP", "SI")] for c in codes]))
        )

    if len(stored) - most <= ODD_SHARE * len(stored):
        for name, codes in stored.items():
            if codes != usual:
                mirrored = " and mirror-handed" if handedness(codes) != handedness(usual) else ""
                yield Finding(
                    name, "odd-orientation", f"stored as {codes}{mirrored}, {most} of {len(stored)} as {usual}", usual
                )


def _summary(catalogue: Catalogue, examined: Mapping[str, CaseInspection], findings: list[Finding]) -> dict[str, Any]:
    readable = [one for one in examined.values() if one.shape_voxels is not None]
    with_labels = [one.label_voxels for one in examined.values() if one.label_voxels]
    summary: dict[str, Any] = {
        "dataset": catalogue.name,
        "layout": catalogue.layout,
        "channels": list(catalogue.channels),
        "cases": {
            "labelled": len(catalogue.labelled),
            "of them for validation": len(catalogue.validation_names),
            "unlabelled": len(catalogue.unlabelled),
            "test": len(catalogue.test),
        },
        "findings": {one: sum(finding.severity == one for finding in findings) for one in SEVERITIES},
        "cases_with_structure": {
            name: sum(label in counts for counts in with_labels) for name, label in catalogue.labels.items() if label
        },
        "cases_with_labels": len(with_labels),
        "stored_as": dict(Counter(one.stored_as for one in readable).most_common()),
        "not_judged": {
            direction: names
            for direction in DIRECTIONS
            if (names := [name for name, one in examined.items() if direction in one.not_judged])
        },
    }
    if readable:
        shapes, spacings = (
            np.array([getattr(one, name) for one in readable], float) for name in ("shape_voxels", "spacing_mm")
        )
        summary["shape_voxels"] = _spread(shapes, int)
        summary["spacing_mm"] = _spread(spacings, float)
        summary["extent_mm"] = _spread(shapes * spacings, float)
        values = [one.intensities for one in readable if one.intensities is not None]
        summary["intensities"] = {"lowest": min(low for low, _ in values), "highest": max(high for _, high in values)}
    return summary


def _spread(table: np.ndarray, kind: type) -> dict[str, list[Any]]:
    """Lowest, median and highest per axis (slice, row, column) of a table (case, axis)."""
    rows = {"lowest": table.min(axis=0), "median": np.median(table, axis=0), "highest": table.max(axis=0)}
    return {name: [kind(round(float(value), 4)) for value in row] for name, row in rows.items()}


def coarse_histograms(inspection: Inspection) -> dict[str, np.ndarray]:
    """Voxels per bin of ``COARSE_HU``, summed over the CTs of each role; roles without any are left out."""
    sums: dict[str, np.ndarray] = {}
    for name, one in inspection.examined.items():
        if one.histogram:
            role = inspection.role_of(name)
            sums[role] = sums.get(role, np.zeros(len(COARSE_HU) - 1)) + np.asarray(one.histogram, float)
    return sums
