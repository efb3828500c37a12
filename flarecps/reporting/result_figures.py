"""From the label maps of results to figures: PNGs to put into a paper, and one HTML page that holds them all.

Cases are read one by one, each in one process with one volume in memory at a time, and only the slices that are shown
are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from flarecps.atomic import write_text
from flarecps.batch_processing import process_cases
from flarecps.errors import ConfigError, counted, first_few
from flarecps.evaluation.score_table import MEASURES, mean_of
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
from flarecps.reporting.overlays import LABEL_OPACITY, display_window
from flarecps.reporting.page import render_page
from flarecps.reporting.plotting import data_uri, inline_svg, png_bytes, write_png
from flarecps.reporting.results import Results
from flarecps.reporting.score_charts import box_figure, medians_in_words, volume_figure
from flarecps.reporting.tables import score_text
from flarecps.volumes.io import on_grid, read_labels, read_labels_on, read_volume

PAGE, COMPARISON, BOXES, VOLUMES, WORST = "figures.html", "cases.png", "boxes.png", "volumes.png", "worst_cases.png"
DOTS_PER_INCH = 130
MOST_PIXELS = 30_000  # of a picture's edge; programs refuse to open longer ones
AIR_HU = -500.0  # a scan that holds less is taken as CT
_Window: TypeAlias = tuple[float, float]
_ScoredLow: TypeAlias = tuple[LowScore, Mapping[str, float]]  # and the DSC of every method that has one


def cases_by_difficulty(results: Results, count: int) -> list[str]:
    """``count`` cases from the easiest to the hardest, at even ranks of the mean DSC over methods.

    Taken are cases with a scan and a prediction of every method; fewer than ``count`` where there are fewer.
    """
    means = {
        name: mean_of([results.mean_dsc(method, name) for method in results.methods])
        for name in results.cases
        if not _lacking(results, name)
    }
    ranked = sorted((name for name in means if math.isfinite(means[name])), key=lambda name: (-means[name], name))
    count = min(count, len(ranked))
    if count < 2:
        return ranked[(len(ranked) - 1) // 2 :][:count]
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def _lacking(results: Results, name: str) -> list[str]:
    """What a case would need to be shown beside others: [] if it has its scan and every method's scored prediction."""
    lacking = [] if name in results.images else ["its scan"]
    lacking += [f"a scored prediction of {m}" for m in results.methods if name not in results.tables[m].cases]
    lacking += [f"a prediction of {m}" for m in results.methods if name not in results.predictions[m]]
    return lacking if name in results.references else [*lacking, "its reference"]


def read_slices(
    results: Results,
    rows: Sequence[str],
    low: Sequence[LowScore],
    window_hu: _Window | None = None,
    workers: int = 1,
    progress: bool = True,
) -> tuple[list[CaseRow], list[ErrorSlice], dict[str, str]]:
    """The rows and the slices of low scores in the order asked for, and the errors of cases that could not be read."""
    tasks = []
    for name in dict.fromkeys([*rows, *(one.case for one in low)]):
        files = results.images[name], results.references[name]
        maps = {method: found[name] for method, found in results.predictions.items() if name in found}
        means = {method: results.mean_dsc(method, name) for method in results.methods} if name in rows else None
        own = [(one, _dsc_by_method(results, one)) for one in low if one.case == name]
        tasks.append((name, (name, *files, maps, means, own, window_hu)))
    outcomes = process_cases(_slices_of_case, tasks, workers, "Cutting slices", progress)
    found = {one.name: one.value for one in outcomes if one.value is not None}
    failed = {one.name: one.error for one in outcomes if one.error is not None}
    shown = [row for name in rows if name in found and (row := found[name][0]) is not None]
    slices = [each for _, low_ones in found.values() for each in low_ones]
    return shown, sorted(slices, key=lambda one: list(low).index(one.low)), failed


def _slices_of_case(
    task: tuple[str, Path, Path, Mapping[str, Path], Mapping[str, float] | None, Sequence[_ScoredLow], _Window | None],
) -> tuple[CaseRow | None, list[ErrorSlice]]:
    """Read one case, volume after volume, and keep what is shown. Raises ScanError where the grids differ.

    Args:
        task: the case; its scan, its reference and each method's label map; the methods' mean DSC if it is a row of the
            figure with all organs, else None; its low scores with each method's DSC; the window, None: by its values.
    """
    name, image_path, reference_path, maps, mean_dsc, scored, window_hu = task
    labels = read_labels(reference_path)
    space, reference = labels.space, labels.array[0]
    place = row_box(reference, space.spacing_mm) if mean_dsc is not None else ()
    numbers = [0] * len(scored)
    for worst in {low.method for low, _ in scored}:
        prediction = read_labels_on(maps[worst], space, reference_path.name)
        for index, (low, _) in enumerate(scored):
            if low.method == worst:
                numbers[index] = slice_of_largest_error(prediction == low.organ.id, reference == low.organ.id)
        del prediction
    row_maps: dict[str, np.ndarray] = {}
    masks: list[dict[str, np.ndarray]] = [{} for _ in scored]
    for method, path in maps.items():
        prediction = read_labels_on(path, space, reference_path.name)
        if mean_dsc is not None:
            row_maps[method] = prediction[place].copy()
        for found, number, (low, _) in zip(masks, numbers, scored, strict=True):
            found[method] = prediction[number] == low.organ.id
        del prediction
    volume = on_grid(read_volume(image_path), space, "its reference")
    image = volume.array[0]
    window_hu = window_hu or display_window(image, is_hu=float(image.min()) <= AIR_HU)
    row = None
    if mean_dsc is not None:
        arrays = image[place].copy(), reference[place].copy(), row_maps
        row = CaseRow(name, *arrays, space.spacing_mm, mean_dsc, window_hu, place[0].start)
    shown = []
    for (low, dsc), number, found in zip(scored, numbers, masks, strict=True):
        truth = reference[number] == low.organ.id
        part = (None, *square_around([truth, *found.values()], space.spacing_mm))
        cropped = {method: mask[part].copy() for method, mask in found.items()}
        arrays = image[number][part].copy(), truth[part].copy(), cropped
        shown.append(ErrorSlice(low, number, *arrays, dsc, space.spacing_mm, window_hu))
    return row, shown


def _dsc_by_method(results: Results, low: LowScore) -> dict[str, float]:
    found = {method: table.scores.at(low.case, low.organ.column) for method, table in results.tables.items()}
    return {method: dsc for method, dsc in found.items() if np.isfinite(dsc)}


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
    window_hu: _Window | None = None,
    workers: int = 1,
    progress: bool = True,
) -> WrittenFigures:
    """Write the figures of ``results`` into the folder ``out``, which is made if needed; ``workers`` processes read.

    The rows of the figure of cases are ``cases``, by default ``rows`` of them from the easiest to the hardest;
    ``worst`` low scores are shown, in the grey values ``window_hu``, by default a soft-tissue window for CT. Raises
    ConfigError for a name in ``cases`` that can't be shown.
    """
    notes = results.notes
    if cases is not None:
        for name in cases:
            if lacking := _lacking(results, name):
                there = first_few(results.cases)
                raise ConfigError(f"case {name!r} can't be shown without {lacking[0]}; the cases are {there}")
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
    boxes, volumes = score_boxes(results), volume_figure(list(results.tables.values()), results.methods)
    comparison = comparison_figure(shown, results.organs) if shown else None
    worst_ones = worst_figure(slices, results.methods) if slices else None
    written = []
    for name, figure in ((BOXES, boxes), (VOLUMES, volumes), (COMPARISON, comparison), (WORST, worst_ones)):
        if figure is None:
            (out / name).unlink(missing_ok=True)  # of an earlier call
        else:
            write_png(out / name, figure, min(DOTS_PER_INCH, MOST_PIXELS / max(figure.get_size_inches())))
            written.append(out / name)
    content = {
        "notes": [*notes, *(f"{case} is not shown: {error}" for case, error in failed.items())],
        "rule": rule,
        "comparison": data_uri((out / COMPARISON).read_bytes()) if shown else None,
        "comparison_alt": _alt(shown),
        "worst": [_error_entry(one, results.methods) for one in slices],
    }
    write_text(out / PAGE, _figures_page(results, boxes, volumes, content))
    return WrittenFigures((*written, out / PAGE), tuple(notes), failed)


def score_boxes(results: Results) -> Figure:
    """Box plots of DSC and NSD, methods side by side; organs that no method has a score of are left out."""
    scores = [table.scores for table in results.tables.values()]
    present = [one for one in results.organs if any(each.organ(one.column).size for each in scores)]
    return box_figure(scores, present or results.organs, ("dsc", "nsd"), results.methods)


def _figures_page(results: Results, boxes: Figure, volumes: Figure, content: Mapping[str, Any]) -> str:
    """The page as text: the charts of scores, and around them what else is known of the page's ``content``."""
    scores = {method: table.scores for method, table in results.tables.items()}
    medians = [f"{organ.name} {medians_in_words(organ, scores)}" for organ in results.organs]
    for legend in [*boxes.legends, *volumes.legends]:
        legend.remove()  # the page has its own, in its theme's colours
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
            "opacity_percent": round(100 * LABEL_OPACITY),
            "boxes": inline_svg(boxes, f"Box plots of DSC and NSD. Median DSC: {'; '.join(medians)}.", "boxes"),
            "volumes": inline_svg(volumes, "Predicted against reference volume of every organ.", "volumes"),
            "worst_width_rem": min(70, 13 * len(results.methods) + 1),
            "most_of_one_organ": MOST_OF_ONE_ORGAN,
            **content,
        },
    )


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
