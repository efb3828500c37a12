"""The data set doctor: what would break training, what is doubtful, what is good to know, case by case."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flarecps.casework import Outcome, work_through
from flarecps.datasets.catalogue import Catalogue
from flarecps.datasets.examination import Examination, Finding, LabelSet, Severity, examine

__all__ = ["Finding", "Inspection", "Severity", "inspect_catalogue", "inspection_to_json"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Inspection:
    """All findings, worst first and then by case, and a summary in plain JSON types with units in its names."""

    findings: tuple[Finding, ...]
    summary: dict[str, Any]

    @property
    def breaks_training(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)


def inspect_catalogue(catalogue: Catalogue, workers: int = 1, progress: bool = True) -> Inspection:
    """Read every image and every label map that training or testing uses, and say what is wrong.

    Errors would break training or make its result false: unreadable or truncated files, NaN, grids that differ, label
    values dataset.json does not know, swapped sides, a scan that is in training and test at once. Warnings are worth
    a look; notes are for the record. One bad case never hides the others.
    """
    label_set = LabelSet(
        {label: name for name, label in catalogue.labels.items()},
        catalogue.left_right_pairs,
        catalogue.channels[0].upper() == "CT",
    )
    cases = [(case.name, (case, label_set)) for case in catalogue.cases]
    outcomes = work_through(examine, cases, workers, "Inspecting", progress)
    examined = {one.name: one.value for one in outcomes if one.value is not None}
    findings = [finding for one in examined.values() for finding in one.findings]
    findings += [_stopped(one) for one in outcomes if one.error is not None]
    findings += _duplicates(catalogue, examined)
    findings += _never_drawn(catalogue, examined)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.case, finding.code))
    return Inspection(tuple(findings), _summary(catalogue, examined, findings))


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """The inspection as plain JSON types."""
    return {
        "format": "flarecps-inspection",
        "version": 1,
        "breaks_training": inspection.breaks_training,
        "summary": inspection.summary,
        "findings": [asdict(finding) for finding in inspection.findings],
    }


def _stopped(outcome: Outcome[Examination]) -> Finding:
    return Finding(outcome.name, "error", "unreadable", f"could not be examined: {outcome.error}")


def _duplicates(catalogue: Catalogue, examined: dict[str, Examination]) -> list[Finding]:
    """Scans with equal voxels: a leak when training (with or without labels) and test or validation share one."""
    held_out = set(catalogue.validation_names)
    roles = {case.name: "validation" if case.name in held_out else case.role for case in catalogue.cases}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, one in examined.items():
        if one.content:
            groups[one.content].append(name)
    findings = []
    for names in groups.values():
        if len(names) < 2:
            continue
        listed = ", ".join(f"{name} ({roles[name]})" for name in names)
        kinds = {roles[name] for name in names}
        leak = kinds & {"labelled", "unlabelled"} and kinds & {"test", "validation"}
        findings.append(
            Finding(names[0], "error", "leak",
                    f"the same scan is used in training and to judge it: {listed}: remove it from one of the two")
            if leak
            else Finding(names[0], "warning", "duplicate", f"the same scan several times: {listed}: keep one")
        )  # fmt: skip
    return findings


def _never_drawn(catalogue: Catalogue, examined: dict[str, Examination]) -> list[Finding]:
    """Structures that no labelled case holds; nothing can be learned about them."""
    labelled = [examined[case.name].label_voxels for case in catalogue.labelled if case.name in examined]
    if not any(labelled):
        return []
    drawn = {label for counts in labelled for label in counts}
    return [
        Finding("", "error", "never-drawn",
                f"{name} (id {label}) is in no labelled case: remove it from dataset.json, or label it somewhere")
        for name, label in catalogue.labels.items()
        if label and label not in drawn
    ]  # fmt: skip


def _summary(catalogue: Catalogue, examined: dict[str, Examination], findings: list[Finding]) -> dict[str, Any]:
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
    }
    if readable:
        summary["shape_voxels"] = _spread([one.shape_voxels for one in readable], int)
        summary["spacing_mm"] = _spread([one.spacing_mm for one in readable], float)
        values = [one.intensities for one in readable if one.intensities is not None]
        summary["intensities"] = {"lowest": min(low for low, _ in values), "highest": max(high for _, high in values)}
    return summary


def _spread(triples: list[Any], kind: type) -> dict[str, list[Any]]:
    """Lowest, median and highest per axis (slice, row, column)."""
    table = np.asarray(triples, float)
    rows = {"lowest": table.min(axis=0), "median": np.median(table, axis=0), "highest": table.max(axis=0)}
    return {name: [kind(round(float(value), 4)) for value in row] for name, row in rows.items()}
