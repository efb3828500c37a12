"""How scores spread over cases: one row per organ, one box and its points per run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flarecps.anatomy import Organ
from flarecps.reporting.pictures import INK, RULE, method_legend, new_figure, run_colour, style_axes
from flarecps.reporting.run_folder import Scores

LANE_INCHES = 0.19  # height of one run within an organ's row
WIDTH_INCHES = 11.6
LETTER_INCHES = 0.078  # of an organ's name


def box_figure(
    runs: Sequence[Scores | None],
    organs: Sequence[Organ],
    measures: Sequence[str] = ("dsc",),
    names: Sequence[str] = (),
) -> Figure:
    """Boxes per organ, organs downwards as in the table, runs in their colours; a chart for each of ``measures``.

    The box spans the middle half of the cases, its line is the median, whiskers reach the furthest case within 1.5
    box lengths; every case is a point. A run without scores leaves its lane empty, so that colours keep their place.

    Args:
        runs: scores of each run, or None.
        organs: the rows.
        measures: ``dsc``, ``nsd`` or both, side by side.
        names: of the runs, for a legend above; by default none is drawn.
    """
    lane = LANE_INCHES if len(runs) > 1 else 0.3
    row = lane * len(runs) + 0.14
    top = 0.36 if len(names) > 1 else 0.05
    height = top + row * len(organs) + 0.5
    figure = new_figure(WIDTH_INCHES, height)
    left = max(1.68, 0.2 + LETTER_INCHES * max(len(organ.name) for organ in organs))
    gap, right = 0.3, 0.12
    width = (WIDTH_INCHES - left - right - gap * (len(measures) - 1)) / len(measures)
    for place, measure in enumerate(measures):
        start = left + place * (width + gap)
        axes = figure.add_axes((start / WIDTH_INCHES, 0.5 / height, width / WIDTH_INCHES, row * len(organs) / height))
        _chart(axes, runs, organs, measure, lane, row)
        if place:
            axes.set_yticklabels([])
    method_legend(figure, names, top_inches=0.06)
    return figure


def _chart(
    axes: Axes, runs: Sequence[Scores | None], organs: Sequence[Organ], measure: str, lane: float, row: float
) -> None:
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    for line, organ in enumerate(organs):
        for index, scores in enumerate(runs):
            values = scores.organ(organ.column, measure) if scores is not None else np.empty(0)
            if values.size:
                _lane(axes, values, line * row + 0.07 + (index + 0.5) * lane, lane, run_colour(index))
        if line:
            axes.axhline(line * row, color=RULE, linewidth=0.6)
    axes.set_ylim(row * len(organs), 0)
    axes.set_yticks([(line + 0.5) * row for line in range(len(organs))])
    axes.set_yticklabels([organ.name for organ in organs], fontsize=9.5, color=INK, parse_math=False)
    axes.set_xlim(-0.015, 1.015)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel(f"{measure.upper()} per case")


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
