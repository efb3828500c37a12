"""nnU-Net v2's own trainer and predictor on a raw data set; for run.py, in the peers' environment.

    python peer.py prepare FOLDER --patch 32 32 32 --features 8 16 32 64
    python peer.py train   FOLDER VARIANT --patches 8000 --batch 4 --steps-per-epoch 50 --seed 0
    python peer.py pace    FOLDER VARIANT --patches 8000 --batch 4
    python peer.py predict FOLDER VARIANT SCANS OUT [--no-mirroring]

FOLDER holds raw/, preprocessed/ and results/. Everything about a training but its length, batch and patch is nnU-Net's
default; the variants differ in what stands in the plans file. `equal-recipe` alone goes further: Dice over the batch,
our share of patches forced onto foreground, learning rate and momentum, and nnU-Net's own trainer without mirroring (it
can't exchange right and left, and the parotids are a pair).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

DATASET, NUMBER = "Dataset001_kbp", 1
PLANNED, EQUAL_PATCH, EQUAL_NETWORK, EQUAL_RECIPE = "planned", "equal-patch", "equal-network", "equal-recipe"
CONFIGURATIONS = {
    PLANNED: "3d_fullres",
    EQUAL_PATCH: "equal_patch",
    EQUAL_NETWORK: "equal_network",
    EQUAL_RECIPE: "equal_recipe",
}
TRAINERS = {EQUAL_RECIPE: "nnUNetTrainerNoMirroring"}  # else nnUNetTrainer
SAVE_EVERY_EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("prepare", "train", "pace", "predict"):
        one = actions.add_parser(action)
        one.add_argument("folder", type=Path)
        if action == "prepare":
            one.add_argument("--patch", type=int, nargs=3, required=True)
            one.add_argument("--features", type=int, nargs="+", required=True)
        else:
            one.add_argument("variant", choices=list(CONFIGURATIONS))
        if action in ("train", "pace"):
            one.add_argument("--patches", type=int, required=True)
            one.add_argument("--batch", type=int, required=True, help="of the variants that are not 'planned'")
            one.add_argument(
                "--foreground", type=float, default=0.33, help="of 'equal-recipe': share of forced patches"
            )
            one.add_argument("--lr", type=float, default=0.01, help="of 'equal-recipe'")
            one.add_argument("--momentum", type=float, default=0.99, help="of 'equal-recipe'")
        if action == "train":
            one.add_argument("--steps-per-epoch", type=int, required=True)
            one.add_argument("--seed", type=int, default=0)
        if action == "pace":
            one.add_argument("--steps", type=int, default=2)
        if action == "predict":
            one.add_argument("scans", type=Path)
            one.add_argument("out", type=Path)
            one.add_argument("--no-mirroring", action="store_true")
    options = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(options.folder.resolve() / name)
    # 0: the training process makes its patches itself, as ours with workers: 0. The planner takes it for threads.
    os.environ["nnUNet_n_proc_DA"] = "1" if options.action == "prepare" else "0"
    os.environ["nnUNet_compile"] = "false"
    import torch

    torch.set_num_threads(1)
    {"prepare": prepare, "train": train, "pace": pace, "predict": predict}[options.action](options)


def prepare(options: argparse.Namespace) -> None:
    """Fingerprint, plan and preprocess by nnU-Net's own functions; two more configurations in its plans."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([NUMBER], num_processes=1, check_dataset_integrity=False, show_progress_bar=False)
    plans_name = plan_experiments([NUMBER])
    add_variants(options.folder / "preprocessed" / DATASET / f"{plans_name}.json", options)
    preprocess([NUMBER], plans_name, configurations=[CONFIGURATIONS[PLANNED]], num_processes=[1])


def add_variants(path: Path, options: argparse.Namespace) -> None:
    """The other variants as configurations of the plans file; the strides of our patch are nnU-Net's own rule's."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    plans = json.loads(path.read_text())
    full = plans["configurations"][CONFIGURATIONS[PLANNED]]
    for variant in (EQUAL_PATCH, EQUAL_NETWORK, EQUAL_RECIPE):
        _, strides, kernels, patch, _ = get_pool_and_conv_props(full["spacing"], options.patch, 4, 999999)
        if [int(edge) for edge in patch] != options.patch:
            raise SystemExit(f"nnU-Net makes {list(patch)} of the patch {options.patch}; name that one")
        architecture = json.loads(json.dumps(full["architecture"]))
        network = architecture["arch_kwargs"]
        features = [min(320, 32 * 2**stage) for stage in range(len(strides))]
        if variant != EQUAL_PATCH:
            strides, features = [[1, 1, 1], *[[2, 2, 2]] * (len(options.features) - 1)], options.features
            kernels = [[3, 3, 3]] * len(features)
        network |= {
            "n_stages": len(features),
            "features_per_stage": features,
            "strides": plain(strides),
            "kernel_sizes": plain(kernels),
            "n_conv_per_stage": [2] * len(features),
            "n_conv_per_stage_decoder": [2] * (len(features) - 1),
        }
        plans["configurations"][CONFIGURATIONS[variant]] = {
            "inherits_from": CONFIGURATIONS[PLANNED],
            "patch_size": options.patch,
            "architecture": architecture,
        }
        if variant == EQUAL_RECIPE:
            plans["configurations"][CONFIGURATIONS[variant]]["batch_dice"] = True
    path.write_text(json.dumps(plans, indent=1))


def trainer_of(options: argparse.Namespace) -> tuple[Any, bool]:
    """nnU-Net's default trainer on all labelled scans, and whether it goes on from a checkpoint.

    The batch is ours where the variant is not nnU-Net's own.
    """
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    path = options.folder / "preprocessed" / DATASET / "nnUNetPlans.json"
    if options.variant != PLANNED:
        plans = json.loads(path.read_text())
        one = plans["configurations"][CONFIGURATIONS[options.variant]]
        if one.get("batch_size") != options.batch:
            one["batch_size"] = options.batch
            path.write_text(json.dumps(plans, indent=1))
    last = model_folder(options) / "fold_all" / "checkpoint_latest.pth"
    resumed = options.action == "train" and last.is_file()
    trainer = get_trainer_from_args(
        DATASET,
        CONFIGURATIONS[options.variant],
        "all",
        trainer_name=trainer_name(options.variant),
        continue_training=resumed,
        device=torch.device("cpu"),
    )
    if options.variant == EQUAL_RECIPE:
        trainer.oversample_foreground_percent = options.foreground
        trainer.initial_lr = options.lr
        trainer.initialize()
        for group in trainer.optimizer.param_groups:
            group["momentum"] = options.momentum
    return trainer, resumed


def trainer_name(variant: str) -> str:
    """nnU-Net's trainer of a variant."""
    return TRAINERS.get(variant, "nnUNetTrainer")


def model_folder(options: argparse.Namespace) -> Path:
    """Where nnU-Net keeps a variant's model."""
    name = f"{trainer_name(options.variant)}__nnUNetPlans__{CONFIGURATIONS[options.variant]}"
    folder: Path = options.folder / "results" / DATASET / name
    return folder


def train(options: argparse.Namespace) -> None:
    """Train until as many patches were seen; an interrupted training goes on from its last checkpoint."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    trainer, resumed = trainer_of(options)
    batch = trainer.configuration_manager.batch_size
    steps = options.patches // batch
    trainer.num_iterations_per_epoch = options.steps_per_epoch
    trainer.num_epochs = steps // options.steps_per_epoch
    if trainer.num_epochs * options.steps_per_epoch * batch != options.patches:
        raise SystemExit(
            f"{options.patches} patches are not whole epochs of {options.steps_per_epoch} steps of {batch}"
        )
    trainer.num_val_iterations_per_epoch = 1  # with fold "all" these are patches of the training scans again
    trainer.save_every = SAVE_EVERY_EPOCHS
    maybe_load_checkpoint(trainer, resumed, False)
    trainer.run_training()
    print(json.dumps(facts(trainer, options)))


def pace(options: argparse.Namespace) -> None:
    """Print one line of JSON: processor seconds of a training step, and the hours that all patches would take."""
    trainer, _ = trainer_of(options)
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    seconds = []
    for _ in range(options.steps + 1):  # the first one warms up
        start = time.process_time()
        trainer.train_step(next(trainer.dataloader_train))
        seconds.append(time.process_time() - start)
    found = facts(trainer, options)
    step = sum(seconds[1:]) / options.steps
    found |= {"step_s": step, "hours": step * options.patches / found["batch"] / 3600, "steps_timed": options.steps}
    print(json.dumps(found))


def facts(trainer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What was trained: patch, batch, network, and what it has seen."""
    import torch

    one = trainer.configuration_manager
    network = one.network_arch_init_kwargs
    voxels = options.patches
    for edge in one.patch_size:
        voxels *= int(edge)
    return {
        "variant": options.variant,
        "patch": [int(edge) for edge in one.patch_size],
        "batch": int(one.batch_size),
        "batch_dice": bool(one.batch_dice),
        "features": list(network["features_per_stage"]),
        "strides": plain(network["strides"]),
        "parameters": sum(value.numel() for value in trainer.network.parameters()),
        "patches_seen": options.patches,
        "voxels_seen": voxels,
        "torch": torch.__version__,
    }


def predict(options: argparse.Namespace) -> None:
    """Segment a folder of scans one after the other, with nnU-Net's defaults: step 0.5, mirroring unless left out."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=not options.no_mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model_folder(options)), ("all",))
    options.out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(options.scans), str(options.out), overwrite=False)


def plain(value: Any) -> Any:
    """Nested lists of whole numbers."""
    return [plain(one) for one in value] if hasattr(value, "__len__") else int(value)


if __name__ == "__main__":
    main()
