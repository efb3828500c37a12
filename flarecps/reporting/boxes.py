"""How scores spread over cases: one row per organ, one box and its points per run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flarecps.anatomy import Organ
from flarecps.reporting.pictures import INK, RULE, new_figure, run_colour, style_axes
from flarecps.reporting.run_folder import Scores

LANE_INCHES = 0.19  # height of one run within an organ's row


def box_figure(runs: Sequence[Scores | None], organs: Sequence[Organ], measure: str = "dsc") -> Figure:
    """Boxes of ``measure`` (dsc or nsd) per organ, organs downwards as in the table, runs in their colours.

    The box spans the middle half of the cases, its line is the median, whiskers reach the furthest case within 1.5
    box lengths; every case is a point. A run without scores leaves its lane empty, so that colours keep their place.
    """
    lane = LANE_INCHES if len(runs) > 1 else 0.3
    row = lane * len(runs) + 0.14
    height = row * len(organs) + 0.55
    figure = new_figure(11.6, height)
    axes = figure.add_axes((0.145, 0.5 / height, 0.845, row * len(organs) / height))
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
    return figure


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
