"""Patches of the validation cases after every epoch: each sibling's loss and DSC, for the price of a few steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from flarecps import metric_names
from flarecps.anatomy import organs_of
from flarecps.dice import dice_coefficient
from flarecps.losses import class_sums
from flarecps.losses.class_sums import joined_classes
from flarecps.losses.dice import SMOOTH
from flarecps.training.module import segmentation_module


class PatchScores(Metric):
    """Loss and DSC of every sibling over all patches since the last reset, as if they were one batch.

    Sums are kept, so the result does not depend on how many ranks share the patches, or how unequally. Where a class is
    not annotated it is background's in the loss, and its voxels count for no DSC.
    """

    full_state_update = False
    entropy: Tensor  # (siblings,) Σ −log p
    voxels: Tensor
    soft: Tensor  # (siblings, 2, classes): overlap, and predicted + present, of probabilities
    hard: Tensor  # the same of labels
    annotated: Tensor  # (classes,) patches in which a class is

    def __init__(self, labels: dict[str, int], classes: int, siblings: int) -> None:
        super().__init__()
        self.organs = organs_of(labels)
        self.classes = classes
        shapes = {"entropy": (siblings,), "voxels": (), "annotated": (classes,)}
        shapes |= dict.fromkeys(("soft", "hard"), (siblings, 2, classes))
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, logits: Iterable[Tensor], labels: Tensor, annotated: Tensor) -> None:
        """Count a patch (or several): each sibling's logits (B, C, *patch), labels (B, *patch), annotated (B, C)."""
        joined = None if bool(annotated.all()) else joined_classes(annotated)
        counted = annotated.double()
        for row, one in enumerate(logits):
            sums = class_sums(one, labels, joined)
            self.entropy[row] += sums.entropy.sum()
            self.soft[row] += torch.stack([sums.overlap * counted, (sums.predicted + sums.present) * counted]).sum(1)
            for patch, truth, known in zip(one.argmax(1), labels.long(), counted, strict=True):
                found = torch.bincount(patch.flatten(), minlength=self.classes)
                there = torch.bincount(truth.flatten(), minlength=self.classes)
                both = torch.bincount(truth[patch == truth], minlength=self.classes)
                self.hard[row] += torch.stack([both, found + there]) * known
        self.voxels += labels.numel()
        self.annotated += annotated.sum(0)

    def compute(self) -> dict[str, float]:
        """Loss, DSC by organ and their mean, by logged name; an organ that is nowhere is left out."""
        known = self.annotated > 0
        known[0] = False
        named: dict[str, float] = {}
        for row in range(len(self.entropy)):
            overlap, volume = self.soft[row][:, known]
            dice = dice_coefficient(overlap, volume, SMOOTH).mean() if known.any() else torch.zeros(())
            named[metric_names.patch_loss(row + 1)] = float(self.entropy[row] / self.voxels - dice)
            dsc = {
                organ.name: float(dice_coefficient(*self.hard[row, :, organ.id]))
                for organ in self.organs
                if self.hard[row, 1, organ.id] > 0
            }
            named |= {metric_names.patch_dsc(row + 1, name): value for name, value in dsc.items()}
            if dsc:
                named[metric_names.patch_dsc_mean(row + 1)] = sum(dsc.values()) / len(dsc)
        return named


class PatchValidation(Callback):
    """Logs each sibling's loss and DSC on the data's validation patches, which every epoch sees alike."""

    def __init__(self) -> None:
        self._scores: PatchScores | None = None

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = segmentation_module(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it when there is one
        if not data.validation_names or not data.validation_patches:
            return
        if self._scores is None:
            self._scores = PatchScores(module.plan.labels, module.plan.class_count, len(module.inference_networks))
        scores = self._scores.to(module.device)
        training = module.training
        networks = module.finest_networks()  # in evaluation mode
        with trainer.precision_plugin.forward_context():
            for patch in data.read_validation_patches():
                image, labels, annotated = (patch[name].to(module.device) for name in ("image", "labels", "annotated"))
                scores.update([network(image) for network in networks], labels[:, 0], annotated)
        module.train(training)
        module.log_dict(scores.compute())  # equal on all ranks
        scores.reset()
