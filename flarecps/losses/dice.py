"""Soft Dice and its sum with cross-entropy, as nnU-Net has them; cross-entropy alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from flarecps.dice import dice_coefficient
from flarecps.losses.class_sums import ClassSums, class_sums, joined_classes, merge_unannotated
from flarecps.losses.ranks import average_of_ranks, sum_over_ranks

SMOOTH = 1e-5  # in numerator and denominator, nnU-Net's


def soft_dice(
    overlap: Float[Tensor, "batch klass"],
    predicted: Float[Tensor, "batch klass"],
    present: Float[Tensor, "batch klass"],
    batch_dice: bool = True,
    smooth: float = SMOOTH,
) -> Float[Tensor, "rows foreground"]:
    """Soft Dice per foreground class, background (class 0) left out, from the sums over each sample's voxels.

    One row over the whole batch with ``batch_dice`` (where training is distributed, that of all ranks together), else
    one row per sample. Dice = (2 Σpy + s) / (Σp + Σy + s), not squared; a class absent from the target scores
    s / (Σp + s).

    >>> sums = torch.tensor([[8.0, 3.0], [6.0, 1.0]])
    >>> soft_dice(sums, sums + 1, sums + 1)
    tensor([[0.6667]])
    """
    sums = torch.stack([overlap, predicted + present])[:, :, 1:]
    if batch_dice:
        sums = sum_over_ranks(sums.sum(1, keepdim=True))
    return dice_coefficient(sums[0], sums[1], smooth)


def dice_cross_entropy(
    logits: Float[Tensor, "batch klass *spatial"],
    labels: Integer[Tensor, " batch *spatial"],
    batch_dice: bool = True,
    annotated: Bool[Tensor, "batch klass"] | None = None,
    trusted: Bool[Tensor, " batch *broadcastable"] | None = None,
    smooth: float = SMOOTH,
) -> Float[Tensor, ""]:
    """Cross-entropy minus the mean soft Dice of the foreground classes: −1 is perfect.

    ``annotated`` says which classes were annotated in each sample (None: all). Where a class was not, its probability
    counts as background's and its Dice leaves the mean; a batch without any annotated foreground has cross-entropy
    only. ``trusted`` says which voxels take part (None: all; sizes of 1 stand for whole axes); the others are as if the
    patch did not have them, a patch without any leaves the means, and a batch without any has the loss 0. Where
    training is distributed, the average of this loss over the ranks (equally many samples each) is the loss of the
    whole batch, and so is the average of its gradients, which DDP takes.
    """
    sums = _sums(logits, labels, annotated, trusted)
    dice = soft_dice(sums.overlap, sums.predicted, sums.present, batch_dice, smooth)
    return _mean_entropy(sums, labels, trusted) - _mean_dice(dice, sums, batch_dice, annotated, trusted)


def _mean_dice(
    dice: Tensor, sums: ClassSums, batch_dice: bool, annotated: Tensor | None, trusted: Tensor | None
) -> Tensor:
    """The mean over what takes part."""
    if annotated is None and trusted is None:
        return dice.mean()
    takes_part = torch.ones_like(dice)
    if annotated is not None:
        takes_part = takes_part * _anywhere(annotated[:, 1:].to(dice), batch_dice)
    if trusted is not None:
        takes_part = takes_part * _anywhere((sums.present.sum(1) > 0).to(dice.dtype)[:, None], batch_dice)
    number = takes_part.sum().clamp_min(1) if batch_dice else average_of_ranks(takes_part.sum())
    return (takes_part * dice).sum() / number


def cross_entropy(
    logits: Float[Tensor, "batch klass *spatial"],
    labels: Integer[Tensor, " batch *spatial"],
    annotated: Bool[Tensor, "batch klass"] | None = None,
    trusted: Bool[Tensor, " batch *broadcastable"] | None = None,
) -> Float[Tensor, ""]:
    """``dice_cross_entropy``'s first term alone: the mean over the trusted voxels of −log p, 0 where there are none."""
    return _mean_entropy(_sums(logits, labels, annotated, trusted), labels, trusted)


def _sums(logits: Tensor, labels: Tensor, annotated: Tensor | None, trusted: Tensor | None) -> ClassSums:
    return class_sums(logits, labels, _joined(annotated, logits.device), trusted)


def _joined(annotated: Tensor | None, device: torch.device) -> Tensor | None:
    """``joined_classes``, or None where all are annotated; not asked on a GPU, for the answer would wait for it."""
    if annotated is None or (annotated.device.type == "cpu" and bool(annotated.all())):
        return None
    return joined_classes(annotated).to(device)


def _mean_entropy(sums: ClassSums, labels: Tensor, trusted: Tensor | None) -> Tensor:
    return sums.entropy.sum() / (labels.numel() if trusted is None else average_of_ranks(sums.present.sum(1).sum()))


def _anywhere(values: Tensor, batch_dice: bool) -> Tensor:
    """1 where a sample has anything; one row for the samples of all ranks together where Dice has one."""
    return (sum_over_ranks(values.sum(0, keepdim=True)) > 0).to(values.dtype) if batch_dice else values


class DiceCrossEntropy(nn.Module):
    """``dice_cross_entropy`` with its setting remembered.

    Args:
        batch_dice: sum Dice over the batch; null takes the plan's decision.
        smooth: in Dice's numerator and denominator, in voxels; nnU-Net's is next to nothing, and with it a class that
            the labels lack gets no gradient that removes it. For Lcps, about 100 gives it one.
    """

    def __init__(self, batch_dice: bool | None = None, smooth: float = SMOOTH) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(
        self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None, trusted: Tensor | None = None
    ) -> Tensor:
        return dice_cross_entropy(logits, labels, self.batch_dice is not False, annotated, trusted, self.smooth)


class CrossEntropy(nn.Module):
    """``cross_entropy`` as a loss for configs: what CPS's first authors take for Lcps (Chen et al., CVPR 2021)."""

    def forward(
        self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None, trusted: Tensor | None = None
    ) -> Tensor:
        return cross_entropy(logits, labels, annotated, trusted)


class WeightedDiceCrossEntropy(nn.Module):
    """Dice + cross-entropy that weigh classes by ``weights`` (classes,), which a method sets; all alike by default.

    Σ_v w_y(v) (−log p_y(v)) / Σ_v w_y(v) − the mean over foreground classes of w_k Dice_k. Annotations and trust as in
    ``dice_cross_entropy``.

    Args:
        batch_dice: sum Dice over the batch; null takes the plan's decision.
    """

    def __init__(self, batch_dice: bool | None = None) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.weights: Tensor | None = None

    def forward(
        self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None, trusted: Tensor | None = None
    ) -> Tensor:
        weights = torch.ones(logits.shape[1]) if self.weights is None else self.weights
        sums = _sums(logits, labels, annotated, trusted)
        weights = weights.to(sums.entropy)
        log_p = torch.log_softmax(logits, 1, dtype=weights.dtype)
        joined = _joined(annotated, logits.device)
        if joined is not None:
            log_p = merge_unannotated(log_p, joined)
        of_voxels = weights[labels.long()]
        if trusted is not None:
            of_voxels = of_voxels * trusted
        entropy = -log_p.gather(1, labels[:, None].long())[:, 0]
        whole = average_of_ranks(of_voxels.sum(), least=torch.finfo(weights.dtype).tiny)
        batch_dice = self.batch_dice is not False
        dice = soft_dice(sums.overlap, sums.predicted, sums.present, batch_dice) * weights[1:]
        return (of_voxels * entropy).sum() / whole - _mean_dice(dice, sums, batch_dice, annotated, trusted)
