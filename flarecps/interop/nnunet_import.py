"""A trained model of nnU-Net v2 as a checkpoint of this program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flarecps.atomic import atomic_path
from flarecps.checkpoint import ENTRY, SIBLINGS_PREFIX, model_entry
from flarecps.errors import CheckpointError
from flarecps.interop.nnunet_architecture import network_from_nnunet
from flarecps.interop.nnunet_files import ModelFolder, read_fold, read_model_folder
from flarecps.interop.nnunet_plans import (
    channels_of_dataset,
    labels_of_dataset,
    plan_from_nnunet,
    resolved_configuration,
)
from flarecps.interop.nnunet_weights import load_nnunet_state_dict
from flarecps.networks.unet import UNet
from flarecps.planning.plan import Plan

FINAL = "checkpoint_final.pth"
MOST_FOLDS = 2  # a checkpoint holds two siblings


@dataclass(frozen=True)
class ImportedModel:
    """What a model folder became, and the folds that were left where they are."""

    plan: Plan
    networks: tuple[UNet, ...]
    folds: tuple[str, ...]
    other_folds: tuple[str, ...]
    epoch: int
    mirror_axes: tuple[int, ...]  # that nnU-Net would mirror at test time


def read_nnunet_model(folder: Path | str, folds: Sequence[str] | None = None, checkpoint: str = FINAL) -> ImportedModel:
    """The networks of one or two folds (default: the first), with weights, and the plan they were trained by.

    Raises CheckpointError, naming the file, for what is missing, malformed, unsafe to load, or not known here.
    """
    model = read_model_folder(folder, checkpoint)
    chosen = tuple(folds) if folds else model.folds[:1]
    if len(chosen) > MOST_FOLDS or len(set(chosen)) != len(chosen):
        raise CheckpointError(
            f"folds {', '.join(chosen)}: expected one or two, for siblings 1 and 2; import the others into checkpoints "
            "of their own, 'flarecps segment' averages several"
        )
    found = [_fold(model, fold, checkpoint) for fold in chosen]
    if any(plan != found[0][0] for plan, _, _ in found):
        raise CheckpointError(f"{model.path}: folds {' and '.join(chosen)} were trained with different configurations")
    content = found[0][2]
    return ImportedModel(
        plan=found[0][0],
        networks=tuple(network for _, network, _ in found),
        folds=chosen,
        other_folds=tuple(fold for fold in model.folds if fold not in chosen),
        epoch=int(content.get("current_epoch") or 0),
        mirror_axes=tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ()),
    )


def import_from_nnunet(
    folder: Path | str, out: Path | str, folds: Sequence[str] | None = None, checkpoint: str = FINAL
) -> ImportedModel:
    """What ``read_nnunet_model`` gives, written to ``out`` as a checkpoint for ``segment`` and ``fit --init``."""
    out = Path(out)
    if out.suffix != ".ckpt":
        raise CheckpointError(f"{out}: expected the name of a .ckpt file to write")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; name another file, or remove it first")
    imported = read_nnunet_model(folder, folds, checkpoint)
    siblings = nn.ModuleList(imported.networks)
    state = {f"{SIBLINGS_PREFIX}{name}": value for name, value in siblings.state_dict().items()}
    entry = model_entry(imported.plan, siblings, imported.epoch)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as partial:
        torch.save({"state_dict": state, ENTRY: entry}, partial)
    return imported


def _fold(model: ModelFolder, fold: str, checkpoint: str) -> tuple[Plan, UNet, Mapping[str, Any]]:
    where = str(model.path / f"fold_{fold}" / checkpoint)
    content = read_fold(model, fold, checkpoint)
    name = _configuration_name(model, content)
    configuration = resolved_configuration(model.plans, name, str(model.path))
    labels, channels = (read(model.dataset, str(model.path)) for read in (labels_of_dataset, channels_of_dataset))
    network = network_from_nnunet(configuration, len(channels), len(labels), str(model.path))
    plan = plan_from_nnunet(model.plans, model.dataset, configuration, network, str(model.path))
    load_nnunet_state_dict(network, content["network_weights"], where)
    return plan, network.eval(), content


def _configuration_name(model: ModelFolder, content: Mapping[str, Any]) -> str:
    """From the checkpoint, else the folder's name, else the only one there is."""
    arguments = content.get("init_args")
    if isinstance(arguments, Mapping) and isinstance(arguments.get("configuration"), str):
        return str(arguments["configuration"])
    known = list(model.plans.get("configurations") or {})
    ending = model.path.resolve().name.rpartition("__")[2]
    return ending if ending in known or len(known) != 1 else str(known[0])
