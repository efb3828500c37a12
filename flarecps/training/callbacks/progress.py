"""How far the training is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flarecps import metric_names

PLAIN_LINE_EVERY_S = 20.0  # where there is no terminal to redraw a bar on


class TrainingProgress(ProgressBar):
    """One bar over all steps with λ, loss, DSC, patches per second, the wait for data and the time to the end.

    The time left comes from the wall clock of this session's epochs, validation included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._spoke = 0.0
        self._first_step = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._spoke = time.monotonic()
        self._first_step = self._step(trainer)
        if not self._enabled:
            return
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[state]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("fit", total=self._steps(trainer), state="", completed=self._first_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self._step(trainer) + batch_idx + 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, state=self._state(trainer, batch, step))
        elif self._enabled and time.monotonic() - self._spoke > PLAIN_LINE_EVERY_S:
            self._spoke = time.monotonic()
            self.console.print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, step {step}/{self._steps(trainer)}, "
                f"{self._state(trainer, batch, step)}",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _state(self, trainer: Trainer, batch: Any, step: int) -> str:
        seconds = time.monotonic() - self._began
        taken = max(step - self._first_step, 1)
        left = seconds / taken * (self._steps(trainer) - step)
        patches = sum(len(part["image"]) for part in batch.values()) * trainer.world_size
        metrics = trainer.callback_metrics
        words = [f"{taken * patches / max(seconds, 1e-9):.1f} patches/s", f"{clock(left)} left"]
        if metric_names.LOSS_TOTAL in metrics:
            words.insert(0, f"loss {metrics[metric_names.LOSS_TOTAL]:.3f}")
        if metrics.get(metric_names.LAMBDA, 0) > 0:
            words.insert(1, f"λ {metrics[metric_names.LAMBDA]:.3f}")
        if metric_names.DSC_MEAN in metrics:
            words.insert(-2, f"DSC {metrics[metric_names.DSC_MEAN]:.3f}")
        if metric_names.DATA_WAIT in metrics:
            words.insert(-1, f"data wait {metrics[metric_names.DATA_WAIT]:.0%}")
        return " · ".join(words)

    @staticmethod
    def _step(trainer: Trainer) -> int:
        """Steps before the present epoch; Lightning's ``global_step`` counts both optimisers."""
        return trainer.current_epoch * int(trainer.num_training_batches)

    @staticmethod
    def _steps(trainer: Trainer) -> int:
        return int((trainer.max_epochs or 0) * trainer.num_training_batches)


def clock(seconds: float) -> str:
    """Hours (where there are any), minutes and seconds.

    >>> clock(75.0), clock(3675.0)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
