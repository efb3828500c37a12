"""nnU-Net v2's own planning, preprocessing and training on a CPU, small; runs in the peers' Python.

    python peer.py ROOT DATASET_ID CONFIGURATION NETWORK [--epochs 10] [--steps 60] [--spacing 5]

ROOT holds nnU-Net's raw/, preprocessed/ and results/. CONFIGURATION is 3d_fullres or 2d, NETWORK PlainConvUNet or
ResidualEncoderUNet. nnU-Net plans by itself; then spacing, patch, batch and the network's size are made small in its
plans file, and its trainer without augmentation runs on all cases with fewer and shorter epochs, another learning rate
and more patches with structures in them. The model folder is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

FEATURES = [8, 16, 32, 64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("dataset", type=int)
    parser.add_argument("configuration", choices=["3d_fullres", "2d"])
    parser.add_argument("network", choices=["PlainConvUNet", "ResidualEncoderUNet"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--spacing", type=float, default=5.0, help="mm")
    parser.add_argument("--patch", type=int, default=24)
    options = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        (options.root / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(options.root / name)
    os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess_dataset,
    )
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = next((options.root / "raw").glob(f"Dataset{options.dataset:03d}_*")).name
    folder = options.root / "preprocessed" / name
    if not (folder / "dataset_fingerprint.json").is_file():
        extract_fingerprints([options.dataset], num_processes=1, show_progress_bar=False)
    if not (folder / "nnUNetPlans.json").is_file():
        plan_experiments([options.dataset])
    identifier = f"small{options.network}"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["plans_name"] = identifier
    configuration = plans["configurations"][options.configuration]
    configuration |= smaller(configuration, options)
    plans["configurations"] = {options.configuration: configuration}
    (folder / f"{identifier}.json").write_text(json.dumps(plans, indent=1))
    preprocess_dataset(options.dataset, identifier, [options.configuration], [1], show_progress_bar=False)
    os.environ["nnUNet_n_proc_DA"] = "0"  # patches come from this process; the planner wants at least 1
    dataset = json.loads((folder / "dataset.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainerNoDA(plans, options.configuration, "all", dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = options.epochs, options.steps
    trainer.num_val_iterations_per_epoch = 2
    trainer.oversample_foreground_percent, trainer.initial_lr = 0.67, 0.02
    trainer.plot_network_architecture = lambda: None
    trainer.run_training()
    print(trainer.output_folder_base)


def smaller(configuration: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The entries of a configuration that make its training small."""
    dimensions = len(configuration["patch_size"])
    stages = len(FEATURES)
    kind = configuration["architecture"]["arch_kwargs"]
    sizes: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": FEATURES,
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
    }
    if options.network == "PlainConvUNet":
        sizes |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    else:
        sizes |= {"n_blocks_per_stage": [1, 2, 2, 2], "n_conv_per_stage_decoder": [1] * (stages - 1)}
    left_out = ("n_conv_per_stage", "n_blocks_per_stage")
    kept = {key: value for key, value in kind.items() if key not in left_out}
    return {
        "spacing": [options.spacing] * dimensions,
        "patch_size": [options.patch if dimensions == 3 else 2 * options.patch] * dimensions,
        "batch_size": 4 if dimensions == 3 else 12,
        "batch_dice": True,
        "data_identifier": f"small{options.network}_{options.configuration}",
        "architecture": configuration["architecture"]
        | {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{options.network}",
            "arch_kwargs": kept | sizes,
        },
    }


if __name__ == "__main__":
    main()
