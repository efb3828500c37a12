"""The table of nnunet_kbp: scores, time and memory of every method; RESULTS/results.csv and results.md.

    python benchmarks/nnunet_kbp/table.py [FOLDER]

RESULTS (../results/nnunet_kbp) holds measured.csv, what each training was and took, and the scores that it names.
FOLDER, peer.py's, whose commands ran under `flarecps efficiency`, adds the rows that are not there yet.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.reporting.tables import markdown_table, mean_and_sd
from flarecps.text_files import csv_text

RESULTS = Path(__file__).resolve().parents[1] / "results" / "nnunet_kbp"
TITLES = {
    "planned": "nnU-Net as it plans",
    "equal-patch": "nnU-Net, our patch and batch",
    "equal-network": "nnU-Net, our patch, batch and network size",
    "equal-recipe": "nnU-Net, our patch, batch, network size, sampling, Dice over the batch and optimiser settings",
}
SCORES, MEASURES, DASH = "scores", {"DSC": "dsc", "NSD": "nsd"}, "–"


def write_table(results: Path) -> None:
    """Write results.csv and results.md: the rows of measured.csv, each with its scores' means instead of their file."""
    rows = read_measured(results)
    heading = [one for name in rows[0] for one in (MEASURES if name == SCORES else [name])]
    body = [[filled(row, name, results) for name in heading] for row in rows]
    write_text(results / "results.csv", csv_text([heading, *body]))
    write_text(results / "results.md", markdown_table(heading, body))


def read_measured(results: Path) -> list[dict[str, str]]:
    """The rows of measured.csv."""
    with (results / "measured.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def filled(row: dict[str, str], name: str, results: Path) -> str:
    """A cell of the table."""
    if name not in MEASURES:
        return row[name]
    return mean_and_sd(read_scores(results / row[SCORES]).summary(MEASURES[name])) if row[SCORES] else DASH


def add_rows(folder: Path, results: Path) -> None:
    """Add to measured.csv what peer.py trained in ``folder`` and is not among its rows yet."""
    rows = read_measured(results)
    for variant, title in TITLES.items():
        for mirrors, shown in (("", "no mirrors"), ("_mirrored", "8 mirrors")):
            for facts in sorted((folder / variant).glob("seed_*.json")):
                scores = f"runs/10_labelled/{variant.replace('-', '_')}{mirrors}/{facts.stem}/scores_1.csv"
                if (results / scores).is_file() and scores not in {row[SCORES] for row in rows}:
                    found = [title, shown, *described(json.loads(facts.read_text())), scores]
                    found += measured(folder / f"{variant}{mirrors}", variant, facts.stem, results / scores)
                    rows.append(dict(zip(rows[0], found, strict=True)))
    write_text(results / "measured.csv", csv_text([list(rows[0]), *(row.values() for row in rows)]))


def described(facts: dict[str, Any]) -> list[str]:
    """Parameters, patch, and what was seen."""
    parameters = facts["parameters"]
    named = f"{parameters / 1e6:.{2 if parameters < 1e7 else 1}f} M"
    seen = (str(facts["patches_seen"]), str(math.floor(facts["voxels_seen"] / 1e6)))
    return [named, "×".join(map(str, facts["patch"])), *seen]


def measured(folder: Path, variant: str, seed: str, scores: Path) -> list[str]:
    """CPU and wall minutes and memory of the training, then CPU seconds and memory of a scan."""
    training, once = meter(folder.with_name(variant), f"training_{seed}"), meter(folder, seed)
    minutes = [f"{training[key] / 60:.1f}" for key in ("tree_cpu_s", "duration_s")]
    scan = f"{once['tree_cpu_s'] / len(read_scores(scores).cases):.2f}"
    return [*minutes, f"{training['tree_ram_mb_max']:.0f}", scan, f"{once['tree_ram_mb_max']:.0f}"]


def meter(folder: Path, name: str) -> dict[str, float]:
    """The figures of a measured command."""
    record = json.loads((folder / "efficiency" / "cases" / f"{name}.json").read_text())
    figures: dict[str, float] = record["figures"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    if folder := parser.parse_args().folder:
        add_rows(folder, RESULTS)
    write_table(RESULTS)


if __name__ == "__main__":
    main()
