"""Soft Dice and its sum with cross-entropy, as nnU-Net has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from flarecps.losses.cross_entropy import merge_unannotated
from flarecps.losses.ranks import rank_count, sum_over_ranks

SMOOTH = 1e-5  # in numerator and denominator, nnU-Net's


def soft_dice(
    probabilities: Float[Tensor, "batch klass *spatial"],
    labels: Integer[Tensor, " batch *spatial"],
    batch_dice: bool = True,
) -> Float[Tensor, "rows foreground"]:
    """Soft Dice per foreground class, background (class 0) left out.

    One row over the whole batch with ``batch_dice`` (where training is distributed, that of all ranks together), else
    one row per sample. Dice = (2 Σpy + s) / (Σp + Σy + s) with s = 1e-5, not squared; a class absent from the target
    scores s / (Σp + s). The one-hot target is never built: each class reads its own probabilities under a boolean mask.

    >>> p = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> soft_dice(p, torch.tensor([[0, 1]]))
    tensor([[1.]])
    """
    spatial = tuple(range(1, labels.ndim))
    axes = (0, *spatial) if batch_dice else spatial
    overlaps, volumes = [], []
    for label in range(1, probabilities.shape[1]):
        predicted, present = probabilities[:, label], labels == label
        overlaps.append(torch.where(present, predicted, 0).sum(axes))
        volumes.append(predicted.sum(axes) + present.sum(axes))
    sums = torch.stack([torch.stack(overlaps, dim=-1), torch.stack(volumes, dim=-1)])
    overlap, volume = sum_over_ranks(sums) if batch_dice else sums
    dice = (2 * overlap + SMOOTH) / (volume + SMOOTH)
    return dice[None] if batch_dice else dice


def dice_cross_entropy(
    logits: Float[Tensor, "batch klass *spatial"],
    labels: Integer[Tensor, " batch *spatial"],
    batch_dice: bool = True,
    annotated: Bool[Tensor, "batch klass"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy minus the mean soft Dice of the foreground classes: −1 is perfect.

    ``annotated`` says which classes were annotated in each sample (None: all). Where a class was not, its probability
    counts as background's and its Dice leaves the mean; a batch without any annotated foreground has cross-entropy
    only. Where training is distributed, the average of this loss over the ranks (equally many samples each) is the loss
    of the whole batch, and so is the average of its gradients, which DDP takes.
    """
    if annotated is not None and not annotated.all():
        logits = merge_unannotated(logits, annotated)
    # under autocast the sums over a patch need more than 16 bits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.long()
    entropy = F.cross_entropy(logits, labels)
    dice = soft_dice(logits.softmax(1), labels, batch_dice)
    if annotated is None:
        return entropy - dice.mean()
    if batch_dice:
        counted = sum_over_ranks(annotated.any(0, keepdim=True)[:, 1:].float()) > 0
        total = counted.sum()
    else:
        counted = annotated[:, 1:]
        total = sum_over_ranks(counted.sum()) / rank_count()  # an average over ranks is then the mean over all samples
    if not total:
        return entropy
    return entropy - torch.where(counted, dice, 0).sum() / total


class DiceCrossEntropy(nn.Module):
    """``dice_cross_entropy`` with its setting remembered.

    Args:
        batch_dice: sum Dice over the batch; null takes the plan's decision.
    """

    def __init__(self, batch_dice: bool | None = None) -> None:
        super().__init__()
        self.batch_dice = batch_dice

    def forward(self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None) -> Tensor:
        return dice_cross_entropy(logits, labels, self.batch_dice is not False, annotated)
