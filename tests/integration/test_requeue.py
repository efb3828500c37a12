"""A training that signals stop within its epochs, and that is resumed each time, ends as an uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from stores import TinyStores, fit, fit_words
from test_resume import HELD, PLATEAU, RAMP, SMALL_BATCH, assert_same_training, table

from flarecps import metric_names
from flarecps.checkpoint import load_plain
from flarecps.cli.main import main
from flarecps.training.callbacks.requeue import RUNNING

STEPS = ["--data.iterations_per_epoch", 4]
VALIDATED = ["--data.fold", 0, "--data.validation_patches", 2]
STOPPED_BY_USR1 = 128 + signal.SIGUSR1


class SignalAt(Callback):
    """Sends this process a signal once, in the middle of a step or of a validation.

    ``place``: "step" (before the step's gradients are made), "validation" or "patches" (at the epoch's end).
    """

    def __init__(self, epoch: int, step: int = 0, place: str = "step", number: int = int(signal.SIGUSR1)) -> None:
        self.epoch, self.step, self.place, self.number = epoch, step, place, number

    def _send(self, trainer: Trainer, place: str, step: int) -> None:
        if (trainer.current_epoch, place, step) == (self.epoch, self.place, self.step):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._send(trainer, "step", batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._send(trainer, "validation", batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send(trainer, "patches", 0)


def interrupted(words: list[str], *stops: str) -> None:
    """Run ``words`` as a job script would, again and again; each session but the last is sent one of ``stops``."""
    for stop in stops:
        callback = f"[{{class_path: test_requeue.SignalAt, init_args: {stop}}}]"
        assert main([*words, "--ckpt_path", "auto", "--trainer.callbacks", callback]) == STOPPED_BY_USR1
    assert main([*words, "--ckpt_path", "auto"]) == 0


CASES = {
    "cps": ("phantom_3d.yaml", [*RAMP, *SMALL_BATCH]),
    "control": ("phantom_3d_supervised.yaml", [*RAMP, *SMALL_BATCH]),
    "plateau, λ held": ("phantom_2d.yaml", [*RAMP, *PLATEAU, *HELD, *SMALL_BATCH, "--data.workers", 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_three_stops_within_epochs_change_nothing(case: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    config, more = CASES[case]
    through = fit(config, tiny_stores, tmp_path / "through", *STEPS, *more, epochs=3)
    run = tmp_path / "stopped"
    words = fit_words(config, tiny_stores, run, *STEPS, *more, epochs=3)
    interrupted(words, "{epoch: 0, step: 1}", "{epoch: 1, step: 0}", "{epoch: 1, step: 2}")
    ours = assert_same_training(run, through)
    assert ours["global_step"] == 3 * 4 * len(ours["optimizer_states"])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
