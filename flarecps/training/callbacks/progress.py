"""How far the training is, and how fast: a bar per epoch on a terminal, a plain line elsewhere; speed as metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flarecps import metric_names
from flarecps.durations import clock
from flarecps.errors import visible

GB = 1e9
FIRST_LINE_S = 30.0  # without a terminal: a first epoch that takes longer is told of after so many seconds


class Throughput(Callback):
    """Logs patches per second (of all processes), the share of an epoch's steps spent waiting, and peak GPU memory.

    A step's wait runs from the end of the step before until its batch is there. The first batch of an epoch is left
    out: while it is made, its predecessor's validation and checkpoint are, too. A step ends when its loss has been
    checked, which on a GPU waits for the device; so what is computed is not mistaken for waiting.
    """

    def __init__(self) -> None:
        self.wait_s = self.busy_s = 0.0
        self.patches = 0
        self._ended: float | None = None  # of the step before
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint within an epoch keeps: rank 0's times, and the patches of any rank."""
        return {"wait_s": self.wait_s, "busy_s": self.busy_s, "patches": self.patches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; an epoch that begins anew clears it."""
        self.wait_s, self.busy_s = state_dict["wait_s"], state_dict["busy_s"]
        self.patches = state_dict["patches"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait_s = self.busy_s = 0.0
        self.patches = 0
        self._ended = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.monotonic()
        if self._ended is not None:
            self.wait_s += self._began - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.monotonic()
        self.busy_s += self._ended - self._began
        self.patches += sum(len(part["image"]) for part in batch.values())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self.wait_s + self.busy_s
        if not seconds:  # a session that was resumed after the epoch's last step
            return
        speed = {
            metric_names.PATCHES_PER_SECOND: self.patches * trainer.world_size / seconds,
            metric_names.DATA_WAIT: self.wait_s / seconds,
        }
        if pl_module.device.type == "cuda":
            own = torch.tensor(torch.cuda.max_memory_allocated(pl_module.device) / GB, device=pl_module.device)
            speed[metric_names.GPU_MEMORY] = float(trainer.strategy.reduce(own, reduce_op="max"))
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        pl_module.log_dict(speed)


class TrainingProgress(ProgressBar):
    """A bar per epoch with loss, λ, DSC, patches per second, the wait for data and the time to the end of training.

    Loss, λ, DSC and wait are those of the last epoch that has them. Without a terminal to redraw a bar on (in a batch
    job, say) there is one plain line per epoch, and an early one in a long first epoch. The time to the end comes from
    the wall clock of this session's steps, validation included, so a session that begins in the middle of a training,
    or of an epoch, is not misled. A step with λ > 0 costs twice what one without does: the wall clock starts anew when
    λ has left zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self._enabled = True
        self._bar: Progress | None = None
        self._began = 0.0
        self._taken = 0  # steps since then
        self._teaching = False  # whether λ was above zero in the last epoch
        self._epoch: int | None = None  # of the steps that are counted next
        self._epoch_began = self._epoch_s = 0.0
        self._epoch_patches = 0
        self._has_spoken = False

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
            self._bar.add_task("", total=int(trainer.num_training_batches), state="")
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
        if self._bar is not None:
            name, state = self._words(trainer, trainer.current_epoch, batch_idx + 1)
            self._bar.update(self._bar.task_ids[0], description=name, completed=batch_idx + 1, state=state)
        elif not self._has_spoken and time.monotonic() - self._began >= FIRST_LINE_S:
            name, state = self._words(trainer, trainer.current_epoch, batch_idx + 1)
            self._say(f"{name}, step {batch_idx + 1}/{int(trainer.num_training_batches)} · {state}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_epoch(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _say_epoch(self, trainer: Trainer) -> None:
        """Print the line of the epoch whose steps were counted; its figures are known once the next one begins."""
        if self._epoch is None or not self._enabled:
            return
        self._say(" · ".join(self._words(trainer, self._epoch, int(trainer.num_training_batches))))

    def _say(self, line: str) -> None:
        self._has_spoken = True
        if self._enabled:
            self.console.print(visible(line), highlight=False, markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _words(self, trainer: Trainer, epoch: int, steps: int) -> tuple[str, str]:
        """Which epoch this is, and the state after ``steps`` of ``epoch`` (counted from 0)."""
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
        done = epoch * of_epoch + steps
        every = len(trainer.optimizers) or 1  # Lightning counts a step of each as one of max_steps
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        ends = [epochs * of_epoch] if epochs >= 0 else []
        ends += [trainer.max_steps // every] if trainer.max_steps >= 0 else []
        if ends and self._taken:
            seconds = (time.monotonic() - self._began) / self._taken
            words.append(f"{clock(seconds * max(min(ends) - done, 0))} left")
        of = f"/{-(-min(ends) // of_epoch)}" if ends else ""
        return f"epoch {epoch + 1}{of}", " · ".join(words)
