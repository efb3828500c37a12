"""A trained model as a model folder of nnU-Net v2."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flarecps import __version__
from flarecps.atomic import PARTIAL_PREFIX, write_json
from flarecps.checkpoint import TrainedModel
from flarecps.errors import CheckpointError, WriteError
from flarecps.interop.nnunet_plans import configuration_name, nnunet_dataset_json, plan_to_nnunet
from flarecps.interop.nnunet_weights import nnunet_state_dict
from flarecps.networks.unet import UNet
from flarecps.planning.plan import Plan
from flarecps.torch_files import save

Siblings: TypeAlias = Literal["1", "2", "both"]
CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"  # whose network is built from the plans alone


def export_to_nnunet(
    model: TrainedModel, folder: Path | str, sibling: Siblings = "1", mirror_axes: Sequence[int] = ()
) -> list[Path]:
    """The checkpoints written: ``folder``/fold_0/checkpoint_final.pth, with ``both`` fold_1's for sibling 2.

    ``folder`` is what ``nnUNetv2_predict_from_modelfolder -m`` takes. ``mirror_axes`` are the patch's axes that nnU-Net
    may mirror at test time; only those that the training mirrored, too, do good. The folder appears whole or not at
    all. Raises CheckpointError when it exists, when the model has no such sibling, and for what nnU-Net can't express;
    WriteError when the disk is full or read-only.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; name another folder, or remove it first")
    numbers = {"1": [0], "2": [1], "both": [0, 1]}[sibling]
    if numbers[-1] >= len(model.siblings):
        raise CheckpointError(f"{model.path}: holds one network; expected two for --sibling {sibling}: use --sibling 1")
    axes = _checked_axes(mirror_axes, model.plan)
    networks: list[Any] = [model.siblings[number].network for number in numbers]
    plans, dataset = plan_to_nnunet(model.plan, networks[0]), nnunet_dataset_json(model.plan)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        write_json(partial / "plans.json", plans)
        write_json(partial / "dataset.json", dataset)
        written = []
        for fold, network in enumerate(networks):
            place = Path(f"fold_{fold}") / CHECKPOINT
            (partial / place).parent.mkdir()
            save(_checkpoint(network, fold, plans, dataset, model, axes), partial / place)
            written.append(folder / place)
        os.replace(partial, folder)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _checkpoint(
    network: UNet, fold: int, plans: dict[str, Any], dataset: dict[str, Any], model: TrainedModel, axes: tuple[int, ...]
) -> dict[str, Any]:
    """What nnU-Net's trainer would have saved, as far as it is known; it holds plain types and tensors only."""
    return {
        "network_weights": nnunet_state_dict(network),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": None,
        "_best_ema": None,
        "current_epoch": model.epoch,
        "init_args": {
            "plans": plans,
            "configuration": configuration_name(model.plan),
            "fold": fold,
            "dataset_json": dataset,
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": axes or None,
        "exported_by": f"flarecps {__version__}",
    }


def _checked_axes(axes: Sequence[int], plan: Plan) -> tuple[int, ...]:
    if len(set(axes)) != len(axes) or not set(axes) <= set(range(plan.dimensions)):
        names = "0 slice, 1 row, 2 column" if plan.dimensions == 3 else "0 row, 1 column"
        raise CheckpointError(f"mirror axes {list(axes)}: expected each of the patch's axes at most once ({names})")
    return tuple(sorted(axes))
