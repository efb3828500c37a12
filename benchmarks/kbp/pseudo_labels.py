"""How true the pseudo-labels are while they teach: against the withheld labels of unlabelled scans, over time.

    python benchmarks/kbp/pseudo_labels.py OUT [--run 10_labelled/cps/seed_0] [--results FOLDER]

``run.py`` keeps a checkpoint every few epochs of the CPS runs of seed 0. Each sibling of each of them labels a fixed
sample of the unlabelled scans, by sliding window on the network's grid; their labels were withheld from the training
and are read here only. Writes pseudo_labels.csv beside the run's record: DSC over the voxels of all these scans, the
predicted volume as a share of the true one, and the Dice between the siblings (what training can see of it).
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import torch
from run import RESULTS

from flarecps.anatomy import organs_of
from flarecps.checkpoint import read_checkpoint
from flarecps.data.datamodule import ScanDataModule
from flarecps.dice import dice_coefficient
from flarecps.preprocessing.store import CaseStore
from flarecps.training.validation import sibling_labels

EVERY = 9  # every ninth unlabelled scan by name: 15 of 132
COLUMNS = ("epoch", "organ", "sibling_1_dsc", "sibling_2_dsc", "sibling_1_volume", "sibling_2_volume", "agreement")


def judge(checkpoint: Path, store: CaseStore, names: list[str]) -> list[dict[str, object]]:
    """A row per organ: DSC and volume ratio of both siblings, and the Dice between them."""
    model = read_checkpoint(checkpoint)
    organs = organs_of(model.labels)
    sizes = {organ.id: [0.0] * 3 for organ in organs}  # voxels of sibling 1, sibling 2, truth
    common = {organ.id: [0.0] * 3 for organ in organs}  # 1 with truth, 2 with truth, 1 with 2
    for name in names:
        image, labels = store.read_case(name)
        found = sibling_labels(model.siblings, torch.from_numpy(image), model.plan, step=0.7)
        for organ in organs:
            first, second, truth = (
                part == organ.id for part in (found["sibling_1"], found["sibling_2"], torch.from_numpy(labels))
            )
            for place, mask in enumerate((first, second, truth)):
                sizes[organ.id][place] += float(mask.sum())
            for place, mask in enumerate((first & truth, second & truth, first & second)):
                common[organ.id][place] += float(mask.sum())
    rows = []
    for organ in organs:
        one, two, true = sizes[organ.id]
        with_one, with_two, between = common[organ.id]
        dice = [
            dice_coefficient(both, max(a + b, 1))
            for both, a, b in ((with_one, one, true), (with_two, two, true), (between, one, two))
        ]
        numbers = (dice[0], dice[1], one / true, two / true, dice[2])
        rows.append(dict(zip(COLUMNS, (model.epoch, organ.name, *(round(n, 4) for n in numbers)), strict=True)))
    return rows


def snapshots(folder: Path) -> list[Path]:
    """The kept checkpoints of a run, by epoch."""
    found = {int(re.sub(r"\D", "", path.stem)): path for path in (folder / "checkpoints").glob("epoch=*.ckpt")}
    return [found[epoch] for epoch in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", default="10_labelled/cps/seed_0")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    store = CaseStore(arguments.out / "store_global")
    unlabelled = ScanDataModule(str(store.path), split=arguments.run.split("/")[0]).unlabelled_names
    names = sorted(unlabelled)[::EVERY]
    with (arguments.results / "runs" / arguments.run / "pseudo_labels.csv").open(
        "w", newline="", encoding="utf-8"
    ) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for checkpoint in snapshots(arguments.out / "runs" / arguments.run):
            for row in judge(checkpoint, store, names):
                writer.writerow(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
