"""What the tests on a cluster build into a training: its ranks' steps and checkpoints written down, and faults."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

LEAVES_AFTER_S = 2


class Instruments(Callback):
    """Notes in ``folder`` every rank's process id and steps, and who writes which checkpoint.

    Rank 1 is always behind by ``pace_s``: when it says where it is, rank 0 waits in the gradients' all-reduce. And it
    leaves last. With ``fails_at`` "epoch step" it raises there.
    """

    def __init__(self, folder: str, pace_s: float = 0.0, fails_at: str | None = None) -> None:
        self.folder = Path(folder)
        self.pace_s = pace_s
        self.fails_at = fails_at

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        files: Any = trainer.strategy.checkpoint_io
        save = files.save_checkpoint

        def noted(checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
            self._note("written", f"{trainer.global_rank} {Path(path).name} {checkpoint['global_step']}")
            save(checkpoint, path, storage_options)

        files.save_checkpoint = noted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:  # when the interpreter has gone, as libraries' own ends may
            libc = ctypes.CDLL(None)
            getattr(libc, "__cxa_atexit")(libc.sleep, ctypes.c_void_p(LEAVES_AFTER_S), None)
        (self.folder / f"pid_{trainer.global_rank}").write_text(str(os.getpid()))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_rank == 1:
            at = f"{trainer.current_epoch} {trainer.fit_loop.batch_idx}"
            self._note("at", at)
            if at == self.fails_at:
                raise OSError("the cosmic ray of rank 1")
            time.sleep(self.pace_s)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(f"steps_{trainer.global_rank}", f"{trainer.current_epoch} {batch_idx}")

    def _note(self, name: str, line: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(line + "\n")
