"""The kbp experiment's figures; ``table.py`` draws them with its tables."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from arms import ALL_LABELS, CONTROL, CONTROL_LONG, CPS, CPS_LONG, FEW_LABELS, TWO_CONTROLS, TWO_SHORT_CONTROLS
from entries import LINES, entry, main_entries, read_rows

from flarecps import metric_names
from flarecps.evaluation.score_table import read_scores
from flarecps.reporting.curves import read_metrics

SMOOTHED_EPOCHS = 5  # of the supervised loss, which is noisy: two patches a step
COLOURS = {CPS.name: "tab:orange", CPS_LONG.name: "tab:red", CONTROL.name: "tab:grey", CONTROL_LONG.name: "tab:blue"}


def draw_scores(results: Path, labels: int = 10) -> None:
    """results.png: DSC and NSD of every arm, a dot per training."""
    entries = main_entries(labels)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.5 + 0.36 * len(entries)), sharey=True, layout="constrained")
    for axis, measure in zip(axes, ("dsc", "nsd"), strict=True):
        for row, one in enumerate(entries):
            method = one.method()
            means = method.seed_means(measure)
            colour = COLOURS.get(one.arm.name, "tab:green") if one.labels == labels else "black"
            axis.plot(means, np.full(len(means), row), "o", color=colour, alpha=0.5, ms=5)
            axis.plot(means.mean(), row, "|", color=colour, ms=16, mew=2)
        axis.set(xlabel=f"{measure.upper()}, mean of 4 organs and 25 test scans")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(entries)), yticklabels=[one.title for one in entries])
    axes[0].invert_yaxis()
    figure.savefig(results / "results.png", dpi=120)


def draw_labels(results: Path) -> None:
    """labels.png: DSC of every arm by the number of labelled scans, ± SD over trainings; averages of two are dashed."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    counts = (*sorted(FEW_LABELS), ALL_LABELS)
    for title, arm, sibling in LINES:
        found = [one for one in (entry(title, arm, count, sibling, results) for count in counts) if one.files]
        if not found:
            continue
        dsc = [[read_scores(path).mean() for path in one.files] for one in found]
        spread = [np.std(one, ddof=1) if len(one) > 1 else 0 for one in dsc]
        single = sibling == "1" and arm not in (TWO_CONTROLS, TWO_SHORT_CONTROLS)
        style = {
            "color": COLOURS[arm.name.removesuffix("_two")],
            "ls": "-" if single else "--",
            "marker": "o" if single else "s",
        }
        axis.errorbar(
            [one.labels for one in found], [np.mean(one) for one in dsc], spread, label=title, capsize=3, ms=4, **style
        )
    axis.set(xscale="log", xlabel="labelled scans of 142", ylabel="DSC, mean of 4 organs and 25 test scans")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(results / "labels.png", dpi=120)


def draw_curves(results: Path, labels: int = 10) -> None:
    """curves.png: the supervised loss, the siblings' agreement, and how true their labels are, over training."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for arm in (CONTROL, CONTROL_LONG, CPS):
        folder = results / "runs" / f"{labels}_labelled" / arm.name
        for number, path in enumerate(sorted(folder.glob("*/metrics.csv"))):
            metrics = read_metrics(path)
            style = {"color": COLOURS[arm.name], "lw": 1, "label": None if number else arm.title}
            loss = metrics[metric_names.supervised_loss(1)]
            means = np.convolve(loss.values, np.full(SMOOTHED_EPOCHS, 1 / SMOOTHED_EPOCHS), "valid")
            axes[0].plot(loss.epochs[SMOOTHED_EPOCHS - 1 :], means, **style)
            agreement = [curve for name, curve in metrics.items() if name.startswith(metric_names.health_agreement(""))]
            if agreement:
                axes[1].plot(agreement[0].epochs, np.mean([curve.values for curve in agreement], axis=0), **style)
    draw_truth(axes[2], results / "runs" / f"{labels}_labelled" / CPS.name / "seed_0" / "pseudo_labels.csv")
    axes[0].set(xlabel="epoch of 50 steps", ylabel=f"Lsup of sibling 1, mean of {SMOOTHED_EPOCHS} epochs")
    axes[1].set(xlabel="epoch of 50 steps", ylabel="Dice between the siblings,\nunlabelled patches", ylim=(0, 1))
    axes[0].legend(frameon=False)
    figure.savefig(results / "curves.png", dpi=120)


def draw_truth(axis: plt.Axes, path: Path) -> None:
    """Pseudo-labels against the withheld labels, per organ: DSC of sibling 1, and of the siblings with each other."""
    axis.set(xlabel="epoch of 50 steps", ylabel="Dice over 15 unlabelled scans", ylim=(0, 1))
    if not path.is_file():
        return
    rows = read_rows(path)
    organs = list(dict.fromkeys(row["organ"] for row in rows))
    for number, organ in enumerate(organs):
        mine = [row for row in rows if row["organ"] == organ]
        epochs = [int(row["epoch"]) for row in mine]
        axis.plot(epochs, [float(row["sibling_1_dsc"]) for row in mine], color=f"C{number}", label=organ)
        axis.plot(epochs, [float(row["agreement"]) for row in mine], color=f"C{number}", ls=":")
    axis.plot([], [], color="black", label="sibling 1 with the truth")
    axis.plot([], [], color="black", ls=":", label="the siblings with each other")
    axis.legend(frameon=False, fontsize=8)
