"""The other side of `compare.py`: nnU-Net v2 prepares its store, or measures its own training loader.

Runs in the peers' environment. Planner, preprocessor, loader and augmentation are nnU-Net's, called as its trainer
calls them; only the patch size is set, to the one that both sides use.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

WARM_UP = 4
BATCH = 2
PLANS = "nnUNetPlans"
CONFIGURATION = "3d_fullres"


def main() -> None:
    """Prepare, or print one line of JSON: seconds per patch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["prepare", "measure"])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patch", type=int, nargs=3)
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["nnUNet_raw"] = str(options.dataset.parent)
    os.environ["nnUNet_preprocessed"] = str(options.out / "nnunet_preprocessed")
    os.environ["nnUNet_results"] = str(options.out / "nnunet_results")
    os.environ["nnUNet_n_proc_DA"] = "1"
    if options.what == "prepare":
        prepare()
    else:
        print(json.dumps(measure(options.dataset.name, options.patch, options.patches, options.seed)))


def prepare() -> None:
    """Fingerprint, plan and preprocess, unless it was done before."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    if (Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_OneScan" / f"{PLANS}_{CONFIGURATION}").is_dir():
        return
    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    preprocess([1], PLANS, configurations=(CONFIGURATION,), num_processes=(1,))


def measure(name: str, patch: list[int], patches: int, seed: int) -> dict[str, float]:
    """CPU and wall seconds per augmented patch, everything in this process."""
    import numpy as np
    import torch
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    folder = Path(os.environ["nnUNet_preprocessed"]) / name
    plans = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf-8"))
    plans["configurations"][CONFIGURATION]["patch_size"] = patch
    plans["configurations"][CONFIGURATION]["batch_size"] = BATCH
    plans["continue_training"] = False  # the trainer asks for it
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    trainer = nnUNetTrainer(plans, CONFIGURATION, "all", content, device=torch.device("cpu"))
    rotation, dummy_2d, region, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms(patch, rotation, None, mirror_axes, dummy_2d)
    preprocessed = str(folder / f"{PLANS}_{CONFIGURATION}")
    manager = PlansManager(plans).get_label_manager(content)
    loader = nnUNetDataLoader(
        infer_dataset_class(preprocessed)(preprocessed),
        BATCH,
        region,
        patch,
        manager,
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )
    for _ in range(WARM_UP // BATCH):
        next(loader)
    cpu, wall = time.process_time(), time.perf_counter()
    taken = sum(len(next(loader)["data"]) for _ in range(patches // BATCH))
    return {
        "cpu_s_per_patch": (time.process_time() - cpu) / taken,
        "wall_s_per_patch": (time.perf_counter() - wall) / taken,
        "patches": taken,
    }


if __name__ == "__main__":
    main()
