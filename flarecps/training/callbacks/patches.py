"""Validation patches at every epoch's end."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps.training.module import segmentation_module
from flarecps.training.patch_validation import PatchScores, score_patches


class PatchValidation(Callback):
    """Logs each sibling's loss and DSC on the data's validation patches, which every epoch sees alike."""

    def __init__(self) -> None:
        self._scores: PatchScores | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = segmentation_module(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it when there is one
        if not data.validation_names or not data.validation_patches:
            return
        if self._scores is None:
            self._scores = PatchScores(module.plan.labels, module.plan.class_count, len(module.inference_networks))
        scores = self._scores.to(module.device)
        training = module.training
        with trainer.precision_plugin.forward_context():
            score_patches(module.finest_networks(), data.read_validation_patches(), scores)
        module.train(training)
        module.log_dict(scores.compute())  # equal on all ranks
        scores.reset()
