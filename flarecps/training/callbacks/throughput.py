"""How fast the training is, and how long it waits for its data."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import metric_names

GB = 1e9


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

    @property
    def wait_share(self) -> float:
        """Share of the steps' time, 0 to 1."""
        total_s = self.wait_s + self.busy_s
        return self.wait_s / total_s if total_s else 0.0

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
            metric_names.DATA_WAIT: self.wait_share,
        }
        if pl_module.device.type == "cuda":
            own = torch.tensor(torch.cuda.max_memory_allocated(pl_module.device) / GB, device=pl_module.device)
            speed[metric_names.GPU_MEMORY] = float(trainer.strategy.reduce(own, reduce_op="max"))
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        pl_module.log_dict(speed)
