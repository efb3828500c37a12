"""The doctor's page: one self-contained HTML file that says what is wrong with a data set, and shows it.

It shows three slices of each of the cases that matter, and charts of the whole data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from flarecps.anatomy import Organ, organs_of
from flarecps.atomic import write_text
from flarecps.batch_processing import process_cases
from flarecps.datasets.case_inspection import COARSE_HU
from flarecps.datasets.findings import KINDS, SEVERITIES, Finding
from flarecps.datasets.inspection import Inspection, coarse_histograms, volumes_ml
from flarecps.datasets.layouts import Case
from flarecps.errors import ScanError
from flarecps.reporting.overlays import display_window
from flarecps.reporting.page import render_page
from flarecps.reporting.plotting import (
    GRID,
    TEXT,
    inline_svg,
    logarithmic,
    name_rows,
    new_figure,
    run_colour,
    style_axes,
)
from flarecps.reporting.thumbnails import thumbnail
from flarecps.typing import LabelArray
from flarecps.volumes.io import Volume, on_grid, read_channels, read_volume

MOST_PICTURES = 48  # about 20 KB each
SOUND_PICTURES = 12  # of these, for cases without any finding (more where there are few findings)
MOST_ROWS = 400  # of findings; the JSON has all
MOST_NAMES = 12  # of cases in a row of the summary
MOST_STRUCTURES = 40  # in the chart of volumes
NOT_IN_HU = {"constant", "not-rescaled", "rescaled-twice", "normalised", "eight-bit", "not-ct"}
SMOOTH_BINS = 3
ROLES = ("labelled", "unlabelled", "test", "validation")  # in the order of their colours
LARGEST_LABEL = 255


def write_doctor_page(out: Path, inspection: Inspection, workers: int = 1, progress: bool = True) -> None:
    """Write the page to ``out`` atomically; scans are read again for the pictures, at most ``MOST_PICTURES``."""
    page = doctor_page(inspection, gallery_cases(inspection, workers, progress))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def sampled_cases(inspection: Inspection) -> list[str]:
    """The cases to be shown: with findings first, worst first, then an even sample of the others."""
    names = [case.name for case in inspection.catalogue.cases]
    found = [name for name in dict.fromkeys(finding.case for finding in inspection.findings) if name in set(names)]
    sound = [name for name in names if name not in set(found)]
    room = MOST_PICTURES - min(len(found), MOST_PICTURES - min(len(sound), SOUND_PICTURES))
    count = min(len(sound), room)
    sample = [sound[index * len(sound) // count] for index in range(count)]
    return found[: MOST_PICTURES - count] + sample


def gallery_cases(inspection: Inspection, workers: int = 1, progress: bool = True) -> list[dict[str, Any]]:
    """The gallery's cases, drawn in parallel: name, role, facts, findings, and the picture as a data URI or None.

    ``remark`` says why there is no picture, or no labels on it; it is empty where there is nothing to say.
    """
    cases = {case.name: case for case in inspection.catalogue.cases}
    is_ct = inspection.catalogue.channels[0].upper() == "CT"
    organs = organs_of(inspection.catalogue.labels)
    by_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in inspection.findings:
        by_case[finding.case].append(finding)
    names = sampled_cases(inspection)
    tasks = []
    for name in names:
        in_hu = is_ct and not {one.code for one in by_case[name]} & NOT_IN_HU
        tasks.append((name, (cases[name], organs, in_hu)))
    drawn = {one.name: one for one in process_cases(_case_thumbnail, tasks, workers, "Drawing", progress)}
    shown = []
    for name in names:
        picture, has_labels = drawn[name].value or (None, False)
        wants_labels = cases[name].labels is not None and cases[name].role != "unlabelled"
        remark = "" if has_labels or not wants_labels else "labels can’t be laid over it"
        shown.append(
            {
                "name": name,
                "role": inspection.role_of(name),
                "facts": _facts(inspection, name),
                "findings": by_case[name],
                "picture": picture,
                "remark": remark if picture else "no picture: the scan can’t be read",
            }
        )
    return shown


def doctor_page(inspection: Inspection, shown: Sequence[Mapping[str, Any]]) -> str:
    """The page as text."""
    roles = {inspection.role_of(name) for name in inspection.examined}
    charts = overview_figures(inspection)
    examined = [inspection.examined[one["name"]] for one in shown if one["name"] in inspection.examined]
    seen = {label for one in examined for label in one.label_voxels}  # colours that can be seen in the gallery
    return render_page(
        "doctor.html",
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
            "organs": [organ for organ in organs_of(inspection.catalogue.labels) if organ.id in seen],
            "gallery": shown,
            "cases_left_out": len(inspection.catalogue.cases) - len(shown),
            "charts": {name: inline_svg(chart, _CHART_ALT[name], name) for name, chart in charts.items()},
            "roles": [(role, index) for index, role in enumerate(ROLES) if role in roles],
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
        row = {"code": code, "kind": KINDS[code], "cases": unique[:MOST_NAMES], "count": len(names)}
        rows.append(row | {"more": max(0, len(unique) - MOST_NAMES)})
    return rows


def _facts(inspection: Inspection, name: str) -> str:
    one = inspection.examined.get(name)
    if one is None or one.shape_voxels is None or one.spacing_mm is None or one.intensities is None:
        return ""
    shape = "×".join(str(edge) for edge in one.shape_voxels)
    spacing = "×".join(f"{edge:.3g}" for edge in one.spacing_mm)
    return f"{shape} voxels of {spacing} mm · {one.intensities[0]:g} to {one.intensities[1]:g}"


_CHART_ALT = {
    "histogram": "Share of voxels over HU, without air, by role.",
    "spacing": "Spacing of every scan.",
    "extent": "Field of view of every scan.",
    "volumes": "Volume of every structure in every case, in millilitres.",
}


def overview_figures(inspection: Inspection) -> dict[str, Figure]:
    """The charts of a whole data set by name (``_CHART_ALT``); one without data is left out."""
    spacing: dict[str, list[tuple[float, float]]] = defaultdict(list)
    extent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, one in inspection.examined.items():
        if one.spacing_mm is not None and one.shape_voxels is not None:
            role = inspection.role_of(name)
            spacing[role].append((one.spacing_mm[2], one.spacing_mm[0]))
            extent[role].append((one.spacing_mm[2] * one.shape_voxels[2], one.spacing_mm[0] * one.shape_voxels[0]))
    figures = {}
    if histograms := coarse_histograms(inspection):
        figures["histogram"] = _histogram_figure(histograms)
    if spacing:
        figures["spacing"] = _scatter_figure(spacing, "in a slice, mm", "between slices, mm")
        figures["extent"] = _scatter_figure(extent, "width, mm", "height, mm")
    if volumes := _volumes(inspection):
        figures["volumes"] = _volumes_figure(volumes)
    return figures


def _volumes(inspection: Inspection) -> Mapping[str, Mapping[str, list[float]]]:
    """Structure -> role -> ml of every case that holds it; the first ``MOST_STRUCTURES`` structures."""
    names = {label: name for name, label in inspection.catalogue.labels.items()}
    found: dict[str, dict[str, list[float]]] = {name: {} for label, name in names.items() if label}
    for case, one in inspection.examined.items():
        for structure, ml in volumes_ml(one, names).items():
            found[structure].setdefault(inspection.role_of(case), []).append(ml)
    return {name: by_role for name, by_role in list(found.items())[:MOST_STRUCTURES] if by_role}


def _case_thumbnail(task: tuple[Case, tuple[Organ, ...], bool]) -> tuple[str, bool]:
    """Axial, coronal and sagittal slice of a case side by side as a data URI (JPEG), and whether labels are on it.

    With labels the slices are those that show most of them, otherwise the middle ones. Raises ScanError.

    Args:
        task: the case, the organs, and whether it is drawn in the abdominal window; otherwise from its 1st to its 99th
            percentile.
    """
    case, organs, in_hu = task
    volume = read_channels(case.images)
    image = volume.array[0]
    labels = _labels_of(case, volume)
    window = display_window(image[:: max(1, len(image) // 32)], in_hu)
    return thumbnail(image, volume.space.spacing_mm, organs, window, labels), labels is not None


def _labels_of(case: Case, volume: Volume) -> LabelArray | None:
    """The labels of a case if they can be laid over its image, else None; those of unlabelled cases stay closed."""
    if case.labels is None or case.role == "unlabelled":
        return None
    try:
        map_ = on_grid(read_volume(case.labels), volume.space, "its image")
    except ScanError:
        return None
    array = np.rint(map_.array[0])
    drawn: LabelArray = np.where((array > 0) & (array <= LARGEST_LABEL), array, 0).astype(np.uint8)
    return drawn if drawn.any() else None


def _histogram_figure(sums: Mapping[str, np.ndarray]) -> Figure:
    """The share of voxels over HU, one line per role, without air's peak (it would flatten everything else)."""
    figure, axes = _chart()
    middles = (COARSE_HU[:-1] + COARSE_HU[1:]) / 2
    shown = middles > -900
    for role, counts in sums.items():
        smooth = np.convolve(counts, np.ones(SMOOTH_BINS) / SMOOTH_BINS, mode="same")[shown]
        colour = run_colour(ROLES.index(role))
        share = 100 * smooth / max(1.0, counts[shown].sum())
        axes.plot(middles[shown], share, color=colour, linewidth=1.6)
        axes.fill_between(middles[shown], share, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(0, None)
    axes.set_xlim(-900, 1000)
    axes.set_xlabel("HU")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    return figure


def _scatter_figure(points: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> Figure:
    """One dot per case, coloured by role; axes from 0."""
    figure, axes = _chart(grid="both")
    for role, pairs in points.items():
        table = np.asarray(pairs, float)
        _dots(axes, table[:, 0], table[:, 1], role, size=22 if len(table) < 200 else 9)
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure


def _volumes_figure(volumes: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Structure volumes in ml on a logarithmic axis: a row per structure, a dot per case, coloured by role.

    ``volumes``: structure -> role -> ml. A short line marks the median.
    """
    row = 0.27
    height = row * len(volumes) + 0.55
    figure = new_figure(11.6, height)
    axes = figure.add_axes((0.145, 0.5 / height, 0.845, row * len(volumes) / height))
    style_axes(axes, grid="x")
    axes.set_xscale("log")
    for line, by_role in enumerate(volumes.values()):
        everything = np.concatenate([np.asarray(values, float) for values in by_role.values()])
        for role, values in by_role.items():
            spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.5  # a fixed jitter: golden-ratio steps
            _dots(axes, values, line + 0.5 + spread, role, size=13)
        axes.plot([np.median(everything)] * 2, [line + 0.15, line + 0.85], color=TEXT, linewidth=1.4)
        if line:
            axes.axhline(line, color=GRID, linewidth=0.6)
    name_rows(axes, list(volumes))
    logarithmic(axes.xaxis)
    axes.set_xlabel("volume per case, ml (logarithmic)")
    return figure


def _dots(axes: Axes, across: np.ndarray | Sequence[float], up: np.ndarray, role: str, size: int) -> None:
    style: dict[str, Any] = {"color": run_colour(ROLES.index(role)), "alpha": 0.55, "linewidths": 0}
    axes.scatter(across, up, s=size, clip_on=False, **style)  # a dot on the frame is whole


def _chart(grid: Literal["y", "both"] = "y") -> tuple[Figure, Axes]:
    figure = new_figure(4.3, 2.7)
    axes = figure.add_axes((0.125, 0.165, 0.855, 0.80))
    style_axes(axes, grid)
    return figure, axes
