"""Labels alone."""

from __future__ import annotations

import torch
from torch import nn

from flarecps.methods.method import Batch, Losses, Method


class Supervised(Method):
    """One network and the labelled patches: L = Lsup, the control of every other method.

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
    """

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        labelled = batch["labelled"]
        outputs = [sibling(labelled["image"]) for sibling in siblings]
        supervised = self.supervised_losses(outputs, labelled)
        return Losses(
            total=torch.stack(supervised).sum(),
            supervised=supervised,
            unsupervised=[torch.zeros_like(loss) for loss in supervised],
            finest=[scales[0].detach() for scales in outputs],
            labelled=len(labelled["image"]),
        )
