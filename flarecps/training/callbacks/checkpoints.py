"""Which checkpoints a run keeps: ``last`` at every epoch's end, ``best`` where there are validation cases."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from flarecps import metric_names

FOLDER = "checkpoints"
LAST = "last"
BEST = "best"


def checkpoint_callbacks(run: Path, with_best: bool) -> list[ModelCheckpoint]:
    """``RUN/checkpoints/last.ckpt`` after every epoch and, ``with_best``, ``best.ckpt`` by mean validation DSC.

    Both save at the end of the training epoch, after the schedulers' step: a file saved earlier would resume
    with a scheduler one epoch behind.
    """
    common = {"dirpath": run / FOLDER, "save_top_k": 1, "enable_version_counter": False}
    callbacks = [ModelCheckpoint(**common, filename=LAST, save_on_train_epoch_end=True)]
    if with_best:
        callbacks.append(
            ModelCheckpoint(
                **common, filename=BEST, monitor=metric_names.DSC_MEAN, mode="max", save_on_train_epoch_end=True
            )
        )
    return callbacks
