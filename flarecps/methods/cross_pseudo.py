"""3D Cross-Pseudo Supervision (Huang et al., FLARE 2022, section 2.2): each sibling learns from the other's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flarecps.losses import DeepSupervision, LinearRamp, PseudoLabelFilter, Ramp
from flarecps.methods.method import AnyLoss, AnyRamp, Batch, Losses, Method, outputs_of

Scales: TypeAlias = Sequence[Tensor]  # a network's outputs (B, C, *patch), finest first


class CrossPseudoSupervision(Method):
    """Two siblings that learn from labels and from each other: L = Lsup + λ Lcps (equation 3).

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
        ramp: λ by epoch; by default the paper's.
        one_mean: one CPS loss over labelled and unlabelled patches together, as in the authors' code, instead of two
            terms added, as in the paper.
        cps_on_labelled: false leaves the labelled patches out of Lcps; the paper's has both.
        pseudo_labels: which voxels of them are trusted; null trusts all, as the paper does.
        pseudo_label_loss: Lcps's loss at one scale; null takes Lsup's, as the paper does.
        equal_steps: divide L by 1 + λ × the number of Lcps's terms, so that a step stays as large as a supervised one;
            the paper does not.
        siblings_in_turn: hold one sibling's feature maps at a time: about half of the memory, a sixth more time, the
            same gradients.
    """

    streams = ("labelled", "unlabelled")
    sibling_count = 2

    def __init__(
        self,
        loss: AnyLoss | None = None,
        ramp: AnyRamp | None = None,
        one_mean: bool = False,
        cps_on_labelled: bool = True,
        pseudo_labels: PseudoLabelFilter | None = None,
        pseudo_label_loss: AnyLoss | None = None,
        equal_steps: bool = False,
        siblings_in_turn: bool = False,
    ) -> None:
        super().__init__(loss)
        self.ramp: Ramp = ramp or LinearRamp()
        self.one_mean = one_mean
        self.cps_on_labelled = cps_on_labelled
        self.pseudo_labels = pseudo_labels
        self.pseudo_label_loss = None if pseudo_label_loss is None else DeepSupervision(pseudo_label_loss)
        self.equal_steps = equal_steps
        self.siblings_in_turn = siblings_in_turn

    def weight(self, epoch: int) -> float:
        return self.ramp(epoch)

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        weight = self.weight(epoch)
        labelled = len(batch["labelled"]["image"])
        outputs = self.outputs(siblings, batch, with_unlabelled=weight > 0)
        supervised = self.supervised_losses(outputs, batch["labelled"])
        crossed = self.crossed_losses(outputs, labelled)
        total = torch.stack(supervised).sum() + weight * torch.stack(crossed).sum()
        if self.equal_steps:
            total = total / (1 + weight * (2 if self.cps_on_labelled and not self.one_mean else 1))
        return Losses(total, supervised, crossed, [scales[0].detach() for scales in outputs], labelled)

    def outputs(self, siblings: nn.ModuleList, batch: Batch, with_unlabelled: bool) -> list[list[Tensor]]:
        """T₁(X) and T₂(X), finest scale first: of the labelled patches, then of the unlabelled ones.

        While λ is 0 the unlabelled patches are not computed at all: what is multiplied by 0 teaches nothing, and
        instance norm keeps patches independent of each other.
        """
        images = batch["labelled"]["image"]
        if with_unlabelled:
            images = torch.cat([images, batch["unlabelled"]["image"]])
        return outputs_of(siblings, images, self.siblings_in_turn)

    def crossed_losses(self, outputs: list[list[Tensor]], labelled: int) -> list[Tensor]:
        """Lcps of every sibling (equation 2); 0 without unlabelled patches, which come after ``labelled`` others."""
        if len(outputs[0][0]) == labelled:
            return [torch.zeros((), device=scales[0].device) for scales in outputs]
        if not self.cps_on_labelled:
            outputs, labelled = [[scale[labelled:] for scale in scales] for scales in outputs], 0
        first, second = outputs
        own = self.pseudo_label_loss
        losses = (own, own) if own is not None else (self.loss_of(0), self.loss_of(1))
        return list(cross_pseudo_losses(first, second, labelled, losses, self.one_mean, self.pseudo_labels))


def cross_pseudo_losses(
    outputs_1: Scales,
    outputs_2: Scales,
    labelled: int,
    losses: tuple[DeepSupervision, DeepSupervision],
    one_mean: bool = False,
    trust: PseudoLabelFilter | None = None,
) -> tuple[Tensor, Tensor]:
    """Lcps of sibling 1 (taught by sibling 2) and of sibling 2 (taught by sibling 1): equation 2.

    ``losses`` are sibling 1's and sibling 2's. ``outputs_*`` hold the labelled patches first (``labelled`` of them),
    then the unlabelled ones. Lcps = Lcps(labelled) + Lcps(unlabelled), two terms as the paper writes it; with
    ``one_mean`` a single loss over all patches, as the authors' code computes it. Either part may be empty and then
    adds nothing. ``trust`` leaves some of the voxels out (None: all are trusted, as in the paper).
    """
    labels_1, labels_2 = pseudo_labels(outputs_1), pseudo_labels(outputs_2)
    patches = len(labels_1[0])
    sizes = [patches] if one_mean else [size for size in (labelled, patches - labelled) if size]
    taught = []
    for loss, outputs, mine, teacher, targets in (
        (losses[0], outputs_1, labels_1, outputs_2, labels_2),
        (losses[1], outputs_2, labels_2, outputs_1, labels_1),
    ):
        masks = [] if trust is None else trust.trusted(teacher, targets, mine)
        trusted = _parts(masks, sizes) if masks else [None] * len(sizes)
        terms = [
            loss(part, target, trusted=mask)
            for part, target, mask in zip(_parts(outputs, sizes), _parts(targets, sizes), trusted, strict=True)
        ]
        taught.append(torch.stack(terms).sum())
    return taught[0], taught[1]


@torch.no_grad()
def pseudo_labels(outputs: Scales) -> list[Tensor]:
    """Hard labels (B, *patch) of each scale: the argmax of the output *at that scale*, without gradient."""
    small = torch.uint8 if outputs[0].shape[1] <= 256 else torch.int64
    return [output.argmax(1).to(small) for output in outputs]


def _parts(scales: Scales, sizes: Sequence[int]) -> list[list[Tensor]]:
    """The scales of each part of a batch, split along its first axis."""
    return [list(part) for part in zip(*(scale.split(list(sizes)) for scale in scales), strict=True)]
