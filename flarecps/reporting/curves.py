"""Learning curves from a run's ``metrics.csv``: one small chart per quantity, every run in the same axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from flarecps import metric_names
from flarecps.errors import DatasetError
from flarecps.reporting.plotting import MUTED, TEXT, logarithmic, new_figure, run_colour, style_axes
from flarecps.reporting.tables import finite_number
from flarecps.text_files import read_csv

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
    count: bool = False  # whole numbers


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
    Panel(
        "wait",
        "Waiting for data",
        "Share of the time in which training stood still for want of patches; above a tenth, take more data.workers.",
        ((0, metric_names.DATA_WAIT),),
        share=True,
    ),
    Panel(
        "gpu_memory",
        "GPU memory",
        "The most that tensors took in an epoch, in GB, on the fullest GPU. It should be flat once λ is above 0.",
        ((0, metric_names.GPU_MEMORY),),
    ),
    Panel(
        "patch_dsc",
        "DSC of validation patches",
        "A quick look after every epoch: overlap over the voxels of fixed patches; whole scans are what counts.",
        _siblings(metric_names.patch_dsc_mean),
        share=True,
    ),
    Panel(
        "patch_loss",
        "Loss of validation patches",
        "The supervised loss on the same patches. It rises while the training loss falls: overfitting.",
        _siblings(metric_names.patch_loss),
    ),
    Panel(
        "vanished",
        "Vanished classes",
        "Structures that a sibling’s pseudo-labels hold (almost) nothing of. A few at the start are usual; later, the "
        "siblings teach each other that these do not exist.",
        ((0, metric_names.HEALTH_VANISHED),),
        count=True,
    ),
    Panel(
        "held",
        "Epochs in which λ was held",
        "Counted up while classes are vanished and model.on_collapse is hold: λ waits until they are back.",
        ((0, metric_names.HEALTH_HELD),),
        count=True,
    ),
)


@dataclass(frozen=True)
class OrganChart:
    """One small chart per organ: a title, how to read it, and the metrics of an organ by sibling (0: of both)."""

    key: str
    title: str
    caption: str
    metrics_of: Callable[[str], tuple[tuple[int, str], ...]]
    ratio: bool = False  # values are ratios around 1, on a logarithmic scale; otherwise they lie between 0 and 1


ORGAN_CHARTS: tuple[OrganChart, ...] = (
    OrganChart(
        "organ-curves",
        "Validation DSC per organ",
        "Both siblings averaged, mean over validation scans, all charts with the same axes. A curve that stays at 0 is "
        "an organ the network has not found; small organs rise last.",
        lambda organ: ((0, metric_names.dsc("average", organ)),),
    ),
    OrganChart(
        "organ-patches",
        "DSC of validation patches per organ",
        "Over the voxels of all validation patches together, every epoch.",
        lambda organ: _siblings(lambda number: metric_names.patch_dsc(number, organ)),
    ),
    OrganChart(
        "health-agreement",
        "Pseudo-labels: do the siblings agree?",
        "Dice between the siblings’ labels of the same unlabelled patches; it needs no reference. Where it stays low, "
        "one sibling’s pseudo-labels are noise to the other.",
        lambda organ: ((0, metric_names.health_agreement(organ)),),
    ),
    OrganChart(
        "health-volume",
        "Pseudo-labels: as much of it as there should be?",
        "Share of the voxels of unlabelled patches that a sibling calls this organ, divided by its share in the "
        "labelled scans (the line at 1). Far below 1 the organ is vanishing from the pseudo-labels, far above it "
        "spreads; beyond 0.01 and 100, curves run along the edge. Patches are not whole scans, so look at the course "
        "rather than at the exact value.",
        lambda organ: _siblings(lambda number: metric_names.health_volume(number, organ)),
        ratio=True,
    ),
    OrganChart(
        "health-entropy",
        "Pseudo-labels: how sure are they?",
        "Mean entropy of unlabelled voxels that a sibling calls this organ: 0 is certain, 1 none the wiser. Low "
        "entropy beside low agreement means sure and wrong.",
        lambda organ: ((0, metric_names.health_entropy(organ)),),
    ),
)
LOWEST_RATIO, HIGHEST_RATIO = 0.01, 100.0  # of the scale; below a hundredth a class counts as vanished


def read_metrics(path: Path) -> dict[str, Curve]:
    """Every numeric column of a ``metrics.csv`` as a curve over completed epochs; {} without file or rows.

    A cell that is empty, not a number or not finite is no point. Older tables, with several rows per epoch that count
    from 0, are read alike; of several values of one epoch the last counts. A last line that is still being written is
    ignored.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    for row in read_csv(path, DatasetError, "expected a run's metrics.csv", growing=True).rows:
        epoch = metric_names.completed_epochs(row)
        if epoch is None:
            continue
        for name, cell in row.items():
            value = finite_number(cell)
            name = name.replace("train/learning_rate/", "learning_rate/")  # an older name
            if value is not None and name not in (metric_names.EPOCH, metric_names.STEPS, metric_names.STEP):
                points.setdefault(name, {})[epoch] = value
    return {
        name: Curve(np.array(sorted(series)), np.array([series[epoch] for epoch in sorted(series)]))
        for name, series in points.items()
    }


def last_epoch(metrics: Metrics) -> int:
    """The number of epochs a run has completed according to its metrics; 0 for none."""
    return max((int(curve.epochs[-1]) for curve in metrics.values()), default=0)


def drawable(panel: Panel, runs: Sequence[Metrics]) -> bool:
    """Whether any run has a curve for this chart."""
    return any(_curves(panel, metrics) for metrics in runs)


def panel_figure(panel: Panel, runs: Sequence[Metrics], groups: Sequence[int] | None = None) -> Figure:
    """One chart of a ``drawable`` panel: a colour per run, a solid line for sibling 1, a dashed one for sibling 2.

    ``groups`` gives every run the number of its group, whose colour it has. Of several runs in a group there are a thin
    line each, their mean, and a band of one standard deviation around it.
    """
    figure = new_figure(4.3, 2.5)
    axes = figure.add_axes((0.115, 0.165, 0.865, 0.80))
    style_axes(axes)
    drawn = [
        (index, sibling, curve) for index, metrics in enumerate(runs) for sibling, curve in _curves(panel, metrics)
    ]
    _draw_groups(axes, drawn, groups or range(len(runs)))
    values = np.concatenate([curve.values for _, _, curve in drawn])
    if panel.logarithmic:
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    elif values.min() >= 0:
        axes.set_ylim(0.0, None if values.max() > 0 else 1.0)
    if panel.share:
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
    if panel.count:
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    _epoch_axis(axes, runs, bins=6)
    axes.set_xlabel("epoch", labelpad=2)
    return figure


def organ_figure(
    runs: Sequence[Metrics],
    organ_names: Sequence[str],
    chart: OrganChart = ORGAN_CHARTS[0],
    groups: Sequence[int] | None = None,
) -> Figure | None:
    """``chart`` of every organ as its own small picture, all with the same axes; None when none was logged.

    ``groups`` as in ``panel_figure``.
    """
    names = [one for one in organ_names if any(name in run for run in runs for _, name in chart.metrics_of(one))]
    if not names:
        return None
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(2.32 * columns, 1.45 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    left = (0.5 if chart.ratio else 0.46) / figure.get_figwidth()
    figure.subplots_adjust(left, 0.34 / figure.get_figheight(), 0.985, 1 - 0.25 / figure.get_figheight(), 0.12, 0.35)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        style_axes(axes)
        axes.set_title(names[place], fontsize=9, color=TEXT, pad=3, loc="left", parse_math=False)
        drawn = []
        for index, metrics in enumerate(runs):
            for sibling, name in chart.metrics_of(names[place]):
                if name in metrics:
                    curve = metrics[name]
                    values = np.clip(curve.values, LOWEST_RATIO, HIGHEST_RATIO) if chart.ratio else curve.values
                    drawn.append((index, sibling, Curve(curve.epochs, values)))
        _draw_groups(axes, drawn, groups or range(len(runs)))
        if chart.ratio:
            axes.set_yscale("log")
            axes.set_ylim(LOWEST_RATIO, HIGHEST_RATIO)
            axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.axhline(1, color=MUTED, linewidth=0.9, zorder=1)
        else:
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


def mean_curve(curves: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
    """The mean of several curves, and their standard deviation (n - 1), over the epochs that all of them have."""
    common = sorted(set.intersection(*(set(curve.epochs.tolist()) for curve in curves)))
    values = np.array([curve.values[np.isin(curve.epochs, common)] for curve in curves])
    return Curve(np.array(common), values.mean(0)), values.std(0, ddof=1)


def _draw_groups(axes: Axes, drawn: Sequence[tuple[int, int, Curve]], groups: Sequence[int]) -> None:
    """Draw (run, sibling, curve): those of one group and sibling in one colour, as their mean where there are more."""
    together: dict[tuple[int, int], list[Curve]] = {}
    for run, sibling, curve in drawn:
        together.setdefault((groups[run], sibling), []).append(curve)
    for (group, sibling), curves in together.items():
        colour = run_colour(group)
        if len(curves) == 1:
            _draw(axes, curves[0], colour, sibling)
            continue
        for curve in curves:
            _draw(axes, curve, colour, sibling, thin=True)
        mean, spread = mean_curve(curves)
        if len(mean.epochs):
            low, high = mean.values - spread, mean.values + spread
            lowest = min(curve.values.min() for curve in curves)
            if axes.get_yscale() == "log" or lowest >= 0:
                low = np.maximum(low, lowest)  # no band where no value can be
            axes.fill_between(mean.epochs, low, high, color=colour, alpha=0.16, linewidth=0)
            _draw(axes, mean, colour, sibling)


def _draw(axes: Axes, curve: Curve, colour: str, sibling: int, thin: bool = False) -> None:
    axes.plot(
        curve.epochs,
        curve.values,
        color=colour,
        linestyle=SIBLING_STYLES.get(sibling, "-"),
        linewidth=0.7 if thin else 1.5,
        alpha=0.45 if thin else 1.0,
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
