"""Which networks segment: a checkpoint's siblings, or those of several checkpoints that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from flarecps.checkpoint import MUST_AGREE, TrainedModel, read_checkpoint
from flarecps.errors import ConfigError
from flarecps.planning.plan import Plan, plan_to_json

Sibling: TypeAlias = Literal["1", "2", "average"]


def load_networks(checkpoints: Sequence[Path | str], sibling: Sibling) -> tuple[Plan, tuple[nn.Module, ...]]:
    """The plan and the networks whose probabilities are averaged, from one checkpoint or several (folds).

    Of each, sibling ``"1"``, ``"2"`` or both (``"average"``); a supervised control has one network: sibling 1, which
    is the average, too. Raises CheckpointError for a file that is not a checkpoint, ConfigError when it has no
    such sibling or the checkpoints' plans differ in what the networks see and name.
    """
    if not checkpoints:
        raise ConfigError("no checkpoint was named: expected one, or one per fold")
    models = [read_checkpoint(path) for path in checkpoints]
    for other in models[1:]:
        _check_agreement(models[0], other)
    return models[0].plan, tuple(network for model in models for network in _chosen(model, sibling))


def _chosen(model: TrainedModel, sibling: Sibling) -> Sequence[nn.Module]:
    if sibling not in ("1", "2", "average"):
        raise ConfigError(f"sibling '{sibling}': expected 1, 2 or average")
    if sibling == "average":
        return model.siblings
    if int(sibling) > len(model.siblings):
        raise ConfigError(
            f"sibling {sibling}: {model.path} holds one network only (a supervised control); use sibling 1"
        )
    return (model.siblings[int(sibling) - 1],)


def _check_agreement(first: TrainedModel, other: TrainedModel) -> None:
    ours, theirs = plan_to_json(first.plan), plan_to_json(other.plan)
    for name in (*MUST_AGREE, "dimensions", "patch_voxels"):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{other.path}: its {name} is {theirs.get(name)}, that of {first.path} is {ours.get(name)}; only "
                "networks trained by one plan (folds of it, for instance) can be averaged"
            )
