"""The study of left atrium (configs/studies/la.yaml) beside the published numbers: OUT/table.md, with what is there.

python benchmarks/la/table.py OUT
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.study.protocol_file import read_protocol
from flarecps.reporting.tables import markdown_table

PUBLISHED = Path(__file__).resolve().parent / "published.json"
POST_PROCESSED = {"none": "no", "largest": "largest piece"}  # way of a study → in the table
HEADING = ("labelled", "method", "source", "post-processing", "Dice in % (± SD over seeds)", "trainings", "test scans")


def table(out: Path) -> str:
    """Markdown: Dice (%) by labels and arm: published, and here with the SD over seeds, with both label maps."""
    protocol = read_protocol(out / "protocol.yaml")
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]
    body = []
    for labels in protocol.judged.labels:
        count = labels.removesuffix("_labelled")
        body += [[count, name, "published", "", f"{dice:.2f}", "–", "20"] for name, dice in published[count].items()]
        for arm, (way, pieces) in product(protocol.arms, POST_PROCESSED.items()):
            tables = sorted((out / "scores" / way / labels / arm.name / "fold_0").glob("seed_*/1/scores.csv"))
            if not tables:
                continue
            found = [read_scores(one) for one in tables]
            dice = [100 * one.mean() for one in found]
            spread = f" ± {np.std(dice, ddof=1):.2f}" if len(dice) > 1 else ""
            cases = sorted({len(one.cases) for one in found})
            body.append([count, arm.shown, "here", pieces, f"{np.mean(dice):.2f}{spread}", str(len(dice)),
                         " or ".join(map(str, cases))])  # fmt: skip
    return markdown_table(HEADING, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    write_text(out / "table.md", table(out))
    print(f"written: {out}/table.md")


if __name__ == "__main__":
    main()
