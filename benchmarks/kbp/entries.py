"""What a row of the kbp experiment's tables and figures is made of: an arm, and the score files of its trainings."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from arms import ALL_LABELS, CONTROL, CONTROL_LONG, CPS, CPS_LONG, RESULTS, TWO_CONTROLS, TWO_SHORT_CONTROLS

from flarecps.evaluation.comparison import OVERALL, compare_methods
from flarecps.evaluation.score_table import MethodScores, read_scores
from flarecps.experiments.study.protocol import Arm
from flarecps.reporting.comparison_files import read_method

LINES = (  # what is shown over the number of labelled scans: title, arm, sibling
    (CONTROL.title, CONTROL, "1"),
    (CONTROL_LONG.title, CONTROL_LONG, "1"),
    ("CPS, sibling 1", CPS, "1"),
    ("CPS, siblings averaged", CPS, "average"),
    (f"{CPS_LONG.title}, sibling 1", CPS_LONG, "1"),
    (f"{CPS_LONG.title}, siblings averaged", CPS_LONG, "average"),
    (TWO_SHORT_CONTROLS.title, TWO_SHORT_CONTROLS, "1"),
    (TWO_CONTROLS.title, TWO_CONTROLS, "1"),
)


@dataclass(frozen=True)
class Entry:
    """A row: an arm with so many labels, scored by one sibling (or their average), and its score files by seed."""

    title: str
    arm: Arm
    labels: int
    sibling: str
    files: tuple[Path, ...]

    @property
    def minutes(self) -> float | None:
        """Mean CPU minutes of the trainings whose time is known; None for what was not trained, such as averages."""
        records = [path.parent / "run.json" for path in self.files]
        found = [json.loads(path.read_text(encoding="utf-8")) for path in records if path.is_file()]
        known = [one["training_cpu_minutes"] for one in found if one["training_cpu_minutes"] is not None]
        return float(np.mean(known)) if known else None

    def method(self) -> MethodScores:
        """The scores, as ``flarecps compare`` reads them."""
        return read_method(self.title.replace(",", ";"), list(self.files))


def entry(title: str, arm: Arm, labels: int, sibling: str = "1", results: Path = RESULTS) -> Entry:
    """The row of an arm; without files where no run of it is done."""
    folder = results / "runs" / f"{labels}_labelled" / arm.name
    return Entry(title, arm, labels, sibling, tuple(sorted(folder.glob(f"seed_*/scores_{sibling}.csv"))))


def main_entries(labels: int) -> list[Entry]:
    """The two controls, CPS by its first sibling and by both, two controls averaged, and the ceiling."""
    found = [entry(title, arm, labels, sibling) for title, arm, sibling in LINES]
    if labels != ALL_LABELS:
        found += [entry(f"all {ALL_LABELS} labelled: {arm.title}", arm, ALL_LABELS) for arm in (CONTROL, CONTROL_LONG)]
    return [one for one in found if one.files]


def seed_differences(baseline: Entry, other: Entry) -> list[float]:
    """The differences in DSC between two arms' trainings of one seed."""
    means = [{path.parent.name: read_scores(path).mean() for path in one.files} for one in (baseline, other)]
    return [means[1][seed] - means[0][seed] for seed in means[0] if seed in means[1]]


def same_seeds(first: Entry, second: Entry) -> tuple[Entry, Entry]:
    """Both with only the seeds that both have."""
    seeds = {path.parent.name for path in first.files} & {path.parent.name for path in second.files}
    kept = (
        replace(one, files=tuple(path for path in one.files if path.parent.name in seeds)) for one in (first, second)
    )
    return next(kept), next(kept)


def level(method: MethodScores, measure: str) -> str:
    """Mean over test scans and trainings, ± SD over trainings where there are several."""
    cell = compare_methods([method], resamples=100).means[measure][method.name][OVERALL]
    assert cell.mean is not None  # every arm has scores
    return f"{cell.mean:.4f}" + ("" if cell.seeds_sd is None else f" ± {cell.seeds_sd:.4f}")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a heading."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
