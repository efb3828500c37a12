"""What a training's command line leaves open, decided and said; and what it says instead of the store's plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from flarecps.cli.training_options import given_settings, pairs
from flarecps.data.datamodule import ScanDataModule
from flarecps.datasets.splits import SPLITS, choose_split, read_splits
from flarecps.errors import DatasetError
from flarecps.processes import usable_cores
from flarecps.training.defaults import Machine, default_settings, in_words
from flarecps.training.launching import started_by_srun
from flarecps.training.module import SegmentationModule


def with_defaults(words: list[str]) -> tuple[list[str], list[str]]:
    """A command line with what it leaves open decided by store and machine, and what was decided, in words."""
    command, *rest = words
    given = given_settings(rest)
    store = given.get("data.store")
    if not isinstance(store, str) or "${" in store:  # the parser will say what is missing, or knows what it refers to
        return words, []
    machine = _machine(given)
    unlabelled = _unlabelled_cases(Path(store), given)
    options = [name for name, _ in pairs(rest)]
    found = default_settings(given, "config" in options, unlabelled, machine)
    decided = in_words(found, given, unlabelled, machine) if command == "fit" else []
    more = []
    workers = given.get("data.workers")
    if isinstance(workers, int) and workers > machine.cores and "data.workers" not in options:
        more = [f"--data.workers={machine.cores}"]
        decided.append(f"workers {machine.cores}, as many as there are cores, instead of the config's {workers}")
    nested: dict[str, Any] = {}
    for name, value in found.items():
        part, _, key = name.partition(".")
        nested.setdefault(part, {})[key] = value
    return [command, f"--config={OmegaConf.to_yaml(OmegaConf.create(nested))}", *rest, *more], decided


def _machine(given: dict[str, Any]) -> Machine:
    """What a process of a training with these settings may use."""
    gpu = torch.cuda.is_available() and given.get("trainer.accelerator") != "cpu"
    devices = str(given.get("trainer.devices", 1))
    here = devices.isdecimal() and int(devices) and not started_by_srun()  # SLURM deals cores out
    beside = int(devices) if here else 1
    return Machine(
        max(1, usable_cores() // beside), gpu, gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def _unlabelled_cases(store: Path, given: dict[str, Any]) -> int:
    """How many the store's split has; 0 where it can't be told, which the data module will explain."""
    try:
        name = given.get("data.split")
        return len(
            choose_split(read_splits(store / SPLITS), None if name in (None, "null") else name, store).unlabelled
        )
    except DatasetError:
        return 0


def instead_of_the_plan(data: ScanDataModule, model: SegmentationModule) -> list[str]:
    """The network that is trained, and a line for all that a config says instead of the store's plan."""
    planned, used = data.plan, model.plan
    size = sum(weight.numel() for weight in model.siblings[0].parameters()) / 1e6
    lines = [f"{len(model.siblings)} × {type(model.siblings[0]).__name__}, {size:.2f} M parameters each"]
    if used.patch_voxels != planned.patch_voxels:
        lines.append(f"patch {_times(used.patch_voxels)} instead of the plan's {_times(planned.patch_voxels)}")
    for stream, patches in used.global_batch.items():
        if patches not in (0, planned.global_batch.get(stream, 0)):
            lines.append(
                f"batch of {patches} {stream} patches instead of the plan's {planned.global_batch.get(stream, 0)}"
            )
    for name in ("features", "strides", "kernels"):
        own, other = (getattr(one.topology, name) for one in (used, planned))
        if own != other and not (name == "kernels" and set(own) == set(other)):  # only fewer stages, or more
            lines.append(f"network's {name} {_network_row(own)} instead of the plan's {_network_row(other)}")
    return lines


def _network_row(row: Sequence[Any]) -> str:
    return ", ".join(map(_times, row)) if isinstance(row[0], Sequence) else "-".join(map(str, row))


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
