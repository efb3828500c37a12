"""How often a study says "better" where nothing is, and where a method is 0.02 better: simulated with kbp's spread.

    python benchmarks/study/simulate.py [--studies 1000]

Scores of a baseline and three methods are drawn with the spread between scans and between trainings that kbp's runs
show (CPS minus control of equal compute, ten labels), once from normal distributions and once from kbp's own, skewed
residuals, and judged as ``flarecps study`` judges. Writes benchmarks/results/study/simulation.md and .csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.evaluation.nested import judge, spread
from flarecps.evaluation.score_table import read_scores
from flarecps.reporting.tables import markdown_table
from flarecps.text_files import csv_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHODS = 3  # held against one baseline, Holm over them
DESIGNS = (  # judged scans, folds (1: a fixed test set), seeds
    (10, 5, 2), (10, 5, 3), (25, 1, 3), (25, 3, 1), (25, 3, 2), (25, 5, 1), (25, 5, 2), (25, 5, 3), (50, 5, 1),
    (50, 5, 2), (50, 5, 3), (100, 5, 2),
)  # fmt: skip
HEADING = ("scans", "folds", "seeds", "drawn from", "effect", "studies", "one method called better", "any method")


def kbp_differences(labels: int = 10) -> np.ndarray:
    """(scans, seeds): DSC of CPS minus that of the control of equal compute."""
    arms = []
    for arm in ("cps", "control_long"):
        folder = RESULTS / "kbp" / "runs" / f"{labels}_labelled" / arm
        tables = [read_scores(folder / f"seed_{seed}" / "scores_1.csv") for seed in range(3)]
        arms.append(np.stack([one.select(tables[0].cases, tables[0].organs).case_means() for one in tables], 1))
    return arms[0] - arms[1]


def simulate(
    design: tuple[int, int, int], effect: float, studies: int, own_residuals: bool, seed: int = 0
) -> tuple[float, float]:
    """How often the first of the methods is called better, and any of them; all are ``effect`` above the baseline."""
    seen = kbp_differences()
    sizes, residuals = spread([seen]), seen - seen.mean(0) - seen.mean(1, keepdims=True) + seen.mean()
    by_scan = seen.mean(1) - seen.mean()
    generator = np.random.default_rng(seed)
    scans, folds, seeds = design

    def drawn(size: float, pool: np.ndarray, *shape: int) -> np.ndarray:
        if own_residuals:
            return generator.choice(pool.ravel() / pool.std(), shape) * size
        return generator.normal(0.0, size, shape)

    first = any_one = 0
    for _ in range(studies):
        half = 0.5**0.5  # a difference has the variance of two arms
        arms = [
            [
                half * (drawn(sizes.scan, by_scan, len(held_out), 1) + generator.normal(0, sizes.training, (1, seeds))
                        + drawn(sizes.rest, residuals, len(held_out), seeds))
                for held_out in np.array_split(np.arange(scans), folds)
            ]
            for _ in range(METHODS + 1)
        ]  # fmt: skip
        better = [
            one is not None and one.verdict == "better"
            for one in judge([[a - b + effect for a, b in zip(arm, arms[0], strict=True)] for arm in arms[1:]])
        ]
        first, any_one = first + better[0], any_one + any(better)
    return first / studies, any_one / studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rows = []
    for design in DESIGNS:
        for effect in (0.0, 0.02):
            for own in (False, True):
                first, any_one = simulate(design, effect, studies, own)
                rows.append([*map(str, design), "kbp's residuals" if own else "normal", f"{effect:+.2f}", str(studies),
                             f"{first:.1%}", f"{any_one:.1%}"])  # fmt: skip
    found = spread([kbp_differences()])
    said = (
        f"# What a study's verdict is worth\n\nSD of a difference on kbp (CPS minus control of equal compute, ten "
        f"labels): between scans {found.scan:.4f}, between trainings {found.training:.4f}, rest {found.rest:.4f} DSC. "
        f"{METHODS} methods against one baseline, Holm over them; interval and test of `evaluation/nested.py` at 95 %."
        '\n\nWhere the effect is 0, every "better" is wrong: 5 % are allowed. At +0.02 it is the study\'s power.\n\n'
    )
    folder = RESULTS / "study"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "simulation.md", said + markdown_table(HEADING, rows) + "\n")
    write_text(folder / "simulation.csv", csv_text([HEADING, *rows]))
    print((folder / "simulation.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
