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
    callbacks = [_checkpoint(run, LAST)]
    if with_best:
        callbacks.append(_checkpoint(run, BEST, monitor=metric_names.DSC_MEAN))
    return callbacks


def _checkpoint(run: Path, name: str, monitor: str | None = None) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=run / FOLDER,
        filename=name,
        monitor=monitor,
        mode="max",
        save_top_k=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
