"""CPS against its supervised control on Left Atrium 2018 (LGE-MR), by the semi-supervised literature's protocol.

    python benchmarks/la/run.py DATASET OUT [--labelled 8 16] [--seeds 0 1 2]

DATASET is in nnU-Net v2's layout, 80 training and 20 test scans, with splits 4_labelled, 8_labelled, 16_labelled and
80_labelled in splits.json. Every stage is a flarecps command, printed and left out when its result stands, so an
interrupted run goes on, and more seeds can be added later. OUT/table.md sets the numbers beside the published ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.runner import run_experiment
from flarecps.experiments.stages import Stage, store_stages, training_stages
from flarecps.reporting.tables import markdown_table

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
METHODS = {"supervised": "flarecps supervised", "cps": "flarecps CPS"}
CONFIG = {"supervised": "la_3d_supervised.yaml", "cps": "la_3d.yaml"}
ALL = 80  # labelled scans: nothing is left to be unlabelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labelled", type=int, nargs="+", choices=[4, 8, 16, ALL], default=[8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=4, help="processes that preprocess")
    parser.add_argument("--fit-words", default="", help="more words for flarecps fit, in one word, to try things out")
    parser.add_argument("--stages", nargs="+", help="only these, * and ? allowed")
    options = parser.parse_args()
    run_experiment(stages(options), options.out.resolve() / "stages", options.stages)


def stages(options: argparse.Namespace) -> list[Stage]:
    """Plan, store, and for every number of labels, method and seed training, label maps and scores; the table."""
    out, data = options.out.resolve(), options.dataset.resolve()
    found = store_stages(data, out / "plan.json", out / "store", ("--split", f"{options.labelled[0]}_labelled"),
                         ("--workers", options.workers))  # fmt: skip
    scored = []
    for labelled in options.labelled:
        for method in ("supervised",) if labelled == ALL else METHODS:
            for seed in options.seeds:
                name = f"{labelled}_{method}_{seed}"
                found += one_run(name, labelled, method, seed, out, data, shlex.split(options.fit_words))
                scored.append(f"score_{name}")
    table = Stage("table", (), (out / "table.md",), tuple(scored), always=True,
                  action=partial(write_table, out, options.labelled, options.seeds),
                  description="table.md and table.csv: beside the published numbers")  # fmt: skip
    return [*found, table]


def one_run(name: str, labelled: int, method: str, seed: int, out: Path, data: Path, more: list[str]) -> list[Stage]:
    """Train, segment the test scans with sibling 1 of the last checkpoint, without mirroring, score."""
    run, config = out / "runs" / name, CONFIGS / CONFIG[method]
    words = ("fit", "--config", config, "--data.store", out / "store", "--data.split", f"{labelled}_labelled",
             "--seed_everything", seed, "--trainer.default_root_dir", run, *more)  # fmt: skip
    return training_stages(name, words, config, run, data, "preprocess", ("--step", "0.5"))


def write_table(out: Path, labelled: list[int], seeds: list[int]) -> None:
    """Dice (%) of every method and number of labels: published, and here with the SD over seeds."""
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))["rows"]
    body = []
    for count in labelled:
        body += [[str(count), name, "published", f"{dice:.2f}", "–", "20"]
                 for name, dice in published[str(count)].items()]  # fmt: skip
        for method, title in METHODS.items():
            tables = [out / "runs" / f"{count}_{method}_{seed}" / "scores" / "scores.csv" for seed in seeds]
            scores = [read_scores(table) for table in tables if table.is_file()]
            if not scores:
                continue
            dice = [100 * one.mean() for one in scores]
            spread = f" ± {np.std(dice, ddof=1):.2f}" if len(dice) > 1 else ""
            cases = {len(one.cases) for one in scores}
            body.append([str(count), title, "here", f"{np.mean(dice):.2f}{spread}", str(len(dice)),
                         " or ".join(map(str, sorted(cases)))])  # fmt: skip
    heading = ["labelled", "method", "source", "Dice in % (± SD over seeds)", "trainings", "test scans"]
    write_text(out / "table.md", markdown_table(heading, body))
    write_text(out / "table.csv", "\n".join(",".join(line) for line in [heading, *body]) + "\n")


if __name__ == "__main__":
    main()
