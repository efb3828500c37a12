"""nnU-Net v2's own trainer and predictor on kbp's labelled scans, in the peers' environment (`make peers`).

    python peer.py prepare DATASET FOLDER
    python peer.py train   DATASET FOLDER VARIANT [--seed 0]
    python peer.py predict DATASET FOLDER VARIANT [--seed 0] [--mirrored]
    python peer.py pace    DATASET FOLDER VARIANT

DATASET is OpenKBP with its splits.json. FOLDER gets nnU-Net's raw/, preprocessed/ and results/, and what the study
reads: VARIANT/seed_N/, label maps of the test scans (VARIANT_mirrored/ by 8 mirrors); VARIANT/seed_N.json says what was
trained.

Everything about a training but its length, batch and patch is nnU-Net's default; the variants differ in what stands in
the plans file. `equal-recipe` alone goes further: Dice over the batch, our share of patches forced onto foreground,
learning rate and momentum, and nnU-Net's own trainer without mirroring (it can't exchange right and left, and the
parotids are a pair).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

DATASET, NUMBER = "Dataset001_kbp", 1
SPLIT = "10_labelled"
PLANNED, EQUAL_PATCH, EQUAL_NETWORK, EQUAL_RECIPE = "planned", "equal-patch", "equal-network", "equal-recipe"
CONFIGURATIONS = {
    PLANNED: "3d_fullres",
    EQUAL_PATCH: "equal_patch",
    EQUAL_NETWORK: "equal_network",
    EQUAL_RECIPE: "equal_recipe",
}
TRAINERS = {EQUAL_RECIPE: "nnUNetTrainerNoMirroring"}  # else nnUNetTrainer
SAVE_EVERY_EPOCHS = 5
PATCHES, BATCH, STEPS_PER_EPOCH = 4000, 2, 50  # ours (configs/kbp_3d.yaml), as what follows
PATCH, FEATURES = [32, 32, 32], [8, 16, 32, 64]
FOREGROUND, LR, MOMENTUM = 0.5, 0.1, 0.9
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STEPS_TIMED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("prepare", "train", "predict", "pace"):
        one = actions.add_parser(action)
        one.add_argument("dataset", type=Path)
        one.add_argument("folder", type=Path)
        if action != "prepare":
            one.add_argument("variant", choices=list(CONFIGURATIONS))
            one.add_argument("--seed", type=int, default=0)
        if action == "predict":
            one.add_argument("--mirrored", action="store_true")
    options = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(options.folder.resolve() / name)
    if options.action != "prepare":
        os.environ["nnUNet_results"] += f"/seed_{options.seed}"
    # 0: the training process makes its patches itself, as ours with workers: 0. The planner takes it for threads.
    os.environ |= dict.fromkeys(THREADS, "1") | {"nnUNet_n_proc_DA": "1" if options.action == "prepare" else "0"}
    os.environ["nnUNet_compile"] = "false"
    import torch

    torch.set_num_threads(1)
    {"prepare": prepare, "train": train, "pace": pace, "predict": predict}[options.action](options)


def prepare(options: argparse.Namespace) -> None:
    """The labelled scans as a raw data set of links; fingerprint, plan and preprocessing by nnU-Net's own functions."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    link_labelled(options.dataset.resolve(), options.folder / "raw" / DATASET)
    extract_fingerprints([NUMBER], num_processes=1, check_dataset_integrity=False, show_progress_bar=False)
    plans_name = plan_experiments([NUMBER])
    add_variants(options.folder / "preprocessed" / DATASET / f"{plans_name}.json")
    preprocess([NUMBER], plans_name, configurations=[CONFIGURATIONS[PLANNED]], num_processes=[1])


def link_labelled(dataset: Path, raw: Path) -> None:
    """The split's labelled scans and their labels as links in nnU-Net's raw layout, with a dataset.json."""
    labelled = json.loads((dataset / "splits.json").read_text())[SPLIT]["labelled"]
    described = json.loads((dataset / "dataset.json").read_text())
    for folder, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        for name in labelled:
            link = raw / folder / f"{name}{end}{described['file_ending']}"
            link.unlink(missing_ok=True)
            link.symlink_to(dataset / folder / link.name)
    kept = {key: described[key] for key in ("channel_names", "labels", "file_ending")}
    (raw / "dataset.json").write_text(json.dumps(kept | {"numTraining": len(labelled)}))


def add_variants(path: Path) -> None:
    """The other variants as configurations of the plans file; the strides of our patch are nnU-Net's own rule's."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    plans = json.loads(path.read_text())
    full = plans["configurations"][CONFIGURATIONS[PLANNED]]
    for variant in (EQUAL_PATCH, EQUAL_NETWORK, EQUAL_RECIPE):
        _, strides, kernels, patch, _ = get_pool_and_conv_props(full["spacing"], PATCH, 4, 999999)
        if [int(edge) for edge in patch] != PATCH:
            raise SystemExit(f"nnU-Net makes {list(patch)} of the patch {PATCH}")
        architecture = json.loads(json.dumps(full["architecture"]))
        network = architecture["arch_kwargs"]
        features = [min(320, 32 * 2**stage) for stage in range(len(strides))]
        if variant != EQUAL_PATCH:
            strides, features = [[1, 1, 1], *[[2, 2, 2]] * (len(FEATURES) - 1)], FEATURES
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
            "patch_size": PATCH,
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
        if one.get("batch_size") != BATCH:
            one["batch_size"] = BATCH
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
        trainer.oversample_foreground_percent = FOREGROUND
        trainer.initial_lr = LR
        trainer.initialize()
        for group in trainer.optimizer.param_groups:
            group["momentum"] = MOMENTUM
    return trainer, resumed


def trainer_name(variant: str) -> str:
    """nnU-Net's trainer of a variant."""
    return TRAINERS.get(variant, "nnUNetTrainer")


def model_folder(options: argparse.Namespace) -> Path:
    """Where nnU-Net keeps a variant's model."""
    name = f"{trainer_name(options.variant)}__nnUNetPlans__{CONFIGURATIONS[options.variant]}"
    return Path(os.environ["nnUNet_results"], DATASET, name)


def train(options: argparse.Namespace) -> None:
    """Train until as many patches were seen; an interrupted training goes on from its last checkpoint."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    trainer, resumed = trainer_of(options)
    batch = trainer.configuration_manager.batch_size
    trainer.num_iterations_per_epoch = STEPS_PER_EPOCH
    trainer.num_epochs = PATCHES // batch // STEPS_PER_EPOCH
    if trainer.num_epochs * STEPS_PER_EPOCH * batch != PATCHES:
        raise SystemExit(f"{PATCHES} patches are not whole epochs of {STEPS_PER_EPOCH} steps of {batch}")
    trainer.num_val_iterations_per_epoch = 1  # with fold "all" these are patches of the training scans again
    trainer.save_every = SAVE_EVERY_EPOCHS
    maybe_load_checkpoint(trainer, resumed, False)
    trainer.run_training()
    keep(options, f"seed_{options.seed}.json", facts(trainer, options))


def pace(options: argparse.Namespace) -> None:
    """Keep VARIANT/pace.json: processor seconds of a training step, and the hours that all patches would take."""
    trainer, _ = trainer_of(options)
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    seconds = []
    for _ in range(STEPS_TIMED + 1):  # the first one warms up
        start = time.process_time()
        trainer.train_step(next(trainer.dataloader_train))
        seconds.append(time.process_time() - start)
    found = facts(trainer, options)
    step = sum(seconds[1:]) / STEPS_TIMED
    found |= {"step_s": step, "hours": step * PATCHES / found["batch"] / 3600, "steps_timed": STEPS_TIMED}
    keep(options, "pace.json", found)


def keep(options: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    """Write FOLDER/VARIANT/NAME."""
    folder = options.folder / options.variant
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(found) + "\n")


def facts(trainer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What was trained: patch, batch, network, and what it has seen."""
    import torch

    one = trainer.configuration_manager
    network = one.network_arch_init_kwargs
    voxels = PATCHES
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
        "patches_seen": PATCHES,
        "voxels_seen": voxels,
        "torch": torch.__version__,
    }


def predict(options: argparse.Namespace) -> None:
    """Segment the test scans one after the other with nnU-Net's default step of 0.5."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=options.mirrored,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model_folder(options)), ("all",))
    out = options.folder / f"{options.variant}{'_mirrored' * options.mirrored}" / f"seed_{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(options.dataset / "imagesTs"), str(out), overwrite=False)


def plain(value: Any) -> Any:
    """Nested lists of whole numbers."""
    return [plain(one) for one in value] if hasattr(value, "__len__") else int(value)


if __name__ == "__main__":
    main()
