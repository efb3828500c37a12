"""Models to and from nnU-Net v2: both programs label one CT, and their labels are compared structure by structure.

    FLARECPS_PEER_PYTHON=.peers/bin/python python benchmarks/interop/agreement.py CT LABELS OUT \\
        [--dimensions 3 2] [--networks PlainUNet ResidualEncoderUNet] [--ways exported imported]

LABELS are FLARE22's ids. For each kind of network: trained here, exported, run by nnUNetv2_predict_from_modelfolder as
it is installed, and imported back; then trained by nnU-Net itself (on the scan stored in another voxel order), and
imported. Windows half a patch apart, logits averaged, no mirroring, in both programs. OUT/agreement.json and .md are
written; exit 1 when a structure of more than 1000 voxels agrees by less than 0.995 (export) or 0.999 (import). These
bounds are for liver, spleen and kidneys on this grid: thin organs and coarser grids agree less.
Trainings that are there already are used again, and rows of an earlier call are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from material import OTHER_ORDER, SPACING_MM, STRUCTURES, flarecps, run, train_nnunet, train_ours, write_dataset

from flarecps import __version__
from flarecps.dice import dice_coefficient
from flarecps.volumes.io import read_labels

LARGE = 1000  # voxels; smaller structures are not judged
WANTED = {"exported": 0.995, "imported back": 0.999, "imported": 0.999}
THEIR_NAMES = {"PlainUNet": "PlainConvUNet", "ResidualEncoderUNet": "ResidualEncoderUNet"}
AS_THEY_DO = ("--step", "0.5", "--accumulate", "logits")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[3, 2], choices=[2, 3])
    parser.add_argument("--networks", nargs="+", default=list(THEIR_NAMES), choices=list(THEIR_NAMES))
    parser.add_argument("--ways", nargs="+", default=["exported", "imported"], choices=["exported", "imported"])
    parser.add_argument("--epochs", type=int, default=16, help="of 30 steps, here")
    parser.add_argument("--nnunet-epochs", type=int, default=11, help="of 60 steps, in nnU-Net")
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    out: Path = options.out
    kinds = list(product(options.dimensions, options.networks))
    rows: list[dict[str, Any]] = []
    own, other = out / "dataset", out / "nnunet" / "raw" / "Dataset001_abdomen"
    if "exported" in options.ways:
        write_dataset(options.ct, options.labels, own)
    if "imported" in options.ways:
        write_dataset(options.ct, options.labels, other, OTHER_ORDER)
    for dimensions, network in kinds if "exported" in options.ways else []:
        checkpoint = train_ours(own, out / f"ours_{dimensions}d_{network}", dimensions, network, options.epochs)
        rows += exported(peer, checkpoint, own, f"{dimensions}D {network}")
    for dimensions, network in kinds if "imported" in options.ways else []:
        configuration = "3d_fullres" if dimensions == 3 else "2d"
        model = train_nnunet(peer, out / "nnunet", configuration, THEIR_NAMES[network], options.nnunet_epochs)
        rows.append(imported(peer, model, other, out / f"imported_{dimensions}d_{network}", f"{dimensions}D {network}"))
    answer = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, no GPU, Python {platform.python_version()}",
        "versions": {"flarecps": __version__, "nnunetv2": version_of(peer)},
        "network_spacing_mm": SPACING_MM,
        "rows": with_earlier(rows, out / "agreement.json"),
    }
    (out / "agreement.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (out / "agreement.md").write_text(table(answer), encoding="utf-8")
    print(table(answer))
    return int(any(one["dice"] < WANTED[row["way"]] for row in answer["rows"] for one in row["structures"].values()))


def exported(peer: str, checkpoint: Path, dataset: Path, name: str) -> list[dict[str, Any]]:
    """Two rows: our checkpoint here and, exported, in nnU-Net; and the exported model imported back."""
    work = checkpoint.parents[2]
    model, back = work / "model", work / "back.ckpt"
    if not model.exists():
        flarecps("export", checkpoint, model, "--to", "nnunet")
    if not back.exists():
        flarecps("import", model, back, "--from", "nnunet")
    theirs = predicted_by_nnunet(peer, model, "0", dataset, work / "theirs")
    rows = []
    for way, one in (("exported", checkpoint), ("imported back", back)):
        ours = segmented(one, dataset, work / way.replace(" ", "_"))
        rows.append({"way": way, "network": name, "structures": compared(ours, theirs, dataset)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def imported(peer: str, model: Path, dataset: Path, work: Path, name: str) -> dict[str, Any]:
    """One row: a model of nnU-Net's own in nnU-Net and, imported, here."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "imported.ckpt"
    if not checkpoint.exists():
        flarecps("import", model, checkpoint, "--from", "nnunet")
    theirs = predicted_by_nnunet(peer, model, "all", dataset, work / "theirs")
    ours = segmented(checkpoint, dataset, work / "ours")
    row = {"way": "imported", "network": name, "structures": compared(ours, theirs, dataset)}
    print(json.dumps(row), flush=True)
    return row


def with_earlier(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier call that are not measured anew, and these."""
    earlier = json.loads(path.read_text())["rows"] if path.is_file() else []
    fresh = {(row["way"], row["network"]) for row in rows}
    kept = [row for row in earlier if (row["way"], row["network"]) not in fresh]
    return sorted(kept + rows, key=lambda row: (list(WANTED).index(row["way"]), row["network"]))


def predicted_by_nnunet(peer: str, model: Path, fold: str, dataset: Path, out: Path) -> Path:
    """The label file of nnU-Net's command as it is installed."""
    command = Path(peer).with_name("nnUNetv2_predict_from_modelfolder")
    words = ["-i", dataset / "imagesTr", "-o", out, "-m", model, "-f", fold, "-device", "cpu", "-npp", 1, "-nps", 1]
    folders = {f"nnUNet_{name}": str(out.parent) for name in ("raw", "preprocessed", "results")}  # it warns without
    run([command, *words, "--disable_tta"], **folders)
    return out / "scan.nii.gz"


def segmented(checkpoint: Path, dataset: Path, out: Path) -> Path:
    """The label file of our command."""
    flarecps("segment", checkpoint, dataset / "imagesTr", out, *AS_THEY_DO, "--overwrite")
    return out / "scan.nii.gz"


def compared(ours: Path, theirs: Path, dataset: Path) -> dict[str, dict[str, float]]:
    """Of every structure of which one of both finds over 1000 voxels: their Dice, and the DSC of each to the truth."""
    one, other = read_labels(ours), read_labels(theirs)
    if difference := one.space.difference(other.space):
        sys.exit(f"{ours} and {theirs} are on different grids: {difference}")
    drawn = read_labels(dataset / "labelsTr" / "scan.nii.gz").array[0]
    found = {}
    for label, name in enumerate(STRUCTURES, start=1):
        first, second, truth = one.array[0] == label, other.array[0] == label, drawn == label
        if max(first.sum(), second.sum()) > LARGE:
            found[name] = {
                "voxels": int(first.sum()),
                "dice": dice_of(first, second),
                "dsc_flarecps": dice_of(first, truth),
                "dsc_nnunet": dice_of(second, truth),
            }
    return found


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    volume = np.count_nonzero(one) + np.count_nonzero(other)
    return float(dice_coefficient(np.count_nonzero(one & other), max(1, volume)))


def version_of(peer: str) -> str:
    return run([peer, "-c", "import importlib.metadata; print(importlib.metadata.version('nnunetv2'))"]).strip()


def table(answer: dict[str, Any]) -> str:
    lines = [
        "# Agreement with nnU-Net v2",
        "",
        f"{answer['date']}, {answer['machine']}, nnunetv2 {answer['versions']['nnunetv2']}. One CT of 3 mm, "
        f"networks at {answer['network_spacing_mm']} mm. Dice between the two programs' labels; in brackets the DSC of "
        "each against the drawn labels (flarecps, nnU-Net). – where neither finds 1000 voxels. Thin organs and coarser "
        "grids agree less: a border of one voxel is a larger share of them.",
        "",
        f"| model | network | {' | '.join(STRUCTURES)} |",
        f"|---|---|{'--:|' * len(STRUCTURES)}",
    ]
    for row in answer["rows"]:
        cells = [
            f"{one['dice']:.5f} ({one['dsc_flarecps']:.4f}, {one['dsc_nnunet']:.4f})" if one else "–"
            for one in (row["structures"].get(name) for name in STRUCTURES)
        ]
        lines.append(f"| {row['way']} | {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
