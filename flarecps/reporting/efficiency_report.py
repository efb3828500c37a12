"""Measured runs on disk: one record and one figure per case, and tables over all of them with FLARE's columns.

OUT/cases/NAME.json, NAME.samples.csv, NAME.png, NAME.svg   OUT/efficiency.csv   OUT/efficiency_all.csv
The tables are made from the records, so a case measured again replaces its row, and no run can spoil another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flarecps import __version__
from flarecps.atomic import PARTIAL_PREFIX, atomic_path, write_json, write_text
from flarecps.errors import ConfigError
from flarecps.evaluation.efficiency import (
    FLARE_COLUMNS,
    Trace,
    figures_row,
    flare_figures,
    host_cpu_percent,
    tree_cpu_percent,
)
from flarecps.evaluation.measured_run import MeasuredRun
from flarecps.json_fields import Reader
from flarecps.reporting.plotting import MUTED, TEXT, literal_text, new_figure, run_colour, style_axes, write_png
from flarecps.text_files import LARGEST_INTEGER, csv_text, read_json

FORMAT, FORMAT_VERSION = "flarecps-efficiency", 1
CASES = "cases"
DECIMALS = 3  # of the further columns
PANEL_INCHES = 1.75
MOST_LEVELS = 300
SERIES = ((run_colour(0), "whole machine", 0.12), (run_colour(1), "process tree", 0.22))  # colour, name, opacity


def checked_case_name(name: str) -> str:
    """``name`` if it can be a file's name. Raises ConfigError otherwise."""
    if not name.strip() or "/" in name or "\\" in name or name.startswith("."):
        raise ConfigError(f"--name {name!r}: expected the case's name, without folders (it names files in OUT/{CASES})")
    return name


def write_measured_run(
    out: Path, name: str, run: MeasuredRun, card: str | None, started: str, remarks: Sequence[str]
) -> int:
    """Write the record and samples of a run and the tables of all runs in ``out``; returns how many are in these.

    A run with another exit code than 0 is recorded, but is in no table.
    """
    folder = out / CASES
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.samples.csv", _samples_csv(run.trace))
    record = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "flarecps": __version__,
        "name": name,
        "command": list(run.command),
        "started": started,
        "exit_code": run.exit_code,
        "interrupted": run.interrupted,
        "outlived_by": list(run.left),
        "machine": {"cores": run.trace.cores, "ram_mb": round(psutil.virtual_memory().total / 2**20), "card": card},
        "interval_s": run.trace.interval_s,
        "figures": dict(figures_row(name, run.trace, run.exit_code)),
        "remarks": list(remarks),
    }
    write_json(folder / f"{name}.json", record)
    rows = _good_rows(folder)
    further = dict.fromkeys(key for row in rows for key in row if key not in FLARE_COLUMNS)
    for table, columns in (("efficiency.csv", FLARE_COLUMNS), ("efficiency_all.csv", (*FLARE_COLUMNS, *further))):
        cells = [[row.get(column) for column in columns] for row in rows]
        rounded = [[round(cell, DECIMALS) if isinstance(cell, float) else cell for cell in line] for line in cells]
        write_text(out / table, csv_text([columns, *rounded]))
    return len(rows)


def _samples_csv(trace: Trace) -> str:
    """All readings: time, and processor and memory of machine, process tree and card."""
    columns = {
        "time_s": trace.time_s,
        "host_cpu_percent": host_cpu_percent(trace),
        "host_ram_mb": trace.host_ram_mb,
        "tree_cpu_percent": tree_cpu_percent(trace),
        "tree_cpu_s": trace.tree_cpu_s,
        "tree_ram_mb": trace.tree_ram_mb,
        "card_mb": trace.card_mb,
        "tree_card_mb": trace.tree_card_mb,
    }
    there = {name: values for name, values in columns.items() if values is not None}
    rows = ([f"{number:.{DECIMALS}f}" for number in row] for row in zip(*there.values(), strict=True))
    return csv_text([list(there), *rows])


def _good_rows(folder: Path) -> list[Mapping[str, Any]]:
    """The figures of all finished runs in a folder, by name."""
    rows: list[Mapping[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(PARTIAL_PREFIX):
            continue
        expected = "expected the record of a measured run: remove it, or give --out another folder"
        record = Reader(read_json(path, ConfigError, expected), str(path), kind=ConfigError, again=expected)
        if record.string("format") == FORMAT and record.integer("exit_code", at_least=-LARGEST_INTEGER) == 0:
            figures = record.section("figures")
            rows.append(figures.content | {"Name": figures.string("Name")})
    return rows


def efficiency_figure(trace: Trace, title: str) -> Figure:
    """One panel each for processor (%), memory (GB) and, with a card, its memory, over one time axis in seconds."""
    memory: list[tuple[str, np.ndarray, np.ndarray | None]] = [("RAM (GiB)", trace.host_ram_mb, trace.tree_ram_mb)]
    if trace.card_mb is not None:
        memory.append(("GPU memory (GiB)", trace.card_mb, trace.tree_card_mb))
    panels = 1 + len(memory)
    height = PANEL_INCHES * panels + 1.0
    figure = new_figure(9.0, height, "white")
    figure.text(0.075, 1 - 0.3 / height, literal_text(title), fontsize=11.5, color=TEXT, fontweight="bold", va="center")
    words = [f"{trace.duration_s:.2f} s", f"{trace.tree_cpu_s[-1]:.1f} s of processor time on {trace.cores} cores"]
    words.append(f"tree at most {trace.tree_ram_mb.max() / 1024:.2f} GiB")
    if trace.card_mb is not None:
        words.append(f"GPU_Mem {flare_figures(trace)['GPU_Mem']:.0f} MB")
    figure.text(0.075, 1 - 0.55 / height, ", ".join(words), fontsize=9, color=MUTED, va="center")
    axes: list[Axes] = []
    for panel in range(panels):
        bottom = 0.5 + (panels - 1 - panel) * PANEL_INCHES
        share = axes[0] if axes else None
        place = (0.075, bottom / height, 0.905, (PANEL_INCHES - 0.35) / height)
        axes.append(figure.add_axes(place, sharex=share))
        style_axes(axes[-1])
    for values, (colour, label, alpha) in zip((host_cpu_percent(trace), tree_cpu_percent(trace)), SERIES, strict=True):
        ends, levels = binned_means(trace.time_s, values)  # level from each reading to the one before: the area is AUC
        levels = np.minimum(100, np.concatenate([levels[:1], levels]))  # the system counts in hundredths of a second
        axes[0].fill_between(ends, levels, step="pre", color=colour, alpha=alpha, linewidth=0)
        axes[0].plot(ends, levels, drawstyle="steps-pre", color=colour, linewidth=1.3, label=label)
    axes[0].set_ylim(0, 104)
    axes[0].set_ylabel("CPU (% of all cores)")
    for one, (heading, host_mb, tree_mb) in zip(axes[1:], memory, strict=True):
        for readings_mb, (colour, label, alpha) in zip((host_mb, tree_mb), SERIES, strict=True):
            if readings_mb is not None:
                one.fill_between(trace.time_s, readings_mb / 1024, color=colour, alpha=alpha, linewidth=0)
                one.plot(trace.time_s, readings_mb / 1024, color=colour, linewidth=1.3, label=label)
        one.set_ylabel(heading)
        one.set_ylim(0, max(0.01, 1.1 * one.dataLim.y1))
    for one in axes[:-1]:
        one.tick_params(axis="x", labelbottom=False)
    axes[-1].set_xlabel("time since the start (s)")
    axes[0].set_xlim(0, trace.duration_s)
    axes[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=MUTED, borderpad=0.1
    )
    return figure


def write_efficiency_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write ``NAME.png``, and ``NAME.svg`` with its words as text: the same bytes for the same figure."""
    write_png(folder / f"{name}.png", figure)
    path = folder / f"{name}.svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), atomic_path(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})


def binned_means(time_s: np.ndarray, percent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges in time and the mean between each two; of a long run as many as can be told apart, with the same area."""
    if len(time_s) <= MOST_LEVELS:
        return time_s, percent[1:]
    area = np.concatenate([[0.0], np.cumsum(percent[1:] * np.diff(time_s))])
    edges = np.linspace(0.0, time_s[-1], MOST_LEVELS + 1)
    return edges, np.diff(np.interp(edges, time_s, area)) / np.diff(edges)
