"""The table of run.py: scores, time and memory of every method; OUT/results.csv and OUT/results.md."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.reporting.tables import markdown_table, mean_and_sd

TITLES = {
    "planned": "nnU-Net as it plans",
    "equal-patch": "nnU-Net, our patch and batch",
    "equal-network": "nnU-Net, our patch, batch and network size",
    "equal-recipe": "nnU-Net, our patch, batch, network size, sampling, Dice over the batch and optimiser settings",
    "supervised": "flarecps supervised",
    "cps": "flarecps CPS",
}
SEGMENTED = {"mirrored": "8 mirrors", "plain": "no mirrors"}
HEADING = ["method", "test time", "parameters", "patch", "patches seen", "voxels seen, 1e6", "DSC", "NSD",
           "training, CPU min", "wall min", "peak MB", "a scan, CPU s", "its peak MB"]  # fmt: skip


def write_table(out: Path) -> None:
    """Write the rows of all methods that were trained or timed, in the order of ``TITLES``."""
    rows = [row for method in TITLES for row in rows_of(out / method, method)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([HEADING, *rows])
    write_text(out / "results.csv", text.getvalue())
    write_text(out / "results.md", markdown_table(HEADING, rows))


def rows_of(folder: Path, method: str) -> list[list[str]]:
    """A row for each way of segmenting; one without scores where only a few steps were timed; [] for neither."""
    if not (folder / "trained.json").is_file():
        if not (folder / "pace.json").is_file():
            return []
        facts = json.loads((folder / "pace.json").read_text())
        hours = f"not run: {60 * facts['hours']:.0f} ({facts['step_s']:.1f} s a step of {facts['batch']})"
        return [[TITLES[method], "–", *described(facts), "–", "–", hours, "–", "–", "–", "–"]]
    facts = json.loads((folder / "trained.json").read_text())
    training = meter(folder, "training")
    trained = [f"{training[key] / 60:.1f}" for key in ("tree_cpu_s", "duration_s")]
    trained.append(f"{training['tree_ram_mb_max']:.0f}")
    rows = []
    for name, title in SEGMENTED.items():
        table = folder / f"scores_{name}" / "scores.csv"
        if not table.is_file():
            continue
        scores, once = read_scores(table), meter(folder, name)
        rows.append(
            [
                TITLES[method],
                title,
                *described(facts),
                mean_and_sd(scores.summary("dsc")),
                mean_and_sd(scores.summary("nsd")),
                *trained,
                f"{once['tree_cpu_s'] / len(scores.cases):.2f}",
                f"{once['tree_ram_mb_max']:.0f}",
            ]
        )
    return rows or [[TITLES[method], "not segmented", *described(facts), "–", "–", *trained, "–", "–"]]


def described(facts: dict[str, Any]) -> list[str]:
    """Parameters, patch, and what was seen."""
    patch = "×".join(map(str, facts["patch"]))
    seen = f"{facts['patches_seen']}"
    if facts.get("unlabelled_patches_seen"):
        seen += f" + {facts['unlabelled_patches_seen']} unlabelled"
    parameters = facts["parameters"]
    named = f"{parameters / 1e6:.{2 if parameters < 1e7 else 1}f} M"
    return [named, patch, seen, f"{math.floor(facts['voxels_seen'] / 1e6)}"]


def meter(folder: Path, name: str) -> dict[str, float]:
    """The figures of a measured command."""
    record = json.loads((folder / "efficiency" / "cases" / f"{name}.json").read_text())
    figures: dict[str, float] = record["figures"]
    return figures
