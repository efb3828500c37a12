"""What a training tells of its speed: patches a second, the wait for data, the time left."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pretended_card import PretendedCard
from rich.console import Console

from flarecps import metric_names
from flarecps.training.callbacks import progress
from flarecps.training.callbacks.dry_run import memory_gb
from flarecps.training.callbacks.progress import Throughput, TrainingProgress

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "training_step"
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
    monkeypatch.setattr(progress, "time", hand)
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


def a_trainer(epoch: int) -> Mock:
    """A training of 10 epochs with 4 steps each, in ``epoch`` (counted from 0)."""
    return Mock(
        spec=Trainer,
        current_epoch=epoch,
        max_epochs=10,
        max_steps=-1,
        optimizers=[Mock(), Mock()],
        num_training_batches=4,
        world_size=1,
        callback_metrics={
            metric_names.LOSS_TOTAL: torch.tensor(1.25),
            metric_names.LAMBDA: torch.tensor(0.1),
            metric_names.DSC_MEAN: torch.tensor(0.875),
            metric_names.DATA_WAIT: torch.tensor(0.034),
        },
    )


def take_steps(bar: TrainingProgress, trainer: Mock, clock: Clock, batches: range, step_s: float) -> None:
    for number in batches:
        bar.on_train_batch_start(trainer, Mock(spec=LightningModule), BATCH, number)
        clock.now += step_s
        bar.on_train_batch_end(trainer, Mock(spec=LightningModule), None, BATCH, number)


def test_without_a_terminal_there_is_a_line_per_epoch(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed in the middle of the third epoch: 2 of its steps, then a whole epoch, 5 s each, and 6 s of validation."""
    trainer, module, bar = a_trainer(epoch=2), Mock(spec=LightningModule), TrainingProgress()
    bar.on_train_start(trainer, module)
    take_steps(bar, trainer, clock, range(2, 4), step_s=5.0)
    assert capsys.readouterr().out == "", "an epoch's figures are known when the next begins"
    clock.now += 6.0
    trainer.current_epoch = 3
    take_steps(bar, trainer, clock, range(4), step_s=5.0)
    trainer.current_epoch = 10
    bar.on_train_end(trainer, module)
    first, second = capsys.readouterr().out.splitlines()
    # 16 s for 2 steps, 28 are left; 36 s for 6 steps, 24 are left; 5 patches in 5 s
    shared = "loss 1.250 · λ 0.100 · DSC 0.875 · 1.0 patches/s · data wait 3%"
    assert first == f"epoch 3/10 · {shared} · 3:44 left"
    assert second == f"epoch 4/10 · {shared} · 2:24 left"


def test_a_long_first_epoch_is_told_of_early(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, module, bar = a_trainer(epoch=0), Mock(spec=LightningModule), TrainingProgress()
    trainer.callback_metrics = {}
    bar.on_train_start(trainer, module)
    take_steps(bar, trainer, clock, range(3), step_s=20.0)
    assert capsys.readouterr().out == "epoch 1/10, step 2/4 · 0.2 patches/s · 12:40 left\n"  # 38 steps of 20 s


@pytest.mark.parametrize(("max_epochs", "max_steps", "shown"), [(-1, -1, "epoch 1 · "), (-1, 16, "epoch 1/2 · ")])
def test_an_end_by_steps_or_none_is_said_right(
    max_epochs: int, max_steps: int, shown: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning counts two optimisers' steps: 16 are two epochs of 4, and none is left of a minus."""
    trainer, module, bar = a_trainer(epoch=0), Mock(spec=LightningModule), TrainingProgress()
    trainer.max_epochs, trainer.max_steps = max_epochs, max_steps
    bar.on_train_start(trainer, module)
    take_steps(bar, trainer, clock, range(4), step_s=5.0)
    bar.on_train_end(trainer, module)
    line = capsys.readouterr().out
    assert line.startswith(shown)
    assert line.endswith("0:20 left\n") == (max_steps > 0)
    assert "-" not in line


def test_time_left_forgets_the_cheap_steps_before_lambda_rose(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of 5 s a step, the second with the first λ > 0; then one of 10 s a step."""
    trainer, module, bar = a_trainer(epoch=0), Mock(spec=LightningModule), TrainingProgress()
    trainer.callback_metrics[metric_names.LAMBDA] = torch.tensor(0.0)
    bar.on_train_start(trainer, module)
    for epoch, step_s in enumerate((5.0, 5.0, 10.0)):
        trainer.current_epoch = epoch
        take_steps(bar, trainer, clock, range(4), step_s)
        trainer.callback_metrics[metric_names.LAMBDA] = torch.tensor(0.1 * epoch)
    trainer.current_epoch = 10
    bar.on_train_end(trainer, module)
    left = [line.rsplit(" · ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert left == ["3:00 left", "2:40 left", "4:40 left"]  # 36 and 32 steps of 5 s, 28 of 10 s


def test_on_a_terminal_there_is_a_bar_per_epoch(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    trainer, module, bar = a_trainer(epoch=2), Mock(spec=LightningModule), TrainingProgress()
    bar.console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    bar.on_train_start(trainer, module)
    take_steps(bar, trainer, clock, range(2, 4), step_s=5.0)
    trainer.current_epoch = 3
    take_steps(bar, trainer, clock, range(1), step_s=5.0)
    assert bar._bar is not None
    bar._bar.refresh()
    shown = screen.getvalue()
    assert "epoch 3/10 · loss 1.250" in shown, "the finished epoch stays above the bar"
    last = shown.split("\r")[-1]
    for word in ("epoch 4/10", "1/4", "loss 1.250", "λ 0.100", "DSC 0.875", "1.0 patches/s", "2:15 left"):
        assert word in last
    bar.on_exception(trainer, module, RuntimeError())
    assert bar._bar is None


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, module, bar = a_trainer(epoch=0), Mock(spec=LightningModule), TrainingProgress()
    bar.disable()
    bar.on_train_start(trainer, module)
    take_steps(bar, trainer, clock, range(4), step_s=1.0)
    bar.on_train_end(trainer, module)
    assert capsys.readouterr().out == ""


def test_a_dry_run_asks_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    card = PretendedCard(2**34, current=1)
    card.install(monkeypatch)
    assert "peak GPU memory, tensors" in memory_gb(torch.device("cuda", 0))
    assert set(card.asked) == {0}
    card.asked.clear()
    assert not any("GPU" in name for name in memory_gb(torch.device("cpu"))), "a GPU that is there but does not train"
    assert not card.asked


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize(("device", "index"), [("cuda:0", 0), ("cuda", 1)])
def test_the_benchmark_waits_for_the_gpu_it_measures(
    monkeypatch: pytest.MonkeyPatch, side: str, device: str, index: int
) -> None:
    card = PretendedCard(2**34, current=1)
    card.install(monkeypatch)
    spec = importlib.util.spec_from_file_location(side, BENCHMARK / f"{side}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.now(torch.device(device))
    assert card.asked == [index]
