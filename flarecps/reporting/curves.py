"""Learning curves from Lightning's ``metrics.csv``: one small chart per quantity, every run in the same axes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from flarecps import metric_names
from flarecps.reporting.pictures import INK, new_figure, run_colour, style_axes

SIBLING_STYLES = {1: "-", 2: (0, (4, 2))}


@dataclass(frozen=True)
class Curve:
    """One logged quantity: ``epochs`` (completed epochs, ascending) and finite ``values`` of the same length."""

    epochs: np.ndarray
    values: np.ndarray


Metrics = Mapping[str, Curve]  # metric name -> curve


@dataclass(frozen=True)
class Panel:
    """One chart: a title, how to read it, and which metric belongs to which sibling (0: to both together)."""

    key: str
    title: str
    caption: str
    metrics: tuple[tuple[int, str], ...]
    logarithmic: bool = False
    share: bool = False  # values lie between 0 and 1


def _siblings(name_of: Callable[[int], str]) -> tuple[tuple[int, str], ...]:
    return tuple((number, name_of(number)) for number in SIBLING_STYLES)


PANELS: tuple[Panel, ...] = (
    Panel(
        "dsc",
        "Validation DSC",
        "Overlap with the reference on whole validation scans, mean over cases, then organs; 1 is perfect.",
        ((0, metric_names.DSC_MEAN),),
        share=True,
    ),
    Panel(
        "loss",
        "Total loss L",
        "Lsup of the siblings plus λ times Lcps. It may rise with λ; a control, with one network, starts lower.",
        ((0, metric_names.LOSS_TOTAL),),
    ),
    Panel(
        "supervised",
        "Supervised loss Lsup",
        "Dice and cross-entropy against the reference labels; should fall for both siblings alike.",
        _siblings(metric_names.supervised_loss),
    ),
    Panel(
        "cross_pseudo",
        "Cross-pseudo loss Lcps",
        "Disagreement of each sibling with the other’s pseudo-labels, before λ. A control has none.",
        _siblings(metric_names.cross_pseudo_loss),
    ),
    Panel(
        "lambda",
        "Weight λ of Lcps",
        "How much the cross-pseudo loss counts; it is ramped up once the siblings know something.",
        ((0, metric_names.LAMBDA),),
    ),
    Panel(
        "rate",
        "Learning rate",
        "Each sibling’s own rate, on a logarithmic scale; a step down is a plateau of the loss.",
        _siblings(metric_names.learning_rate),
        logarithmic=True,
    ),
    Panel(
        "speed",
        "Throughput",
        "Patches per second. A fall in the middle of a run points to a slow disk or a busy machine.",
        ((0, metric_names.PATCHES_PER_SECOND),),
    ),
)


def read_metrics(path: Path) -> dict[str, Curve]:
    """Every numeric column of a CSVLogger file as a curve over completed epochs; {} without file or rows.

    Rows are sparse: a cell that is empty, not a number or not finite is no point. The row of epoch index e counts
    as e + 1 completed epochs. Of several rows of one epoch (a resumed run) the last counts. A last line that is
    still being written is ignored.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            epoch = _number(row.pop("epoch", None))
            if None in row or None in row.values() or epoch is None:  # too many cells, too few, or no epoch
                continue
            for name, cell in row.items():
                value = _number(cell)
                if value is not None and name != "step":
                    points.setdefault(name, {})[int(epoch) + 1] = value
    return {
        name: Curve(np.array(sorted(series)), np.array([series[epoch] for epoch in sorted(series)]))
        for name, series in points.items()
    }


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def last_epoch(metrics: Metrics) -> int:
    """The number of epochs a run has completed according to its metrics; 0 for none."""
    return max((int(curve.epochs[-1]) for curve in metrics.values()), default=0)


def drawable(panel: Panel, runs: Sequence[Metrics]) -> bool:
    """Whether any run has a curve for this chart."""
    return any(_curves(panel, metrics) for metrics in runs)


def panel_figure(panel: Panel, runs: Sequence[Metrics]) -> Figure:
    """One chart of a ``drawable`` panel: a colour per run, a solid line for sibling 1, a dashed one for sibling 2."""
    figure = new_figure(4.3, 2.5)
    axes = figure.add_axes((0.115, 0.165, 0.865, 0.80))
    style_axes(axes)
    values: list[float] = []
    for index, metrics in enumerate(runs):
        for sibling, curve in _curves(panel, metrics):
            _draw(axes, curve, run_colour(index), sibling)
            values += curve.values.tolist()
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif min(values) >= 0:
        axes.set_ylim(0.0, None if max(values) > 0 else 1.0)
    if panel.share:
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
    _epoch_axis(axes, runs, bins=6)
    axes.set_xlabel("epoch", labelpad=2)
    return figure


def organ_figure(runs: Sequence[Metrics], organ_names: Sequence[str], source: str = "average") -> Figure | None:
    """Validation DSC of every organ in its own small chart, all with the same axes; None when none was logged.

    ``source`` is ``sibling_1``, ``sibling_2`` or ``average``, as in ``metric_names.dsc``.
    """
    names = [name for name in organ_names if any(metric_names.dsc(source, name) in metrics for metrics in runs)]
    if not names:
        return None
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(2.32 * columns, 1.45 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(0.04, 0.34 / figure.get_figheight(), 0.985, 1 - 0.25 / figure.get_figheight(), 0.12, 0.35)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        style_axes(axes)
        axes.set_title(names[place], fontsize=9, color=INK, pad=3, loc="left", parse_math=False)
        for index, metrics in enumerate(runs):
            curve = metrics.get(metric_names.dsc(source, names[place]))
            if curve is not None:
                _draw(axes, curve, run_colour(index), 0)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1])
        _epoch_axis(axes, runs, bins=4)
        if place + columns >= len(names):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch", labelpad=1)
    return figure


def _curves(panel: Panel, metrics: Metrics) -> list[tuple[int, Curve]]:
    found = [(sibling, metrics[name]) for sibling, name in panel.metrics if name in metrics]
    if panel.key == "cross_pseudo":  # a supervised control logs zeros
        found = [(sibling, curve) for sibling, curve in found if curve.values.any()]
    if panel.logarithmic:
        found = [(sibling, curve) for sibling, curve in found if (curve.values > 0).all()]
    return found


def _draw(axes: Axes, curve: Curve, colour: str, sibling: int) -> None:
    axes.plot(
        curve.epochs,
        curve.values,
        color=colour,
        linestyle=SIBLING_STYLES.get(sibling, "-"),
        linewidth=1.5,
        marker="o" if len(curve.epochs) == 1 else None,
        markersize=4,
        solid_joinstyle="round",
        clip_on=False,  # a curve along zero lies on the axis
    )


def _epoch_axis(axes: Axes, runs: Sequence[Metrics], bins: int) -> None:
    longest = max(2, *(last_epoch(metrics) for metrics in runs))
    axes.set_xlim(1, longest)
    regular = MaxNLocator(nbins=bins, integer=True).tick_values(0, longest)
    axes.xaxis.set_major_locator(FixedLocator([1, *(tick for tick in regular if 1 < tick <= longest)]))
