"""The doctor's page: one self-contained HTML file that says what is wrong with a data set, and shows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from flarecps.anatomy import Organ, organs_of
from flarecps.atomic import write_text
from flarecps.batch_processing import process_cases
from flarecps.datasets.examination import COARSE_HU
from flarecps.datasets.findings import KINDS, SEVERITIES, Finding
from flarecps.datasets.inspection import Inspection, coarse_histograms, volumes_ml
from flarecps.reporting.doctor_pictures import (
    ROLES,
    PictureOrder,
    case_picture,
    histogram_figure,
    scatter_figure,
    volumes_figure,
)
from flarecps.reporting.page import page_text
from flarecps.reporting.pictures import inline_svg

TEMPLATE = "doctor.html"
MOST_PICTURES = 48  # about 20 KB each
SOUND_PICTURES = 12  # of these, for cases without any finding (more where there are few findings)
MOST_ROWS = 400  # of findings; the JSON has all
MOST_NAMES = 12  # of cases in a row of the summary
MOST_STRUCTURES = 40  # in the chart of volumes


@dataclass(frozen=True)
class Portrait:
    """One case of the gallery: what is known of it, its findings, and its picture where it could be drawn."""

    name: str
    role: str
    facts: str
    findings: tuple[Finding, ...]
    picture: str | None  # data URI
    remark: str  # why there is no picture, or no labels on it


def write_doctor_page(out: Path, inspection: Inspection, workers: int = 1, progress: bool = True) -> None:
    """Write the page to ``out`` atomically; scans are read again for the pictures, at most ``MOST_PICTURES``."""
    page = doctor_page(inspection, portraits(inspection, workers, progress))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def chosen_cases(inspection: Inspection) -> list[str]:
    """The cases to be shown: with findings first, worst first, then an even sample of the others."""
    names = [case.name for case in inspection.catalogue.cases]
    found = [name for name in dict.fromkeys(finding.case for finding in inspection.findings) if name in set(names)]
    sound = [name for name in names if name not in set(found)]
    room = MOST_PICTURES - min(len(found), MOST_PICTURES - min(len(sound), SOUND_PICTURES))
    count = min(len(sound), room)
    sample = [sound[index * len(sound) // count] for index in range(count)]
    return found[: MOST_PICTURES - count] + sample


def portraits(inspection: Inspection, workers: int = 1, progress: bool = True) -> list[Portrait]:
    """The gallery's cases, drawn in parallel."""
    cases = {case.name: case for case in inspection.catalogue.cases}
    is_ct = inspection.catalogue.channels[0].upper() == "CT"
    organs = organs_of(inspection.catalogue.labels)
    by_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in inspection.findings:
        by_case[finding.case].append(finding)
    chosen = chosen_cases(inspection)
    orders = []
    for name in chosen:
        in_hu = is_ct and not {one.code for one in by_case[name]} & NOT_IN_HU
        orders.append((name, PictureOrder(cases[name], organs, in_hu)))
    drawn = {one.name: one for one in process_cases(case_picture, orders, workers, "Drawing", progress)}
    shown = []
    for name in chosen:
        picture, has_labels = drawn[name].value or (None, False)
        wants_labels = cases[name].labels is not None and cases[name].role != "unlabelled"
        remark = "" if has_labels or not wants_labels else "labels can’t be laid over it"
        shown.append(
            Portrait(
                name, inspection.role_of(name), _facts(inspection, name), tuple(by_case[name]), picture,
                remark if picture else "no picture: the scan can’t be read",
            )
        )  # fmt: skip
    return shown


NOT_IN_HU = {"constant", "not-rescaled", "rescaled-twice", "normalised", "eight-bit", "not-ct"}


def doctor_page(inspection: Inspection, shown: Sequence[Portrait]) -> str:
    """The page as text."""
    return page_text(
        TEMPLATE,
        {
            "summary": inspection.summary,
            "breaks": inspection.breaks_training,
            "worst": next((one for one in SEVERITIES if inspection.summary["findings"][one]), None),
            "kinds": _kinds(inspection.findings),
            "findings": inspection.findings[:MOST_ROWS],
            "findings_left_out": max(0, len(inspection.findings) - MOST_ROWS),
            "titles": {code: kind.title for code, kind in KINDS.items()},
            "renumbering": inspection.renumbering,
            "annotated": _annotated_words(inspection),
            "organs": _legend(inspection, shown),
            "portraits": shown,
            "cases_left_out": len(inspection.catalogue.cases) - len(shown),
            "charts": _charts(inspection),
            "roles": [(role, index) for index, role in enumerate(ROLES) if _any_of(inspection, role)],
        },
    )


def _annotated_words(inspection: Inspection) -> str:
    """The first lists of drawn ids that are proposed for splits.json; empty without any."""
    known = inspection.catalogue.split.annotated
    proposed = inspection.annotated_proposal().get("annotated", {})
    lines = [f'  "{name}": {ids}' for name, ids in proposed.items() if name not in known]
    if not lines:
        return ""
    more = [f"  … {len(lines) - MOST_NAMES} more"] if len(lines) > MOST_NAMES else []
    return '"annotated": {\n' + ",\n".join(lines[:MOST_NAMES] + more) + "\n}"


def _kinds(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each kind that was found, worst first, with its cases."""
    cases: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        cases[finding.code].append(finding.case or "the data set")
    rows = []
    for code, names in cases.items():
        unique = list(dict.fromkeys(names))
        rows.append(
            {"code": code, "kind": KINDS[code], "cases": unique[:MOST_NAMES], "more": max(0, len(unique) - MOST_NAMES),
             "count": len(names)}
        )  # fmt: skip
    return rows


def _facts(inspection: Inspection, name: str) -> str:
    one = inspection.examined.get(name)
    if one is None or one.shape_voxels is None or one.spacing_mm is None or one.intensities is None:
        return ""
    shape = "×".join(str(edge) for edge in one.shape_voxels)
    spacing = "×".join(f"{edge:.3g}" for edge in one.spacing_mm)
    return f"{shape} voxels of {spacing} mm · {one.intensities[0]:g} to {one.intensities[1]:g}"


def _legend(inspection: Inspection, shown: Sequence[Portrait]) -> tuple[Organ, ...]:
    """The organs whose colours can be seen in the gallery."""
    seen = {label for one in shown if one.name in inspection.examined
            for label in inspection.examined[one.name].label_voxels}  # fmt: skip
    return tuple(organ for organ in organs_of(inspection.catalogue.labels) if organ.id in seen)


def _any_of(inspection: Inspection, role: str) -> bool:
    return any(inspection.role_of(name) == role for name in inspection.examined)


CHART_ALT = {
    "histogram": "Share of voxels over HU, without air, by role.",
    "spacing": "Spacing of every scan.",
    "extent": "Field of view of every scan.",
    "volumes": "Volume of every structure in every case, in millilitres.",
}


def overview_figures(inspection: Inspection) -> dict[str, Figure]:
    """The charts of a whole data set by name (``CHART_ALT``); one without data is left out."""
    spacing: dict[str, list[tuple[float, float]]] = defaultdict(list)
    extent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, one in inspection.examined.items():
        if one.spacing_mm is not None and one.shape_voxels is not None:
            role = inspection.role_of(name)
            spacing[role].append((one.spacing_mm[2], one.spacing_mm[0]))
            extent[role].append((one.spacing_mm[2] * one.shape_voxels[2], one.spacing_mm[0] * one.shape_voxels[0]))
    figures = {}
    histograms = coarse_histograms(inspection)
    if histograms:
        figures["histogram"] = histogram_figure(COARSE_HU, histograms)
    if spacing:
        figures["spacing"] = scatter_figure(spacing, "in a slice, mm", "between slices, mm")
        figures["extent"] = scatter_figure(extent, "width, mm", "height, mm")
    volumes = _volumes(inspection)
    if volumes:
        figures["volumes"] = volumes_figure(volumes)
    return figures


def _charts(inspection: Inspection) -> dict[str, Markup]:
    figures = overview_figures(inspection)
    return {name: Markup(inline_svg(figure, CHART_ALT[name], name)) for name, figure in figures.items()}


def _volumes(inspection: Inspection) -> Mapping[str, Mapping[str, list[float]]]:
    """Structure -> role -> ml of every case that holds it; the first ``MOST_STRUCTURES`` structures."""
    names = {label: name for name, label in inspection.catalogue.labels.items()}
    found: dict[str, dict[str, list[float]]] = {name: {} for label, name in names.items() if label}
    for case, one in inspection.examined.items():
        for structure, ml in volumes_ml(one, names).items():
            found[structure].setdefault(inspection.role_of(case), []).append(ml)
    return {name: by_role for name, by_role in list(found.items())[:MOST_STRUCTURES] if by_role}
