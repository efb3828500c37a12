"""One page of a study for whoever asked: the verdict in words, the arms beside their baseline, what it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from flarecps.atomic import write_text
from flarecps.reporting.page import render_page
from flarecps.reporting.plotting import axes_at, inline_svg, new_figure, run_colour, shortened, style_axes
from flarecps.reporting.tables import score_text

NAMES = {"dsc": "DSC", "nsd": "NSD"}


@dataclass(frozen=True)
class StudyRow:
    """An arm beside the baseline, whose own differences are None. ``cost``: compute in the baseline's, if known."""

    title: str
    mean: float
    seeds_sd: float | None
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    verdict: str
    cost: float | None
    minutes: float | None
    reads_unlabelled: bool
    with_holm: bool


@dataclass(frozen=True)
class StudyPage:
    """What the page shows; ``rows`` begin with the baseline, ``other_labels`` hold those with other numbers of labels.

    ``curve``: (labelled scans, mean score).
    """

    name: str
    scans: str
    measure: str
    sentences: Sequence[str]
    remarks: Sequence[str]
    rows: Sequence[StudyRow]
    other_labels: Mapping[str, Sequence[StudyRow]]
    curve: Sequence[tuple[float, float]]
    command: str
    protocol: str
    folder: str
    judged_by: str


def write_study_page(path: Path, page: StudyPage) -> None:
    """Write the page, one self-contained HTML file."""
    measure = NAMES[page.measure]
    charts = []
    if any(row.difference is not None for row in page.rows):
        shown = [row for row in page.rows if row.difference is not None]
        alt = f"Differences in {measure} from {page.rows[0].title}. " + "; ".join(
            f"{row.title}: {_signed(row.difference)}" for row in shown
        )
        charts.append(inline_svg(difference_figure(shown, measure), alt, "differences"))
    curve = ""
    if len(page.curve) > 1:
        alt = f"{measure} by labelled scans. " + "; ".join(f"{n:g}: {score_text(mean)}" for n, mean in page.curve)
        curve = inline_svg(curve_figure(page.curve, measure), alt, "labels")
    content = {"page": page, "measure": measure, "differences": charts[0] if charts else "", "curve": curve}
    write_text(path, render_page("study.html", content, {"score": score_text, "signed": _signed, "chance": _chance}))


def difference_figure(rows: Sequence[StudyRow], measure: str) -> Figure:
    """A line for each arm: its difference from the baseline, with its interval, about 0."""
    height = 0.75 + 0.38 * len(rows)
    figure = new_figure(8.2, height)
    axes = axes_at(figure, 3.4, 0.55, 4.6, height - 0.65)
    style_axes(axes, "x")
    axes.axvline(0.0, color="#7a8288", linewidth=1.0)
    for place, row in enumerate(reversed(rows)):
        colour = run_colour(0 if row.verdict == "better" else 1 if row.verdict == "worse" else 7)
        if row.interval:
            axes.plot(row.interval, (place, place), color=colour, linewidth=2.0, solid_capstyle="butt")
        axes.plot([row.difference or 0.0], [place], "o", color=colour, markersize=6)
    names = [shortened(row.title, 44) for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{measure} minus the baseline's")
    return figure


def curve_figure(points: Sequence[tuple[float, float]], measure: str) -> Figure:
    """The score over the number of labelled scans, doublings equally far apart."""
    figure = new_figure(5.4, 2.7)
    axes = axes_at(figure, 0.75, 0.6, 4.4, 1.9)
    style_axes(axes)
    numbers = [number for number, _ in points]
    axes.plot(numbers, [mean for _, mean in points], "o-", color=run_colour(0), linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.set_xlabel("labelled scans in a training")
    axes.set_ylabel(measure)
    return figure


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _signed(value: float | None) -> str:
    return score_text(value, signed=True).replace("-", "−")
