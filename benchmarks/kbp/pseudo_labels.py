"""How true the pseudo-labels are while they teach: against the withheld labels of unlabelled scans, over time.

    python benchmarks/kbp/pseudo_labels.py OUT [--labels 10_labelled] [--results FOLDER]

The training of CPS from seed 0 that ``flarecps study`` made in OUT is repeated in OUT/snapshots, with a checkpoint
every five epochs. Each sibling of each of them labels a fixed sample of the unlabelled scans, by sliding window on the
network's grid; their labels were withheld from the training and are read here only. Writes
pseudo_labels.csv beside the run's record: DSC over the voxels of all these scans, the
predicted volume as a share of the true one, and the Dice between the siblings (what training can see of it).
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
from pathlib import Path

import torch
from arms import RESULTS

from flarecps.anatomy import organs_of
from flarecps.checkpoint import read_checkpoint
from flarecps.data.datamodule import ScanDataModule
from flarecps.dice import dice_coefficient
from flarecps.experiments.runner import call_flarecps
from flarecps.experiments.stages import last_checkpoint, training_is_finished
from flarecps.preprocessing.store import CaseStore
from flarecps.training.validation import sibling_labels

SNAPSHOT_EVERY = 5  # epochs
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


def train_again(out: Path, labels: str) -> Path:
    """The study's training once more, if it is not there, its checkpoints kept; its folder."""
    record = out / "stages" / f"train_{labels}.cps.fold_0.seed_0.json"
    words = shlex.split(json.loads(record.read_text(encoding="utf-8"))["command"])[1:]
    folder = out / "snapshots" / labels
    if not training_is_finished(folder):
        callback = {"dirpath": folder / "checkpoints", "filename": "{epoch}", "every_n_epochs": SNAPSHOT_EVERY,
                    "save_top_k": -1, "save_on_train_epoch_end": "true"}  # fmt: skip
        more = [f"--trainer.default_root_dir={folder}",
                "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                *(f"--trainer.callbacks.{name}={value}" for name, value in callback.items())]  # fmt: skip
        call_flarecps(*words, *more, *(("--ckpt_path", "last") if last_checkpoint(folder).exists() else ()))
    return folder


def snapshots(folder: Path) -> list[Path]:
    """The kept checkpoints of a run, by epoch."""
    found = {int(re.sub(r"\D", "", path.stem)): path for path in (folder / "checkpoints").glob("epoch=*.ckpt")}
    return [found[epoch] for epoch in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", default="10_labelled")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    store = CaseStore(out / "store_global")
    names = sorted(ScanDataModule(str(store.path), split=arguments.labels).unlabelled_names)[::EVERY]
    folder, kept = train_again(out, arguments.labels), arguments.results / "runs" / arguments.labels / "cps" / "seed_0"
    with (kept / "pseudo_labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for checkpoint in snapshots(folder):
            for row in judge(checkpoint, store, names):
                writer.writerow(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
