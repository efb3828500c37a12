"""Checkpoints: which a run keeps, how they appear whole or not at all, and which one it resumes or starts from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from flarecps import atomic, metric_names
from flarecps.checkpoint import ENTRY, load_plain, sibling_states
from flarecps.errors import CheckpointError, ConfigError
from flarecps.locks import remove_abandoned
from flarecps.networks import class_tensors, network_name
from flarecps.planning.plan import Plan
from flarecps.torch_files import save

FOLDER = "checkpoints"  # of a run
LAST = "last"  # after every epoch
PREVIOUS = "previous"  # what last was an epoch before
BEST = "best"
REQUEUE = "requeue"  # within an epoch, when a signal asked to stop
OWN = (LAST, REQUEUE, PREVIOUS, BEST)  # the names this program writes; equally far: the first
PERIODIC = "epoch*.ckpt"  # how a ModelCheckpoint of a config names its files by default
_NEEDED_TO_RESUME = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")


def checkpoint_callbacks(run: Path, with_best: bool, validated_every: int = 1) -> list[ModelCheckpoint]:
    """``RUN/checkpoints/last.ckpt`` after every epoch and, ``with_best``, ``best.ckpt`` by mean validation DSC.

    That is known every ``validated_every`` epochs. Both save at the end of the training epoch, after the schedulers'
    step: a file saved earlier would resume with a scheduler one epoch behind.
    """
    shared: dict[str, Any] = {
        "dirpath": run / FOLDER,
        "mode": "max",  # part of the name under which checkpoints keep the callback's state
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    last = ModelCheckpoint(filename=LAST, **shared)
    if not with_best:
        return [last]
    best = ModelCheckpoint(filename=BEST, monitor=metric_names.DSC_MEAN, every_n_epochs=validated_every, **shared)
    return [best, last]  # what last holds of best then includes this epoch's score, which a resumed run must know


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint, to the disk, then renames; the ``last`` before stays as ``previous``.

    Lightning's own goes through the system's temporary folder: on another disk the last step is a copy, which can be
    cut short, and the folder must hold a second copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(target) as partial:
            save(checkpoint, partial)
            if target.name == f"{LAST}.ckpt" and target.is_file():
                _keep(target, target.with_name(f"{PREVIOUS}.ckpt"))


def _keep(path: Path, name: Path) -> None:
    """Give ``path`` another name beside its own, replacing what has it; without hard links its own name goes."""
    link = name.with_name(f"{atomic.PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{name.name}")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        link = path
    os.replace(link, name)


def remove_leftovers(folder: Path, own: bool) -> None:
    """Delete what killed processes left half written in ``folder``, which need not exist.

    ``own``: and the checkpoints that this program wrote there.
    """
    for path in folder.glob(f"{atomic.PARTIAL_PREFIX}*"):
        remove_abandoned(path)
    for name in OWN if own else ():
        (folder / f"{name}.ckpt").unlink(missing_ok=True)


def candidates(folder: Path) -> list[Path]:
    """The files a run may resume from, whole or not: this program's own, then a config's periodic ones by name."""
    own = [folder / f"{name}.ckpt" for name in OWN]
    return [path for path in own if path.is_file()] + sorted(folder.glob(PERIODIC))


def newest_whole(folder: Path, skipped: Callable[[str], None]) -> Path:
    """Of ``candidates`` the one that is furthest in training and whole; equally far: the first of ``OWN``.

    How far is read from the files themselves (completed epochs, then steps), not from their times, which copying
    changes. ``skipped`` is told of every damaged file that might have been further. Raises ``CheckpointError`` when
    there is no candidate, or none is whole.
    """
    paths = candidates(folder)
    if not paths:
        raise CheckpointError(f"{folder}: no such checkpoint to resume from; leave ckpt_path out to start anew")
    sound = []
    for path in paths:
        try:
            sound.append((progress_of(path), path))
        except CheckpointError as error:
            skipped(f"{error}; it is passed over")
    for _, path in sorted(sound, key=lambda pair: pair[0], reverse=True):  # stable: ties stay in order
        try:
            load_plain(path)
        except CheckpointError as error:
            skipped(f"{error}; it is passed over")
        else:
            return path
    names = ", ".join(path.name for path in paths)
    raise CheckpointError(
        f"{folder}: none of its checkpoints ({names}) is whole, so there is nothing to resume from; restore one from "
        "a backup, or move the folder away to start anew"
    )


def progress_of(path: Path) -> tuple[int, int]:
    """How far training had come when ``path`` was written: completed epochs, then optimiser steps in all.

    Reads no weights. Raises ``CheckpointError`` when the file is damaged or can't be resumed from.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        missing = [name for name in _NEEDED_TO_RESUME if name not in content]
        progress = (int(content[ENTRY]["completed_epochs"]), int(content["global_step"]))
    except Exception as error:  # torch raises many kinds for a file that is not one
        raise CheckpointError(f"{path}: damaged, or no checkpoint of 'flarecps fit'") from error
    if missing:
        raise CheckpointError(f"{path}: holds no {', '.join(missing)}, so no training can be resumed from it")
    return progress


# -- the weights a new training starts from: those of an earlier one


def load_start_weights(path: Path | str, plan: Plan, siblings: nn.ModuleList, into: Sequence[int] | None = None) -> str:
    """Put a checkpoint's weights into ``siblings``, in place; what was done, in one line.

    Sibling 1 starts from sibling 1, sibling 2 from sibling 2. A checkpoint with one network (of the supervised control,
    or imported) gives it to sibling 1, and sibling 2 keeps its own random weights, for two equal siblings have nothing
    to teach each other. ``into`` names the siblings that are given weights instead, such as [2]; a checkpoint's one
    network goes to each of them. Where the label sets differ the heads keep their random weights. Optimisers,
    schedulers and epochs start anew.

    Raises ``CheckpointError`` when the networks or their input channels are others, ``ConfigError`` for a sibling that
    this training has not.
    """
    content = load_plain(path)
    theirs = content[ENTRY]
    network: Any = siblings[0]
    given, own = theirs["network"]["arguments"], network.arguments
    for what, found, ours in (
        ("network", theirs["network"]["name"], network_name(network)),
        ("channels", list(theirs["plan"]["channels"]), list(plan.channels)),
        *((name, given.get(name), own.get(name)) for name in sorted({*given, *own} - {"classes"})),
    ):
        if found != ours:
            raise CheckpointError(
                f"{path}: its {what} is {found}, this config's is {ours}; to start from its weights give "
                "model.network, model.topology and the plan's channels as in its RUN/config.yaml (labels may differ)"
            )
    same_labels = dict(theirs["plan"]["labels"]) == plan.labels
    heads = set() if same_labels else class_tensors(network)
    states = sibling_states(content)
    chosen = _chosen(into, len(siblings), len(states))
    for number in chosen:
        sibling, state = siblings[number - 1], states[min(number, len(states)) - 1]
        kept = sibling.state_dict()
        sibling.load_state_dict({name: kept[name] if name in heads else value for name, value in state.items()})
    words = f"start from {path}: " + " and ".join(f"sibling {number}" for number in chosen)
    for number in sorted(set(range(1, 1 + len(siblings))) - set(chosen)):
        reason = ", since the checkpoint holds one network" if into is None else ""
        words += f"; sibling {number} starts from random weights{reason}"
    if len(chosen) > len(states):
        words += "; both from the same network, so they differ by their draws alone at first"
    return words if same_labels else words + "; heads start from random weights, since the labels differ"


def _chosen(into: Sequence[int] | None, siblings: int, states: int) -> list[int]:
    if into is None:
        return list(range(1, 1 + min(siblings, states)))
    if not into or not set(into) <= set(range(1, 1 + siblings)):
        raise ConfigError(f"init_siblings is {list(into)}; expected some of {list(range(1, 1 + siblings))}")
    return sorted(set(into))
