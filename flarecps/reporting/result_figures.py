"""From the label maps of results to figures: PNGs to put into a paper, and one HTML page that holds them all.

Cases are read one by one, each in one process with one volume in memory at a time, and only the slices that are shown
are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flarecps.atomic import write_text
from flarecps.batch_processing import process_cases
from flarecps.errors import ConfigError, ScanError
from flarecps.evaluation.score_table import MEASURES
from flarecps.reporting.case_figures import (
    MOST_OF_ONE_ORGAN,
    CaseRow,
    ErrorSlice,
    LowScore,
    comparison_figure,
    error_panels,
    lowest_scores,
    row_box,
    slice_of_largest_error,
    square_around,
    worst_figure,
)
from flarecps.reporting.overlays import LABEL_OPACITY, display_window, read_labels_on
from flarecps.reporting.page import render_page
from flarecps.reporting.planes import AXIAL
from flarecps.reporting.plotting import data_uri, inline_svg, png_bytes, write_png
from flarecps.reporting.results import Results
from flarecps.reporting.score_charts import box_figure, volume_figure
from flarecps.reporting.tables import counted, score_text
from flarecps.volumes.io import read_labels, read_volume
from flarecps.volumes.space import Space

PAGE, COMPARISON, BOXES, VOLUMES, WORST = "figures.html", "cases.png", "boxes.png", "volumes.png", "worst_cases.png"
DOTS_PER_INCH = 130
MOST_PIXELS = 30_000  # of a picture's edge; programs refuse to open longer ones
AIR_HU = -500.0  # a scan that holds less is taken as CT


@dataclass(frozen=True)
class SliceTask:
    """The files of one case, the scores known of it, and which of its organs are shown for their low scores."""

    name: str
    image: Path
    reference: Path
    predictions: Mapping[str, Path]
    window_hu: tuple[float, float] | None  # None: by the scan's values
    mean_dsc: Mapping[str, float]
    row: bool  # of the figure with all organs
    low: tuple[LowScore, ...] = ()
    low_dsc: tuple[Mapping[str, float], ...] = ()  # by method, for each of ``low``


def cases_by_difficulty(results: Results, count: int) -> list[str]:
    """``count`` cases from the easiest to the hardest, at even ranks of the mean DSC over methods.

    Taken are cases with a scan and a prediction of every method; fewer than ``count`` where there are fewer.
    """
    names = [name for name in results.cases if _is_whole(results, name)]
    means = {name: results.mean_dsc_of_methods(name) for name in names}
    ranked = sorted((name for name in names if math.isfinite(means[name])), key=lambda name: (-means[name], name))
    count = min(count, len(ranked))
    if count < 2:
        return ranked[(len(ranked) - 1) // 2 :][:count]
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def _check_cases(results: Results, names: Sequence[str]) -> None:
    """Nothing, or ConfigError naming a case that lacks its scan, its scores or a method's prediction."""
    for name in names:
        lacking = [] if name in results.images else ["its scan"]
        lacking += [f"a scored prediction of {m}" for m in results.methods if name not in results.tables[m].cases]
        lacking += [f"a prediction of {m}" for m in results.methods if name not in results.predictions[m]]
        if lacking:
            known = ", ".join(results.cases[:5]) + (", …" if len(results.cases) > 5 else "")
            raise ConfigError(f"case {name!r} can't be shown without {lacking[0]}; the cases are {known}")


def read_slices(
    results: Results,
    rows: Sequence[str],
    low: Sequence[LowScore],
    window_hu: tuple[float, float] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> tuple[list[CaseRow], list[ErrorSlice], dict[str, str]]:
    """The rows and the slices of low scores in the order asked for, and the errors of cases that could not be read."""
    tasks = []
    for name in dict.fromkeys([*rows, *(one.case for one in low)]):
        own = tuple(one for one in low if one.case == name)
        tasks.append(
            SliceTask(
                name, results.images[name], results.references[name],
                {method: maps[name] for method, maps in results.predictions.items() if name in maps}, window_hu,
                {method: results.mean_dsc(method, name) for method in results.methods}, name in rows, own,
                tuple(_dsc_by_method(results, one) for one in own),
            )
        )  # fmt: skip
    outcomes = process_cases(_slices_of_case, [(one.name, one) for one in tasks], workers, "Cutting slices", progress)
    found = {one.name: one.value for one in outcomes if one.value is not None}
    failed = {one.name: one.error for one in outcomes if one.error is not None}
    shown = [row for name in rows if name in found and (row := found[name][0]) is not None]
    slices = [each for _, low_ones in found.values() for each in low_ones]
    return shown, sorted(slices, key=lambda one: list(low).index(one.low)), failed


def _slices_of_case(task: SliceTask) -> tuple[CaseRow | None, list[ErrorSlice]]:
    """Read one case, volume after volume, and keep what is shown. Raises ScanError where the grids differ."""
    labels = read_labels(task.reference)
    space, reference = labels.space, labels.array[0]
    place = row_box(reference, space.spacing_mm, AXIAL) if task.row else ()
    numbers = _slices_of_largest_error(task, reference, space)
    row_maps: dict[str, np.ndarray] = {}
    masks: list[dict[str, np.ndarray]] = [{} for _ in task.low]
    for method, path in task.predictions.items():
        prediction = read_labels_on(path, space, task.reference)
        if task.row:
            row_maps[method] = prediction[place].copy()
        for found, number, low in zip(masks, numbers, task.low, strict=True):
            found[method] = prediction[number] == low.organ.id
        del prediction
    volume = read_volume(task.image)
    if not volume.space.same_grid(space):
        raise ScanError(f"{task.image}: not on the grid of its reference ({volume.space.difference(space)})")
    image = volume.array[0]
    window_hu = task.window_hu or display_window(image, is_hu=float(image.min()) <= AIR_HU)
    row = None
    if task.row:
        row = CaseRow(
            task.name, image[place].copy(), reference[place].copy(), row_maps, space.spacing_mm, task.mean_dsc,
            window_hu, place[AXIAL.cut].start,
        )  # fmt: skip
    shown = []
    for low, dsc, number, found in zip(task.low, task.low_dsc, numbers, masks, strict=True):
        truth = reference[number] == low.organ.id
        down, across = square_around([truth, *found.values()], space.spacing_mm)
        shown.append(
            ErrorSlice(
                low, number, image[number : number + 1, down, across].copy(), truth[None, down, across].copy(),
                {method: mask[None, down, across].copy() for method, mask in found.items()}, dsc, space.spacing_mm,
                window_hu,
            )
        )  # fmt: skip
    return row, shown


def _slices_of_largest_error(task: SliceTask, reference: np.ndarray, space: Space) -> list[int]:
    """For each low score the slice on which its worst method errs most."""
    numbers = dict.fromkeys(range(len(task.low)), 0)
    for method in {low.method for low in task.low}:
        prediction = read_labels_on(task.predictions[method], space, task.reference)
        for index, low in enumerate(task.low):
            if low.method == method:
                organ = low.organ.id
                numbers[index] = slice_of_largest_error(prediction == organ, reference == organ)
    return list(numbers.values())


def _dsc_by_method(results: Results, low: LowScore) -> dict[str, float]:
    found = {method: table.scores.at(low.case, low.organ.column) for method, table in results.tables.items()}
    return {method: dsc for method, dsc in found.items() if np.isfinite(dsc)}


def _is_whole(results: Results, name: str) -> bool:
    return (
        name in results.images
        and name in results.references
        and all(name in results.predictions[m] and name in results.tables[m].cases for m in results.methods)
    )


@dataclass(frozen=True)
class WrittenFigures:
    """The files written, remarks on what they leave out, and the errors of cases that are not in them."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    failed: Mapping[str, str]


def write_result_figures(
    out: Path,
    results: Results,
    cases: Sequence[str] | None = None,
    rows: int = 4,
    worst: int = 10,
    window_hu: tuple[float, float] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> WrittenFigures:
    """Write the figures of ``results`` into the folder ``out``.

    Args:
        out: made if needed.
        results: from `gather_results`.
        cases: the rows of the figure of cases; by default ``rows`` from the easiest to the hardest.
        rows: how many rows, if ``cases`` does not say it.
        worst: how many low scores are shown; 0 for none.
        window_hu: grey values shown as black and white; by default a soft-tissue window for CT.
        workers: processes that read scans.
        progress: whether a bar is shown.

    Raises ConfigError for a name in ``cases`` that can't be shown.
    """
    notes = list(results.notes)
    if cases is not None:
        _check_cases(results, cases)
        rule = f"{counted(len(cases), 'case')}, as asked for"
    else:
        cases = cases_by_difficulty(results, rows)
        rule = _rule(len(cases), len(results.methods))
    rule += "; of each the axial slice that shows most of the reference’s organs, every organ counting alike"
    if not results.images:
        notes.append("no pictures of cases: they need the scans (--images FOLDER)")
    elif not cases:
        notes.append("no pictures of cases: no case has a scan and a prediction of every method")
    shown, slices, unread = read_slices(results, cases, lowest_scores(results, worst), window_hu, workers, progress)
    failed = results.failed | unread
    out.mkdir(parents=True, exist_ok=True)
    tables = list(results.tables.values())
    boxes, volumes = score_boxes(results), volume_figure(tables, results.methods)
    written = [out / BOXES, out / VOLUMES]
    write_png(out / BOXES, boxes, DOTS_PER_INCH)
    write_png(out / VOLUMES, volumes, DOTS_PER_INCH)
    comparison = comparison_figure(shown, results.organs) if shown else None
    for name, figure in ((COMPARISON, comparison), (WORST, worst_figure(slices, results.methods) if slices else None)):
        if figure is not None:
            write_png(out / name, figure, _dots_per_inch(figure))
            written.append(out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier call
    said = [*notes, *(f"{case} is not shown: {error}" for case, error in failed.items())]
    write_text(out / PAGE, _figures_page(results, shown, slices, rule, said))
    return WrittenFigures((*written, out / PAGE), tuple(notes), failed)


def score_boxes(results: Results) -> Figure:
    """Box plots of DSC and NSD, methods side by side; organs that no method has a score of are left out."""
    scores = [table.scores for table in results.tables.values()]
    present = [one for one in results.organs if any(each.organ(one.column).size for each in scores)]
    return box_figure(scores, present or results.organs, ("dsc", "nsd"), results.methods)


def _figures_page(
    results: Results, shown: Sequence[CaseRow], slices: Sequence[ErrorSlice], rule: str, notes: Sequence[str]
) -> str:
    """The page as text; parts without pictures are left out."""
    scores = {method: table.scores for method, table in results.tables.items()}
    medians = [
        f"{organ.name} " + ", ".join(f"{name} {score_text(np.median(found))}" for name, one in scores.items()
                                     if (found := one.organ(organ.column)).size)
        for organ in results.organs
    ]  # fmt: skip
    boxes = _without_legend(score_boxes(results))
    volumes = _without_legend(volume_figure(list(results.tables.values()), results.methods))
    comparison = None
    if shown:
        figure = comparison_figure(shown, results.organs)
        comparison = data_uri(png_bytes(figure, _dots_per_inch(figure)))
    return render_page(
        PAGE,
        {
            "title": " · ".join(results.methods),
            "cases": len(results.cases),
            "protocol": next(iter(results.tables.values())).protocol,
            "methods": [
                {"name": name, "cases": len(one.cases)} | {m: score_text(one.mean(m)) for m in MEASURES}
                for name, one in scores.items()
            ],
            "notes": notes,
            "rule": rule,
            "comparison": comparison,
            "comparison_alt": _alt(shown),
            "opacity_percent": round(100 * LABEL_OPACITY),
            "boxes": inline_svg(boxes, f"Box plots of DSC and NSD. Median DSC: {'; '.join(medians)}.", "boxes"),
            "volumes": inline_svg(volumes, "Predicted against reference volume of every organ.", "volumes"),
            "worst": [_error_entry(one, results.methods) for one in slices],
            "worst_width_rem": min(70, 13 * len(results.methods) + 1),
            "most_of_one_organ": MOST_OF_ONE_ORGAN,
        },
    )


def _without_legend(figure: Figure) -> Figure:
    for legend in list(figure.legends):
        legend.remove()  # the page has its own, in its theme's colours
    return figure


def _error_entry(one: ErrorSlice, methods: Sequence[str]) -> dict[str, Any]:
    figure = error_panels(one, methods)
    scores = ", ".join(f"{name} {score_text(value)}" for name, value in one.dsc.items()) if len(methods) > 1 else (
        f"DSC {score_text(one.low.dsc)}"
    )  # fmt: skip
    return {
        "case": one.low.case,
        "organ": one.low.organ.name,
        "colour": one.low.organ.colour,
        "scores": f"{'DSC ' if len(methods) > 1 else ''}{scores} · axial {one.slice_number}",
        "picture": data_uri(png_bytes(figure, DOTS_PER_INCH)),
        "alt": f"{one.low.organ.name} of {one.low.case}, axial slice {one.slice_number}: outlines of the reference "
        f"and of the prediction of {', '.join(methods)}. DSC: {scores}.",
    }


def _rule(count: int, methods: int) -> str:
    over = " over the methods" if methods > 1 else ""
    words = {0: "", 1: "the median case", 2: "the easiest and the hardest case"}
    chosen = words.get(count, f"{count} cases from the easiest to the hardest, at even ranks")
    return f"{chosen[:1].upper()}{chosen[1:]} by mean DSC{over}"


def _alt(shown: Sequence[CaseRow]) -> str:
    rows = [
        f"{row.name}, axial slice {row.slice_number}: "
        + ", ".join(f"{name} DSC {score_text(dsc)}" for name, dsc in row.mean_dsc.items())
        for row in shown
    ]
    columns = ", ".join(shown[0].predictions) if shown else ""
    return f"One row per case; columns show the scan, the reference, {columns}. {'; '.join(rows)}."


def _dots_per_inch(figure: Figure) -> float:
    return min(DOTS_PER_INCH, MOST_PIXELS / max(figure.get_size_inches()))
