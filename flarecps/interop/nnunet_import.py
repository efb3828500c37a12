"""A trained model of nnU-Net v2 as a checkpoint of this program, read without trusting whoever sent its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flarecps.atomic import atomic_path
from flarecps.checkpoint import ENTRY, SIBLINGS_PREFIX, check_unpacked_size, model_entry
from flarecps.errors import CheckpointError
from flarecps.interop.nnunet_architecture import network_from_nnunet
from flarecps.interop.nnunet_plans import (
    channels_of_dataset,
    labels_of_dataset,
    plan_from_nnunet,
    resolved_configuration,
)
from flarecps.interop.nnunet_weights import load_nnunet_state_dict
from flarecps.json_fields import Reader, is_whole
from flarecps.networks.unet import UNet
from flarecps.planning.plan import Plan
from flarecps.text_files import read_json
from flarecps.torch_files import check_finite, check_whole, save

FOLD = re.compile(r"fold_(all|\d+)")
# Kinds of NumPy scalars that nnU-Net's own log of losses and times holds.
_SCALARS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before and since NumPy 2

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
    model = _read_model_folder(folder, checkpoint)
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
        epoch=int(content["current_epoch"]) if is_whole(content.get("current_epoch")) else 0,
        mirror_axes=_mirror_axes(content.get("inference_allowed_mirroring_axes"), found[0][0].dimensions),
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
        save({"state_dict": state, ENTRY: entry}, partial)
    return imported


def _fold(model: _ModelFolder, fold: str, checkpoint: str) -> tuple[Plan, UNet, Mapping[str, Any]]:
    where = str(model.path / f"fold_{fold}" / checkpoint)
    content = _read_fold(model, fold, checkpoint)
    name = _configuration_name(model, content)
    configuration = resolved_configuration(model.plans, name, str(model.path))
    labels, channels = (read(model.dataset, str(model.path)) for read in (labels_of_dataset, channels_of_dataset))
    with torch.device("meta"):  # sizes that the weights don't have are told before memory is taken for them
        described = network_from_nnunet(configuration, len(channels), len(labels), str(model.path))
        plan = plan_from_nnunet(model.plans, model.dataset, configuration, described, str(model.path))
        load_nnunet_state_dict(described, content["network_weights"], where)
    network = network_from_nnunet(configuration, len(channels), len(labels), str(model.path))
    load_nnunet_state_dict(network, content["network_weights"], where)
    return plan, network.eval(), content


def _configuration_name(model: _ModelFolder, content: Mapping[str, Any]) -> str:
    """From the checkpoint, else the folder's name, else the only one there is."""
    arguments = content.get("init_args")
    if isinstance(arguments, Mapping) and isinstance(arguments.get("configuration"), str):
        return str(arguments["configuration"])
    known = list(Reader(model.plans, str(model.path / "plans.json"), kind=CheckpointError).mapping("configurations"))
    ending = model.path.resolve().name.rpartition("__")[2]
    return ending if ending in known or len(known) != 1 else str(known[0])


def _mirror_axes(content: Any, dimensions: int) -> tuple[int, ...]:
    """The axes in a checkpoint; none where it says nothing of the kind."""
    axes = content if isinstance(content, list | tuple) else ()
    return tuple(axis for axis in axes if is_whole(axis) and axis < dimensions)


@dataclass(frozen=True)
class _ModelFolder:
    """Plans, data set and folds of a trained model."""

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: tuple[str, ...]  # "0", "1", …, "all"


def _read_model_folder(path: Path | str, checkpoint: str) -> _ModelFolder:
    """What lies in a folder such as nnUNetTrainer__nnUNetPlans__3d_fullres; folds are those that hold ``checkpoint``.

    Raises CheckpointError when the folder, plans.json, dataset.json or every fold is missing, or a file is not JSON.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a model folder of nnU-Net v2, such as {_EXAMPLE}")
    if Path(checkpoint).name != checkpoint:
        raise CheckpointError(f"'{checkpoint}': expected the name of a file in fold_N/, such as checkpoint_best.pth")
    plans, dataset = (_read_json(path / name) for name in ("plans.json", "dataset.json"))
    found = [FOLD.fullmatch(one.name) for one in sorted(path.iterdir()) if (one / checkpoint).is_file()]
    folds = tuple(sorted((match[1] for match in found if match), key=lambda fold: (fold == "all", fold.zfill(4))))
    if not folds:
        raise CheckpointError(
            f"{path}: holds no fold_N/{checkpoint}; expected at least one, as nnUNetv2_train leaves it"
        )
    return _ModelFolder(path, plans, dataset, folds)


def _read_fold(folder: _ModelFolder, fold: str, checkpoint: str) -> dict[str, Any]:
    """The content of a fold's checkpoint: tensors, plain types and NumPy scalars, and nothing that could run code.

    Raises CheckpointError when the fold is not there, the file is damaged, or it holds anything else.
    """
    if fold not in folder.folds:
        raise CheckpointError(f"{folder.path}: has no fold {fold}; it has {', '.join(folder.folds)}")
    path = folder.path / f"fold_{fold}" / checkpoint
    check_unpacked_size(path)
    check_whole(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one, none of them for the user's eyes
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it holds '{foreign[1]}', which could run code of whoever made it; only tensors, plain types and NumPy "
            "scalars are read. If you trust it, load it with nnU-Net and save 'network_weights', 'init_args' and "
            "'trainer_name' again"
            if foreign
            else "damaged, or not a PyTorch file; copy it again"
        )
        raise CheckpointError(f"{path}: can't be loaded safely: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), Mapping):
        raise CheckpointError(f"{path}: a PyTorch file without 'network_weights'; expected a checkpoint of nnU-Net v2")
    weights = content["network_weights"]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise CheckpointError(f"{path}: 'network_weights' holds something else than named tensors")
    check_finite(path, weights)
    return content


_EXAMPLE = "results/Dataset001_Abdomen/nnUNetTrainer__nnUNetPlans__3d_fullres"


def _harmless() -> list[Any]:
    """NumPy's reconstruction of scalars, the dtype class and those of numbers: exactly what nnU-Net's files need."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [np.dtype, *(type(np.dtype(kind)) for kind in _SCALARS)]
    return [*((scalar, name) for name in _SCALAR_NAMES), *dtypes]


def _read_json(path: Path) -> dict[str, Any]:
    expected = (
        "a model folder of nnU-Net v2 holds plans.json, dataset.json and fold_N/ folders: copy it again, completely"
    )
    content = read_json(path, CheckpointError, expected)
    return Reader(content, str(path), kind=CheckpointError, again=expected).content
