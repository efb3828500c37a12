"""How far the training is: a bar per epoch on a terminal, a plain line per epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from flarecps import metric_names
from flarecps.durations import clock


class TrainingProgress(ProgressBar):
    """A bar per epoch with loss, λ, DSC, patches per second, the wait for data and the time to the end of training.

    Loss, λ, DSC and wait are those of the last epoch that has them. Without a terminal to redraw a bar on (in a batch
    job, say) there is one plain line per epoch. The time to the end comes from the wall clock of this session's steps,
    validation included, so a session that begins in the middle of a training, or of an epoch, is not misled. A step
    with λ > 0 costs twice what one without does: the wall clock starts anew when λ has left zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = 0.0
        self._taken = 0  # steps since then
        self._teaching = False  # whether λ was above zero in the last epoch
        self._epoch: int | None = None  # of the steps that are counted next
        self._epoch_began = self._epoch_s = 0.0
        self._epoch_patches = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()
        self._taken, self._epoch = 0, None
        if self._enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=int(trainer.num_training_batches), state="")
            self._bar.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._epoch != trainer.current_epoch:
            self._say_epoch(trainer)
            teaching = float(trainer.callback_metrics.get(metric_names.LAMBDA, 0.0)) > 0
            if teaching != self._teaching:
                self._teaching, self._began, self._taken = teaching, time.monotonic(), 0
            self._epoch, self._epoch_began, self._epoch_s, self._epoch_patches = (
                trainer.current_epoch, time.monotonic(), 0.0, 0,
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._taken += 1
        self._epoch_s = time.monotonic() - self._epoch_began
        self._epoch_patches += sum(len(part["image"]) for part in batch.values()) * trainer.world_size
        if self._bar is not None and self._task is not None:
            left = self._words(trainer, trainer.current_epoch, batch_idx + 1)
            name = _epoch_of(trainer, trainer.current_epoch)
            self._bar.update(self._task, description=name, completed=batch_idx + 1, state=left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_epoch(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _say_epoch(self, trainer: Trainer) -> None:
        """Print the line of the epoch whose steps were counted; its figures are known once the next one begins."""
        if self._epoch is None or not self._enabled:
            return
        words = self._words(trainer, self._epoch, int(trainer.num_training_batches))
        line = f"{_epoch_of(trainer, self._epoch)} · {words}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _words(self, trainer: Trainer, epoch: int, steps: int) -> str:
        """The state after ``steps`` of ``epoch`` (counted from 0)."""
        metrics = trainer.callback_metrics
        words = []
        if metric_names.LOSS_TOTAL in metrics:
            words.append(f"loss {metrics[metric_names.LOSS_TOTAL]:.3f}")
        if metrics.get(metric_names.LAMBDA, 0) > 0:
            words.append(f"λ {metrics[metric_names.LAMBDA]:.3f}")
        if metric_names.DSC_MEAN in metrics:
            words.append(f"DSC {metrics[metric_names.DSC_MEAN]:.3f}")
        if self._epoch_s > 0:
            words.append(f"{self._epoch_patches / self._epoch_s:.1f} patches/s")
        if metric_names.DATA_WAIT in metrics:
            words.append(f"data wait {metrics[metric_names.DATA_WAIT]:.0%}")
        of_epoch = int(trainer.num_training_batches)
        to_do = (trainer.max_epochs or 0) * of_epoch - epoch * of_epoch - steps
        seconds = (time.monotonic() - self._began) / max(self._taken, 1)
        return " · ".join([*words, f"{clock(seconds * to_do)} left"])


def _epoch_of(trainer: Trainer, epoch: int) -> str:
    return f"epoch {epoch + 1}/{trainer.max_epochs}"
