"""One CT as two small nnU-Net raw data sets: as it is, and stored in another voxel order; and trainings on it.

Both programs train on the one scan, to segment it: the comparisons need networks that segment, not ones that
generalise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

HERE = Path(__file__).resolve().parent
STRUCTURES = {"liver": (1,), "spleen": (3,), "kidneys": (2, 13)}  # and their ids in FLARE22's numbering
SPACING_MM = 5  # of the networks; the scan has 3, so that everything is resampled on both ways
OTHER_ORDER = ("P", "L", "I")  # of the copy: axes permuted and two of them reversed
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(words: Sequence[object], **environment: str) -> str:
    """What a command prints, in one thread; its failure is ours, with what it said."""
    command = [str(word) for word in words]
    env = os.environ | dict.fromkeys(THREADS, "1") | environment
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def flarecps(*words: object) -> str:
    """The program's own command line."""
    return run([sys.executable, "-m", "flarecps", *words])


def write_dataset(ct: Path, labels: Path, folder: Path, order: Sequence[str] | None = None) -> Path:
    """An nnU-Net raw data set of one labelled scan with three structures; ``order`` as nibabel's axis codes."""
    image, drawn = nibabel.load(ct), nibabel.load(labels)
    numbers = np.asarray(drawn.dataobj)
    renumbered = np.zeros(numbers.shape, np.uint8)
    for new, old in enumerate(STRUCTURES.values(), start=1):
        renumbered[np.isin(numbers, old)] = new
    files = {
        "imagesTr/scan_0000.nii.gz": nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine),
        "labelsTr/scan.nii.gz": nibabel.Nifti1Image(renumbered, drawn.affine),
    }
    for name, file in files.items():
        if order is not None:
            turn = nibabel.orientations.ornt_transform(
                nibabel.io_orientation(file.affine), nibabel.orientations.axcodes2ornt(order)
            )
            file = file.as_reoriented(turn)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(file, folder / name)
    ids = {"background": 0} | {name: number for number, name in enumerate(STRUCTURES, start=1)}
    description = {"name": "abdomen", "channel_names": {"0": "CT"}, "labels": ids, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    return folder


def train_ours(dataset: Path, out: Path, dimensions: int, network: str, epochs: int) -> Path:
    """A checkpoint of ours: ``network`` is PlainUNet or ResidualEncoderUNet."""
    checkpoint = out / "run" / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        return checkpoint
    out.mkdir(parents=True, exist_ok=True)
    plan, spacing = out / "plan.json", json.dumps([SPACING_MM] * 3)
    patch = "[24, 24, 24]" if dimensions == 3 else "[48, 48]"
    words = ["--dimensions", dimensions, "--spacing", spacing, "--patch", patch, "--workers", 1]
    flarecps("plan", dataset, *words, "--out", plan)
    flarecps("preprocess", dataset, plan, "--workers", 1, "--out", out / "store")
    ones, twos, threes = [1] * dimensions, [2] * dimensions, [3] * dimensions
    words = [
        *("--data.store", out / "store", "--trainer.default_root_dir", out / "run"),
        *("--data.patch_voxels", patch, "--trainer.max_epochs", epochs),
        *("--model.topology.strides", json.dumps([ones, twos, twos, twos])),
        *("--model.topology.kernels", json.dumps([threes] * 4)),
        *("--data.global_batch", json.dumps({"labelled": 4 if dimensions == 3 else 12, "unlabelled": 0})),
        *("--model.scheduler.init_args.total_iters", epochs),
        *("--model.network.class_path", f"flarecps.networks.{network}"),
    ]
    if network == "ResidualEncoderUNet":
        words += ["--model.network.init_args.blocks_per_stage", "[1, 2, 2, 2]"]
    run([sys.executable, "-m", "flarecps", "fit", "--config", HERE / "small.yaml", *words], WANDB_MODE="disabled")
    return checkpoint


def train_nnunet(python: str, root: Path, configuration: str, network: str, epochs: int) -> Path:
    """A model folder of nnU-Net's own training on data set 1 of ``root``."""
    trained = root / "results" / "Dataset001_abdomen" / f"nnUNetTrainerNoDA__small{network}__{configuration}"
    if not (trained / "fold_all" / "checkpoint_final.pth").is_file():
        words = [python, HERE / "peer.py", root, 1, configuration, network, "--epochs", epochs]
        found = Path(run(words).splitlines()[-1])
        if found != trained:
            sys.exit(f"nnU-Net wrote its model into {found}, expected {trained}")
    return trained
