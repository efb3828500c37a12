"""What a training tells of its speed: patches a second, the wait for data, the time left."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from flarecps import metric_names
from flarecps.training.callbacks import progress, throughput
from flarecps.training.callbacks.progress import TrainingProgress
from flarecps.training.callbacks.throughput import Throughput

BATCH = {"labelled": {"image": torch.zeros(2, 1)}, "unlabelled": {"image": torch.zeros(3, 1)}}


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand = Clock()
    for module in (progress, throughput):
        monkeypatch.setattr(module, "time", hand)
    return hand


def test_throughput_counts_waits_between_steps(clock: Clock) -> None:
    """Three steps of 2 s, before them waits of 9 s (an epoch's first: not counted), 1 s and 3 s; two processes."""
    logged: dict[str, float] = {}
    module = Mock(spec=LightningModule, log_dict=logged.update)
    trainer = Mock(spec=Trainer, world_size=2)
    speed = Throughput()
    for _ in range(2):  # an epoch forgets the one before
        speed.on_train_epoch_start(trainer, module)
        for number, wait_s in enumerate((9.0, 1.0, 3.0)):
            clock.now += wait_s
            speed.on_train_batch_start(trainer, module, BATCH, number)
            clock.now += 2.0
            speed.on_train_batch_end(trainer, module, None, BATCH, number)
        speed.on_train_epoch_end(trainer, module)
        assert logged[metric_names.DATA_WAIT] == pytest.approx(4 / 10)
        assert logged[metric_names.PATCHES_PER_SECOND] == pytest.approx(3 * 5 * 2 / 10)


def test_progress_says_lambda_loss_dsc_speed_wait_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed at epoch 2 of 10 with 4 steps each: after 5 steps in 30 s, 27 steps are left, 162 s."""
    trainer = Mock(
        spec=Trainer,
        current_epoch=2,
        max_epochs=10,
        num_training_batches=4,
        world_size=1,
        callback_metrics={
            metric_names.LOSS_TOTAL: torch.tensor(1.25),
            metric_names.LAMBDA: torch.tensor(0.1),
            metric_names.DSC_MEAN: torch.tensor(0.875),
            metric_names.DATA_WAIT: torch.tensor(0.034),
        },
    )
    bar, module = TrainingProgress(), Mock(spec=LightningModule)
    bar.on_train_start(trainer, module)
    clock.now += 30.0
    trainer.current_epoch = 3
    bar.on_train_batch_end(trainer, module, None, BATCH, 0)
    line = " ".join(capsys.readouterr().out.split())
    assert line.startswith("epoch 4/10, step 13/40, loss 1.250 · λ 0.100")
    for word in ("DSC 0.875", "0.8 patches/s", "data wait 3%", "2:42 left"):
        assert word in line
