"""Processor, memory and card over the time of one measured run: the whole machine, and the process tree in it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flarecps.atomic import atomic_path
from flarecps.evaluation.efficiency import Trace, flare_figures, host_cpu_percent, tree_cpu_percent
from flarecps.reporting.pictures import INK, QUIET, new_figure, plain, run_colour, style_axes, write_png

PANEL_INCHES = 1.75
MOST_LEVELS = 300
HOST, TREE = "whole machine", "process tree"


def efficiency_figure(trace: Trace, title: str) -> Figure:
    """One panel each for processor (%), memory (GB) and, with a card, its memory, over one time axis in seconds."""
    panels = 2 if trace.card_mb is None else 3
    height = PANEL_INCHES * panels + 1.0
    figure = new_figure(9.0, height, "white")
    figure.text(0.075, 1 - 0.3 / height, plain(title), fontsize=11.5, color=INK, fontweight="bold", va="center")
    figure.text(0.075, 1 - 0.55 / height, _subtitle(trace), fontsize=9, color=QUIET, va="center")
    axes: list[Axes] = []
    for panel in range(panels):
        bottom = 0.5 + (panels - 1 - panel) * PANEL_INCHES
        share = axes[0] if axes else None
        place = (0.075, bottom / height, 0.905, (PANEL_INCHES - 0.35) / height)
        axes.append(figure.add_axes(place, sharex=share))
        style_axes(axes[-1])
    _steps(axes[0], trace.time_s, host_cpu_percent(trace), tree_cpu_percent(trace))
    axes[0].set_ylim(0, 104)
    axes[0].set_ylabel("CPU (% of all cores)")
    _lines(axes[1], trace.time_s, trace.host_ram_mb / 1024, trace.tree_ram_mb / 1024)
    axes[1].set_ylabel("RAM (GiB)")
    if trace.card_mb is not None:
        tree = None if trace.tree_card_mb is None else trace.tree_card_mb / 1024
        _lines(axes[2], trace.time_s, trace.card_mb / 1024, tree)
        axes[2].set_ylabel("GPU memory (GiB)")
    for one in axes[1:]:
        one.set_ylim(0, max(0.01, 1.1 * one.dataLim.y1))
    for one in axes[:-1]:
        one.tick_params(axis="x", labelbottom=False)
    axes[-1].set_xlabel("time since the start (s)")
    axes[0].set_xlim(0, trace.duration_s)
    axes[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=QUIET, borderpad=0.1
    )
    return figure


def write_figures(folder: Path, name: str, figure: Figure) -> None:
    """Write ``NAME.png`` and ``NAME.svg`` (its words as text)."""
    write_png(folder / f"{name}.png", figure)
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        atomic_path(folder / f"{name}.svg") as p,
    ):
        figure.savefig(p, format="svg", metadata={"Date": None})


def _subtitle(trace: Trace) -> str:
    flare = flare_figures(trace)
    words = [f"{trace.duration_s:.2f} s", f"{trace.tree_cpu_s[-1]:.1f} s of processor time on {trace.cores} cores"]
    words.append(f"tree at most {trace.tree_ram_mb.max() / 1024:.2f} GiB")
    if trace.card_mb is not None:
        words.append(f"GPU_Mem {flare['GPU_Mem']:.0f} MB")
    return ", ".join(words)


def _steps(axes: Axes, time_s: np.ndarray, host: np.ndarray, tree: np.ndarray) -> None:
    """Means over intervals: level from each reading back to the one before; the shaded area is the AUC."""
    for values, colour, label, alpha in ((host, run_colour(0), HOST, 0.12), (tree, run_colour(1), TREE, 0.22)):
        ends, levels = levels_between(time_s, values)
        levels = np.minimum(100, np.concatenate([levels[:1], levels]))  # the system counts in hundredths of a second
        axes.fill_between(ends, levels, step="pre", color=colour, alpha=alpha, linewidth=0)
        axes.plot(ends, levels, drawstyle="steps-pre", color=colour, linewidth=1.3, label=label)


def levels_between(time_s: np.ndarray, percent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges in time and the mean between each two; of a long run as many as can be told apart, with the same area."""
    if len(time_s) <= MOST_LEVELS:
        return time_s, percent[1:]
    area = np.concatenate([[0.0], np.cumsum(percent[1:] * np.diff(time_s))])
    edges = np.linspace(0.0, time_s[-1], MOST_LEVELS + 1)
    return edges, np.diff(np.interp(edges, time_s, area)) / np.diff(edges)


def _lines(axes: Axes, time_s: np.ndarray, host: np.ndarray, tree: np.ndarray | None) -> None:
    for values, colour, label, alpha in ((host, run_colour(0), HOST, 0.12), (tree, run_colour(1), TREE, 0.22)):
        if values is not None:
            axes.fill_between(time_s, values, color=colour, alpha=alpha, linewidth=0)
            axes.plot(time_s, values, color=colour, linewidth=1.3, label=label)
