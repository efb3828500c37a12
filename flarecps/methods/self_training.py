"""Self-training: one network learns from labels, and from the labels that trained networks, the teachers, gave.

Sources: D.-H. Lee, "Pseudo-Label: the simple and efficient semi-supervised learning method for deep neural networks",
ICML workshop 2013 (hard labels of the unlabelled, learnt beside the true ones); Z. Huang et al., "Revisiting nnU-Net
for iterative pseudo labeling and efficient sliding window inference", FLARE 2022 (several teachers' labels of whole
scans, chosen by how stable they are, in rounds).
"""

from __future__ import annotations

import torch
from torch import nn

from flarecps.errors import ConfigError
from flarecps.losses import DeepSupervision, downsampled_labels
from flarecps.methods.method import AnyLoss, Batch, Losses, Method


class SelfTraining(Method):
    """One network, true and pseudo-labelled patches: L = Lsup + μ Lpseudo, in the ratio of their batch sizes.

    Lpseudo is a loss like Lsup on the patches that ``data.pseudo_labels`` gives, over the organs that were not left out
    there. How good a scan's pseudo-labels are decides how often it is drawn (``data.quality_weights``). A step costs
    what a supervised one of as many patches does.

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
        mu: the weight of what pseudo-labelled patches teach, in all epochs.
        pseudo_label_loss: Lpseudo's loss at one scale; null takes Lsup's.
    """

    streams = ("labelled", "pseudo_labelled")

    def __init__(self, loss: AnyLoss | None = None, mu: float = 1.0, pseudo_label_loss: AnyLoss | None = None) -> None:
        super().__init__(loss)
        if not mu > 0:
            raise ConfigError(f"mu is {mu}; expected a number above 0 (flarecps.methods.Supervised learns without)")
        self.mu = mu
        self.pseudo_label_loss = None if pseudo_label_loss is None else DeepSupervision(pseudo_label_loss)

    def weight(self, epoch: int) -> float:
        return self.mu

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        (student,) = siblings
        true, pseudo = batch["labelled"], batch["pseudo_labelled"]
        labelled = len(true["image"])
        outputs = student(torch.cat([true["image"], pseudo["image"]]))
        (supervised,) = self.supervised_losses([outputs], true)
        scales = [scale[labelled:] for scale in outputs]
        targets = [downsampled_labels(pseudo["labels"][:, 0], scale.shape[2:]) for scale in scales]
        loss = self.loss if self.pseudo_label_loss is None else self.pseudo_label_loss
        taught = loss(scales, targets, pseudo["annotated"])
        return Losses(supervised + self.mu * taught, [supervised], [taught], [outputs[0].detach()], labelled)
