"""A few steps to see what a training would take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from flarecps.atomic import write_json
from flarecps.batch_processing import progress_bar
from flarecps.data.datamodule import ScanDataModule
from flarecps.durations import clock
from flarecps.errors import counted
from flarecps.networks.cost import cost_of_shapes
from flarecps.planning.memory import gb_in_words, network_step_gb
from flarecps.processes import peak_memory_bytes
from flarecps.training.defaults import DRY_RUN_FILE
from flarecps.training.module import SegmentationModule, segmentation_module

# the first step of either kind allocates and compiles; the others are timed
STEPS_WITH_PSEUDO_LABELS = (True, False, False, True, True, True)
LONG_ENOUGH_S = 120.0  # then one timed step of either kind will do
LONG = 1000  # epochs to look for a λ in, where a training has no end
GB = 1e9


@dataclass(frozen=True)
class TimedStep:
    """One step: seconds until its batch was there, seconds of computing, and whether λ was above 0."""

    wait_s: float
    busy_s: float
    with_pseudo_labels: bool


def seconds_to_the_end(
    steps: list[TimedStep], weight: Callable[[int], float], epochs: int, iterations: int, most: int | None = None
) -> float:
    """Seconds that ``epochs`` of ``iterations`` steps take, of which those with λ = 0 compute no unlabelled patch.

    With ``most`` no more steps than that.

    >>> steps = [TimedStep(0.0, 2.0, True), TimedStep(0.5, 0.5, False)]
    >>> seconds_to_the_end(steps, lambda epoch: min(epoch, 1), epochs=3, iterations=10)
    50.0
    """
    means = {kind: _mean([step for step in steps if step.with_pseudo_labels == kind]) for kind in (True, False)}
    most = epochs * iterations if most is None else most
    taken = (max(0, min(iterations, most - epoch * iterations)) for epoch in range(epochs))
    return sum(number * means[weight(epoch) > 0] for epoch, number in enumerate(taken))


def _mean(steps: list[TimedStep]) -> float:
    return sum(step.wait_s + step.busy_s for step in steps) / len(steps) if steps else 0.0


class DryRun(Callback):
    """Times steps with λ at its largest and at 0, and prints time, memory and the time to the end of training.

    The module pretends to be in an epoch of that λ; one that no epoch has is not timed.
    """

    def __init__(self, epochs: int | None, iterations: int, most: int | None = None) -> None:
        self.epochs, self.iterations = epochs, iterations  # None: without an end that is known
        self.most = most  # steps, where those are limited
        self.steps: list[TimedStep] = []
        self._taken = 0
        self._started = self._began = self._ended = 0.0
        self._bar = ExitStack()
        self._advance: Callable[[], None] = lambda: None
        self._epochs: dict[bool, int] = {}  # with pseudo-labels or not: an epoch to time

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weight = segmentation_module(pl_module).method.weight
        epochs = range(max(self.epochs or LONG, 1))
        largest, smallest = max(epochs, key=weight), min(epochs, key=weight)
        self._epochs = {weight(epoch) > 0: epoch for epoch in (largest, smallest)}
        self._started = self._ended = time.monotonic()
        if trainer.is_global_zero:
            steps = len(STEPS_WITH_PSEUDO_LABELS)
            self._advance = self._bar.enter_context(progress_bar("Dry run", steps, unit="step"))
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        crossed = STEPS_WITH_PSEUDO_LABELS[min(self._taken, len(STEPS_WITH_PSEUDO_LABELS) - 1)]
        segmentation_module(pl_module).pretended_epoch = self._epochs.get(crossed, self._epochs.get(not crossed))
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = segmentation_module(pl_module)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended = time.monotonic()
        if self._taken >= 2:
            crossed = module.method.weight(module.method_epoch) > 0
            self.steps.append(TimedStep(self._began - self._ended, ended - self._began, crossed))
        self._taken += 1
        if self._taken <= len(STEPS_WITH_PSEUDO_LABELS):
            self._advance()
        is_long = ended - self._started > LONG_ENOUGH_S and trainer.world_size == 1  # ranks stop together
        if is_long and {step.with_pseudo_labels for step in self.steps} == set(self._epochs):
            trainer.should_stop = True
        self._ended = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = segmentation_module(pl_module)
        module.pretended_epoch = None
        self._bar.close()
        if not trainer.is_global_zero:
            return
        table = Table("", "", title="dry run: nothing was written", show_header=False)
        names = {True: "a step with pseudo-labels", False: "a step without pseudo-labels"}
        for crossed in sorted(self._epochs, reverse=True):
            name = names[crossed] if True in self._epochs else "a step"
            table.add_row(name, f"{_mean([step for step in self.steps if step.with_pseudo_labels == crossed]):.3g} s")
        waited, whole = sum(step.wait_s for step in self.steps), sum(step.wait_s + step.busy_s for step in self.steps)
        table.add_row("of which waiting for data", f"{waited / whole:.1%}")
        memory = _estimated_step_gb(module) | memory_gb(trainer.strategy.root_device)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ScanDataModule) and (ahead := data.batches_ahead())[0]:
            memory[f"{ahead[0]} batches ahead, shared memory"] = ahead[1]
        for name, amount in memory.items():
            table.add_row(name, gb_in_words(amount))
        epochs = 1 if self.epochs is None else self.epochs
        left_s = seconds_to_the_end(self.steps, module.method.weight, epochs, self.iterations, self.most)
        length = f"{counted(epochs, 'epoch')} of {counted(self.iterations, 'step')}"
        if self.most is not None and self.most < epochs * self.iterations:
            length = f"{counted(self.most, 'step')} (trainer.max_steps, shared by {len(module.siblings)} optimisers)"
        table.add_row(length, f"{clock(left_s)}, validation not included")
        if file := os.environ.get(DRY_RUN_FILE):
            write_json(file, {"training_s": left_s})
        if self.epochs is None:
            table.add_row("to the end", "not known: the training has no number of epochs (trainer.max_epochs)")
        Console().print(table)


def _estimated_step_gb(module: SegmentationModule) -> dict[str, float]:
    """What the plan's rule says of a step by this method and network; nothing for a network that needs real tensors."""
    network: Any = module.siblings[0]
    cost = cost_of_shapes(network, len(module.plan.channels), module.plan.patch_voxels)
    return (
        {}
        if cost is None
        else {"memory of a step, estimated (bf16-mixed)": network_step_gb(module.plan, cost.convolved_elements)}
    )


def memory_gb(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, what its workers hold now, and the peak on ``device`` if it is a GPU, in GB."""
    workers = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    found = {
        "peak memory of the process": peak_memory_bytes() / GB,
        "memory of its workers": workers / GB,
    }
    if device.type == "cuda":
        found["peak GPU memory, tensors"] = torch.cuda.max_memory_allocated(device) / GB
        found["peak GPU memory, reserved"] = torch.cuda.max_memory_reserved(device) / GB
    return found
