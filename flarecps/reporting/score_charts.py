"""Charts of scores over cases: how they spread, organ by organ, and predicted against reference volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flarecps.anatomy import Organ
from flarecps.evaluation.score_table import ScoredCases, Scores
from flarecps.reporting.plotting import (
    GRID,
    MUTED,
    TEXT,
    axes_at,
    method_legend,
    name_rows,
    new_figure,
    run_colour,
    shortened,
    style_axes,
    text_at,
)
from flarecps.reporting.tables import empty_mark, score_text

WIDTH_INCHES = 11.6
LANE_INCHES = 0.19  # height of one run within an organ's row
LETTER_INCHES = 0.078  # of an organ's name
LIMITS_SD = 1.96  # 95 % of a normal distribution lie within
COLUMNS = 5  # of the charts of volumes
LINE_INCHES = 0.15


def box_figure(
    runs: Sequence[Scores | None],
    organs: Sequence[Organ],
    measures: Sequence[str] = ("dsc",),
    names: Sequence[str] = (),
) -> Figure:
    """Boxes per organ, organs downwards as in the table, runs in their colours; a chart for each of ``measures``.

    The box spans the middle half of the cases, its line is the median, whiskers reach the furthest case within 1.5
    box lengths; every case is a point; "(2 empty)" as in the tables. A run without scores keeps its lane, and the
    other runs their colours. ``names``: of the runs, for a legend above.
    """
    lane = LANE_INCHES if len(runs) > 1 else 0.3
    row = lane * len(runs) + 0.14
    top = 0.36 if len(names) > 1 else 0.05
    height = top + row * len(organs) + 0.5
    figure = new_figure(WIDTH_INCHES, height)
    tables = [scores for scores in runs if scores is not None]
    titles = [f"{organ.name}{empty_mark(tables, organ.column)}" for organ in organs]
    left = max(1.68, 0.2 + LETTER_INCHES * max(map(len, titles)))
    gap, right = 0.3, 0.12
    width = (WIDTH_INCHES - left - right - gap * (len(measures) - 1)) / len(measures)
    for place, measure in enumerate(measures):
        start = left + place * (width + gap)
        axes = axes_at(figure, start, 0.5, width, row * len(organs))
        _draw_boxes(axes, runs, organs, measure, lane, row)
        name_rows(axes, titles, row)
        if place:
            axes.set_yticklabels([])
    method_legend(figure, names, top_inches=0.06)
    return figure


def medians_in_words(organ: Organ, scores: Mapping[str, Scores]) -> str:
    """The median DSC of an organ in each named table that has scores of it, for who can't see the boxes."""
    found = {name: values for name, one in scores.items() if (values := one.organ(organ.column)).size}
    return ", ".join(f"{name} {score_text(np.median(values))}" for name, values in found.items())


def _draw_boxes(
    axes: Axes, runs: Sequence[Scores | None], organs: Sequence[Organ], measure: str, lane: float, row: float
) -> None:
    style_axes(axes, grid="x")
    for line, organ in enumerate(organs):
        for index, scores in enumerate(runs):
            values = scores.organ(organ.column, measure) if scores is not None else np.empty(0)
            if values.size:
                _lane(axes, values, line * row + 0.07 + (index + 0.5) * lane, lane, run_colour(index))
        if line:
            axes.axhline(line * row, color=GRID, linewidth=0.6)
    axes.set_xlim(-0.015, 1.015)
    axes.set_xticks(np.linspace(0, 1, 6))
    counts = sorted({len(scores.cases) for scores in runs if scores is not None})
    axes.set_xlabel(f"{measure.upper()} per case (n = {' or '.join(map(str, counts))})")


def _lane(axes: Axes, values: np.ndarray, centre: float, lane: float, colour: str) -> None:
    drawn = axes.boxplot(
        values,
        positions=[centre],
        widths=lane * 0.66,
        orientation="horizontal",
        manage_ticks=False,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": colour, "linewidth": 2.0, "solid_capstyle": "butt"},
        whiskerprops={"color": colour, "linewidth": 1.0},
        capprops={"color": colour, "linewidth": 0.0},
        boxprops={"edgecolor": colour, "linewidth": 1.0},
    )
    for box in drawn["boxes"]:
        box.set_facecolor(colour)
        box.set_alpha(0.28)
    # A fixed low-discrepancy offset per case: points that lie on one another become visible, runs look the same.
    offsets = ((np.arange(values.size) * 0.618034) % 1.0 - 0.5) * lane * 0.5
    axes.plot(values, centre + offsets, "o", color=colour, markersize=2.6, alpha=0.85, markeredgewidth=0)


def volume_pairs(table: ScoredCases, organ: str) -> np.ndarray:
    """(cases, 2) millilitres of reference and prediction; cases with neither are left out."""
    scores = [case.organs[organ] for case in table.cases.values() if not case.missing]
    pairs = [(one.reference_ml, one.prediction_ml) for one in scores if one.reference_ml or one.prediction_ml]
    return np.array(pairs, float).reshape(-1, 2)


def limits_of_agreement(pairs: np.ndarray) -> tuple[float, float, float]:
    """Bias, and lower and upper 95 % limit of agreement of Bland and Altman (1986), of predicted minus reference ml.

    The limits are the mean difference ± 1.96 of its SD (n - 1): NaN for one case, as all three are for none.

    >>> limits_of_agreement(np.array([[10.0, 12.0], [20.0, 20.0], [30.0, 31.0]]))
    (1.0, -0.96, 2.96)
    """
    changes = pairs[:, 1] - pairs[:, 0]
    bias = float(changes.mean()) if changes.size else math.nan
    reach = LIMITS_SD * float(changes.std(ddof=1)) if changes.size > 1 else math.nan
    return bias, bias - reach, bias + reach


def agreement_in_words(limits: tuple[float, float, float]) -> str:
    """A bias with its limits of agreement.

    >>> agreement_in_words((1.0, -0.96, 2.96)), agreement_in_words((20.0, math.nan, math.nan))
    ('+1.0 ml (−1.0 to +3.0)', '+20 ml')
    """
    largest = max((abs(one) for one in limits if math.isfinite(one)), default=None)
    if largest is None:
        return "no case"
    digits = 0 if largest >= 10 else 1 if largest >= 1 else 2
    bias, low, high = (f"{round(one, digits) + 0.0:+.{digits}f}".replace("-", "−") for one in limits)
    return f"{bias} ml" + (f" ({low} to {high})" if math.isfinite(limits[1]) else "")


def volume_figure(tables: Sequence[ScoredCases], names: Sequence[str]) -> Figure:
    """One square chart per organ, a dot per case and method, the line of equality, bias and its limits in words.

    Both axes of a chart are equal and start at 0: above the line too much was segmented, below it too little.
    """
    organs = [one for one in tables[0].organs if any(volume_pairs(table, one.name).size for table in tables)]
    columns = min(COLUMNS, max(len(organs), 1))
    rows = max(-(-len(organs) // columns), 1)
    cell = WIDTH_INCHES / COLUMNS
    side, words = cell - 0.74, 0.27 + LINE_INCHES * len(tables)
    tall = side + words + 0.5
    top = 0.34 if len(names) > 1 else 0.02
    width, height = cell * columns, top + tall * rows
    figure = new_figure(width, height)
    for place, organ in enumerate(organs):
        left = (place % columns) * cell + 0.62
        upper = height - top - (place // columns) * tall
        pairs = [volume_pairs(table, organ.name) for table in tables]
        axes = axes_at(figure, left, upper - words - side, side, side)
        _draw_pairs(axes, pairs)
        if place % columns == 0:
            axes.set_ylabel("predicted, ml", labelpad=2)
        if place + columns >= len(organs):
            axes.set_xlabel("reference, ml", labelpad=2)
        counts = ", ".join(str(one) for one in dict.fromkeys(len(found) for found in pairs))
        title = f"{shortened(organ.name, int(side / LINE_INCHES * 2))}, n = {counts}"
        text_at(figure, left, upper - 0.06, title, va="top", color=TEXT, fontsize=9.5, fontweight="bold")
        for line, found in enumerate(pairs):
            colour = run_colour(line) if len(tables) > 1 else MUTED
            bias = agreement_in_words(limits_of_agreement(found))
            text_at(figure, left, upper - 0.25 - LINE_INCHES * line, bias, va="top", color=colour, fontsize=8)
    method_legend(figure, names, top_inches=0.06)
    return figure


def _draw_pairs(axes: Axes, pairs: Sequence[np.ndarray]) -> None:
    style_axes(axes, grid="both")
    largest = max((float(one.max()) for one in pairs if one.size), default=1.0) or 1.0
    end = 1.06 * largest
    axes.plot([0, end], [0, end], color=MUTED, linewidth=0.9, zorder=1)
    for index, one in enumerate(pairs):
        style: dict[str, Any] = {"markersize": 4, "alpha": 0.75, "markeredgewidth": 0, "clip_on": False, "zorder": 2}
        axes.plot(one[:, 0], one[:, 1], "o", color=run_colour(index), **style)
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
