"""The files of an nnU-Net v2 model folder, read without trusting whoever sent them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flarecps.errors import CheckpointError

FOLD = re.compile(r"fold_(all|\d+)")
# Kinds of NumPy scalars that nnU-Net's own log of losses and times holds.
_SCALARS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before and since NumPy 2


@dataclass(frozen=True)
class ModelFolder:
    """Plans, data set and folds of a trained model."""

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: tuple[str, ...]  # "0", "1", …, "all"


def read_model_folder(path: Path | str, checkpoint: str) -> ModelFolder:
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
    return ModelFolder(path, plans, dataset, folds)


def read_fold(folder: ModelFolder, fold: str, checkpoint: str) -> dict[str, Any]:
    """The content of a fold's checkpoint: tensors, plain types and NumPy scalars, and nothing that could run code.

    Raises CheckpointError when the fold is not there, the file is damaged, or it holds anything else.
    """
    if fold not in folder.folds:
        raise CheckpointError(f"{folder.path}: has no fold {fold}; it has {', '.join(folder.folds)}")
    path = folder.path / f"fold_{fold}" / checkpoint
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
    return content


_EXAMPLE = "results/Dataset001_Abdomen/nnUNetTrainer__nnUNetPlans__3d_fullres"


def _harmless() -> list[Any]:
    """NumPy's reconstruction of scalars, the dtype class and those of numbers: exactly what nnU-Net's files need."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [np.dtype, *(type(np.dtype(kind)) for kind in _SCALARS)]
    return [*((scalar, name) for name in _SCALAR_NAMES), *dtypes]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing; a model folder of nnU-Net v2 holds plans.json, dataset.json and fold_N/ folders: was it "
            "copied completely?"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, as nnU-Net v2 writes it")
    return content
