"""Proof that all processes hold the same weights."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps.errors import TrainingError
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import digest, gather_from_ranks


class RanksInSync(Callback):
    """Compares all ranks' weights, bit for bit, at every epoch's end, before a checkpoint is written.

    DDP gives every rank the same gradients, and each steps its own copy of the weights; nothing checks that the copies
    stay equal. Raises ``TrainingError`` on all ranks when they are not.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        module = segmentation_module(pl_module)
        digests = gather_from_ranks(digest([*module.siblings.parameters(), *module.method.parameters()]))
        if len(set(digests)) > 1:
            apart = [str(rank) for rank, one in enumerate(digests) if one != digests[0]]
            raise TrainingError(
                f"epoch {trainer.current_epoch}: the weights of rank {', '.join(apart)} are not those of rank 0, so "
                "the processes train different networks; no checkpoint was written. All processes need the same "
                "program, config and kind of device; resume with --ckpt_path last"
            )
