"""Which checkpoints a run keeps: ``last`` at every epoch's end, ``best`` where there are validation cases."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from flarecps import metric_names
from flarecps.training.checkpoint_files import BEST, FOLDER, LAST


def checkpoint_callbacks(run: Path, with_best: bool, validated_every: int = 1) -> list[ModelCheckpoint]:
    """``RUN/checkpoints/last.ckpt`` after every epoch and, ``with_best``, ``best.ckpt`` by mean validation DSC.

    That is known every ``validated_every`` epochs. Both save at the end of the training epoch, after the schedulers'
    step: a file saved earlier would resume with a scheduler one epoch behind.
    """
    last = _checkpoint(run, LAST)
    if not with_best:
        return [last]
    # best goes first: what last holds of it then includes this epoch's score, which a resumed run must know
    return [_checkpoint(run, BEST, monitor=metric_names.DSC_MEAN, every=validated_every), last]


def _checkpoint(run: Path, name: str, monitor: str | None = None, every: int = 1) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=run / FOLDER,
        filename=name,
        monitor=monitor,
        mode="max",
        save_top_k=1,
        every_n_epochs=every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
