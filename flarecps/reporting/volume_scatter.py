"""Predicted against reference volume of every organ: is it systematically too large, too small, or all over?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flarecps.evaluation.score_table import ScoreTable
from flarecps.reporting.pictures import INK, QUIET, RULE, method_legend, new_figure, run_colour, shortened, style_axes

LIMITS_SD = 1.96  # 95 % of a normal distribution lie within
COLUMNS = 5
WIDTH_INCHES = 11.6
LINE_INCHES = 0.15


@dataclass(frozen=True)
class Agreement:
    """Predicted minus reference volume over ``n`` cases in ml: mean, and 95 % limits of agreement (NaN for n < 2)."""

    bias_ml: float
    low_ml: float
    high_ml: float
    n: int


def volume_pairs(table: ScoreTable, organ: str) -> np.ndarray:
    """(cases, 2) millilitres of reference and prediction; cases with neither are left out."""
    scores = [case.organs[organ] for case in table.cases.values() if not case.missing]
    pairs = [(one.reference_ml, one.prediction_ml) for one in scores if one.reference_ml or one.prediction_ml]
    return np.array(pairs, float).reshape(-1, 2)


def agreement(pairs: np.ndarray) -> Agreement:
    """The limits of agreement of Bland and Altman (1986): mean difference ± 1.96 of its SD (n - 1).

    >>> agreement(np.array([[10.0, 12.0], [20.0, 20.0], [30.0, 31.0]]))
    Agreement(bias_ml=1.0, low_ml=-0.96, high_ml=2.96, n=3)
    """
    changes = pairs[:, 1] - pairs[:, 0]
    if not changes.size:
        return Agreement(math.nan, math.nan, math.nan, 0)
    mean = float(changes.mean())
    reach = LIMITS_SD * float(changes.std(ddof=1)) if changes.size > 1 else math.nan
    return Agreement(mean, mean - reach, mean + reach, int(changes.size))


def volume_figure(tables: Sequence[ScoreTable], names: Sequence[str]) -> Figure:
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
        axes = figure.add_axes((left / width, (upper - words - side) / height, side / width, side / height))
        _chart(axes, [volume_pairs(table, organ.name) for table in tables])
        if place % columns == 0:
            axes.set_ylabel("predicted, ml", labelpad=2)
        if place + columns >= len(organs):
            axes.set_xlabel("reference, ml", labelpad=2)
        room = int(side / LINE_INCHES * 2)
        figure.text(
            left / width, (upper - 0.06) / height, shortened(organ.name, room), ha="left", va="top", color=INK,
            fontsize=9.5, fontweight="bold", parse_math=False,
        )  # fmt: skip
        for line, table in enumerate(tables):
            figure.text(
                left / width,
                (upper - 0.25 - LINE_INCHES * line) / height,
                in_words(agreement(volume_pairs(table, organ.name))),
                ha="left",
                va="top",
                color=run_colour(line) if len(tables) > 1 else QUIET,
                fontsize=8,
            )
    method_legend(figure, names, top_inches=0.06)
    return figure


def in_words(found: Agreement) -> str:
    """``+1.0 ml (−1.0 to +3.0)``: the bias and its limits.

    >>> in_words(Agreement(1.0, -0.96, 2.96, 3)), in_words(Agreement(12.0, float("nan"), float("nan"), 1))
    ('+1.0 ml (−1.0 to +3.0)', '+12 ml')
    """
    if not found.n:
        return "no case"
    ends = [found.bias_ml, found.low_ml, found.high_ml]
    largest = max(abs(one) for one in ends if math.isfinite(one))
    digits = 0 if largest >= 10 else 1 if largest >= 1 else 2
    bias, low, high = (f"{round(one, digits) + 0.0:+.{digits}f}".replace("-", "−") for one in ends)
    return f"{bias} ml" + (f" ({low} to {high})" if math.isfinite(found.low_ml) else "")


def _chart(axes: Axes, pairs: Sequence[np.ndarray]) -> None:
    style_axes(axes)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    largest = max((float(one.max()) for one in pairs if one.size), default=1.0) or 1.0
    end = 1.06 * largest
    axes.plot([0, end], [0, end], color=QUIET, linewidth=0.9, zorder=1)
    for index, one in enumerate(pairs):
        axes.plot(
            one[:, 0],
            one[:, 1],
            "o",
            color=run_colour(index),
            markersize=4,
            alpha=0.75,
            markeredgewidth=0,
            clip_on=False,
            zorder=2,
        )
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
