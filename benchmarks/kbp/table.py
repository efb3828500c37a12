"""The kbp experiment's tables and figures, from the files that ``run.py`` kept.

    python benchmarks/kbp/table.py [RESULTS]

Writes RESULTS/tables.md (what README.md shows), one folder of ``flarecps compare`` per number of labels, and
RESULTS/curves.png. Only files in RESULTS are read: whoever has the repository can make them again.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from protocol import ABLATIONS, ALL_LABELS, CONTROL, CONTROL_LONG, CPS, Arm

RESULTS = Path(__file__).resolve().parents[1] / "results" / "kbp"
TWO_CONTROLS = Arm(f"{CONTROL_LONG.name}_two", "two controls averaged, equal compute each", CONTROL_LONG.config)
COLOURS = {CPS.name: "tab:orange", CONTROL.name: "tab:grey", CONTROL_LONG.name: "tab:blue"}


def score_files(results: Path, labels: int, arm: str, sibling: str) -> list[Path]:
    """The score tables of an arm, one per seed; none where no run is done."""
    return sorted((results / "runs" / f"{labels}_labelled" / arm).glob(f"seed_*/scores_{sibling}.csv"))


def methods(results: Path, labels: int) -> dict[str, list[Path]]:
    """Title → score files of all that was run with so many labels; the control at equal steps is the baseline."""
    named = {
        CONTROL.title: (labels, CONTROL.name, "1"),
        CONTROL_LONG.title: (labels, CONTROL_LONG.name, "1"),
        "CPS, sibling 1": (labels, CPS.name, "1"),
        "CPS, average": (labels, CPS.name, "average"),
        TWO_CONTROLS.title: (labels, TWO_CONTROLS.name, "1"),
        "all 142 labelled": (ALL_LABELS, CONTROL_LONG.name, "1"),
    }
    for arm in ABLATIONS:
        named[arm.title] = (labels, arm.name, "1")
    found = {title: score_files(results, *key) for title, key in named.items()}
    return {title: files for title, files in found.items() if files}


def compare(results: Path, labels: int, files: dict[str, list[Path]]) -> Path:
    """The folder with ``flarecps compare``'s tables of these methods."""
    folder = results / f"{labels}_labelled"
    words = [",".join(os.path.relpath(path, results) for path in paths) for paths in files.values()]
    names = ",".join(title.replace(",", ";") for title in files)
    command = [sys.executable, "-m", "flarecps", "compare", *words, "--names", names, "--out", folder.name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=results)
    return folder


def rows_of(folder: Path, files: dict[str, list[Path]]) -> list[str]:
    """A Markdown row per method: seeds, mean DSC and NSD, the difference from the baseline with interval and test."""
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    rows = []
    for title, paths in files.items():
        name = title.replace(",", ";")
        words = [title, str(len(paths))]
        for measure in ("dsc", "nsd"):
            cell = record["means"][measure][name]["mean"]
            spread = f" ± {cell['seeds_sd']:.4f}" if cell["seeds_sd"] is not None else ""
            words.append(f"{cell['mean']:.4f}{spread}")
        difference = record["differences"]["dsc"].get(name, {}).get("mean")
        words += ["", "", ""] if difference is None else difference_words(difference)
        rows.append("| " + " | ".join(words) + " |")
    return rows


def difference_words(difference: dict) -> list[str]:
    """Mean and 95 % interval, p of Wilcoxon's signed ranks, cases better : worse."""
    interval, counts = difference["interval"], difference["counts"]
    return [
        f"{difference['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})",
        f"{difference['p']:.2g}",
        f"{counts['wins']} : {counts['losses']}",
    ]


def curves(results: Path, labels: int = 10) -> Path | None:
    """The supervised training loss and the pseudo-labels' health over time, all seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for arm in (CONTROL, CONTROL_LONG, CPS):
        for number, path in enumerate(
            sorted((results / "runs" / f"{labels}_labelled" / arm.name).glob("*/metrics.csv"))
        ):
            with path.open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            colour = COLOURS[arm.name]
            axes[0].plot(
                *series(rows, "train/loss_sup/sibling_1"), color=colour, lw=1, label=None if number else arm.title
            )
            agreement = [name for name in rows[0] if name.startswith("health/agreement/")]
            if agreement:
                epochs, values = zip(*(series(rows, name) for name in agreement), strict=True)
                axes[1].plot(epochs[0], np.mean(values, axis=0), color=colour, lw=1)
    axes[0].set(xlabel="epoch of 50 steps", ylabel="Lsup of sibling 1")
    axes[1].set(xlabel="epoch of 50 steps", ylabel="Dice between the siblings,\nunlabelled patches", ylim=(0, 1))
    axes[0].legend(frameon=False)
    path = results / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def series(rows: list[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one column, where there are any."""
    found = [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    text = []
    for labels in (10, 5, 20, ALL_LABELS):
        files = methods(results, labels)
        if len(files) < 2:
            continue
        folder = compare(results, labels, files)
        text += [
            f"### {labels} labelled scans",
            "",
            "| | seeds | DSC | NSD | DSC, difference from the first row | p | cases better : worse |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows_of(folder, files),
            "",
        ]
    curves(results)
    (results / "tables.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
