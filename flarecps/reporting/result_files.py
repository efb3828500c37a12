"""All figures of results as files: PNGs to put into a paper, and one HTML page that holds them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from flarecps.atomic import write_text
from flarecps.reporting.boxes import box_figure
from flarecps.reporting.figure import FigureCase, comparison_figure
from flarecps.reporting.overlays import FILM
from flarecps.reporting.page import page_text
from flarecps.reporting.pictures import data_uri, inline_svg, png_bytes, write_chart, write_png
from flarecps.reporting.result_slices import check_cases, cut_slices, spread_of_cases
from flarecps.reporting.results import Results, scores_of
from flarecps.reporting.volume_scatter import volume_figure
from flarecps.reporting.worst_cases import MOST_OF_ONE_ORGAN, PoorSlice, panels_figure, poorest, worst_figure

PAGE, COMPARISON, BOXES, VOLUMES, WORST = "figures.html", "cases.png", "boxes.png", "volumes.png", "worst_cases.png"
DOTS_PER_INCH = 130
MOST_PIXELS = 30_000  # of a picture's edge; programs refuse to open longer ones


@dataclass(frozen=True)
class Drawn:
    """The files written, remarks on what they leave out, and the errors of cases that are not in them."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    failed: Mapping[str, str]


def write_figures(
    out: Path,
    results: Results,
    cases: Sequence[str] | None = None,
    rows: int = 4,
    worst: int = 10,
    window_hu: tuple[float, float] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Drawn:
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
        check_cases(results, cases)
        rule = f"{_cases(len(cases))}, as asked for"
    else:
        cases = spread_of_cases(results, rows)
        rule = _rule(len(cases), len(results.methods))
    rule += "; of each the axial slice that shows most of the reference’s organs, every organ counting alike"
    if not results.images:
        notes.append("no pictures of cases: they need the scans (--images FOLDER)")
    elif not cases:
        notes.append("no pictures of cases: no case has a scan and a prediction of every method")
    shown, slices, unread = cut_slices(results, cases, poorest(results, worst), window_hu, workers, progress)
    failed = results.failed | unread
    out.mkdir(parents=True, exist_ok=True)
    tables = list(results.tables.values())
    boxes, volumes = boxes_of(results), volume_figure(tables, results.methods)
    written = [out / BOXES, out / VOLUMES]
    write_chart(out / BOXES, boxes, DOTS_PER_INCH)
    write_chart(out / VOLUMES, volumes, DOTS_PER_INCH)
    comparison = comparison_figure(shown, results.organs) if shown else None
    for name, figure in ((COMPARISON, comparison), (WORST, worst_figure(slices, results.methods) if slices else None)):
        if figure is not None:
            write_png(out / name, figure, _dots_per_inch(figure))
            written.append(out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier call
    said = [*notes, *(f"{case} is not shown: {error}" for case, error in failed.items())]
    write_text(out / PAGE, figures_page(results, shown, slices, rule, said))
    return Drawn((*written, out / PAGE), tuple(notes), failed)


def boxes_of(results: Results) -> Figure:
    """Box plots of DSC and NSD, methods side by side; organs that no method has a score of are left out."""
    scores = [scores_of(table) for table in results.tables.values()]
    present = [one for one in results.organs if any(each.organ(one.column).size for each in scores)]
    return box_figure(scores, present or results.organs, ("dsc", "nsd"), results.methods)


def figures_page(
    results: Results, shown: Sequence[FigureCase], slices: Sequence[PoorSlice], rule: str, notes: Sequence[str]
) -> str:
    """The page as text; parts without pictures are left out."""
    scores = {method: scores_of(table) for method, table in results.tables.items()}
    medians = [
        f"{organ.name} " + ", ".join(f"{name} {np.median(found):.2f}" for name, one in scores.items()
                                     if (found := one.organ(organ.column)).size)
        for organ in results.organs
    ]  # fmt: skip
    boxes = _without_legend(boxes_of(results))
    volumes = _without_legend(volume_figure(list(results.tables.values()), results.methods))
    comparison = None
    if shown:
        figure = comparison_figure(shown, results.organs)
        comparison = data_uri(png_bytes(figure, _dots_per_inch(figure)))
    return page_text(
        PAGE,
        {
            "title": " · ".join(results.methods),
            "cases": len(results.cases),
            "protocol": next(iter(results.tables.values())).protocol,
            "methods": [
                {"name": name, "dsc": _share(one.mean()), "nsd": _share(one.mean("nsd")), "cases": len(one.cases)}
                for name, one in scores.items()
            ],
            "notes": notes,
            "rule": rule,
            "comparison": comparison,
            "comparison_alt": _alt(shown),
            "film_percent": round(100 * FILM),
            "boxes": Markup(inline_svg(boxes, f"Box plots of DSC and NSD. Median DSC: {'; '.join(medians)}.", "boxes")),
            "volumes": Markup(inline_svg(volumes, "Predicted against reference volume of every organ.", "volumes")),
            "worst": [_exhibit(one, results.methods) for one in slices],
            "worst_width_rem": min(70, 13 * len(results.methods) + 1),
            "most_of_one_organ": MOST_OF_ONE_ORGAN,
        },
    )


def _without_legend(figure: Figure) -> Figure:
    for legend in list(figure.legends):
        legend.remove()  # the page has its own, in its theme's colours
    return figure


def _exhibit(one: PoorSlice, methods: Sequence[str]) -> dict[str, Any]:
    figure = panels_figure(one, methods)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in one.dsc.items()) if len(methods) > 1 else (
        f"DSC {one.poor.dsc:.3f}"
    )  # fmt: skip
    return {
        "case": one.poor.case,
        "organ": one.poor.organ.name,
        "colour": one.poor.organ.colour,
        "scores": f"{'DSC ' if len(methods) > 1 else ''}{scores} · axial {one.slice_number}",
        "picture": data_uri(png_bytes(figure, DOTS_PER_INCH)),
        "alt": f"{one.poor.organ.name} of {one.poor.case}, axial slice {one.slice_number}: outlines of the reference "
        f"and of the prediction of {', '.join(methods)}. DSC: {scores}.",
    }


def _rule(count: int, methods: int) -> str:
    over = " over the methods" if methods > 1 else ""
    words = {0: "", 1: "the median case", 2: "the easiest and the hardest case"}
    chosen = words.get(count, f"{count} cases from the easiest to the hardest, at even ranks")
    return f"{chosen[:1].upper()}{chosen[1:]} by mean DSC{over}"


def _alt(shown: Sequence[FigureCase]) -> str:
    rows = [
        f"{row.name}, axial slice {row.slice_number}: "
        + ", ".join(f"{name} DSC {dsc:.3f}" for name, dsc in row.mean_dsc.items())
        for row in shown
    ]
    columns = ", ".join(shown[0].predictions) if shown else ""
    return f"One row per case; columns show the scan, the reference, {columns}. {'; '.join(rows)}."


def _dots_per_inch(figure: Figure) -> float:
    return min(DOTS_PER_INCH, MOST_PIXELS / max(figure.get_size_inches()))


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"
