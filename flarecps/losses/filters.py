"""Which voxels' pseudo-labels are trusted (the paper's first future aim; its own answer is: all)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from flarecps.dice import dice_coefficient
from flarecps.errors import ConfigError
from flarecps.losses.class_sums import ELEMENTS_AT_A_TIME


class PseudoLabelFilter(ABC):
    """Decides which voxels' pseudo-labels take part in Lcps."""

    @abstractmethod
    def trusted(
        self, teacher: Sequence[Tensor], teacher_labels: Sequence[Tensor], student_labels: Sequence[Tensor]
    ) -> list[Bool[Tensor, " batch *broadcastable"]]:
        """One mask per scale, finest first; a size of 1 stands for a whole axis.

        ``teacher`` holds the teaching sibling's logits, the labels are both siblings' pseudo-labels at each scale.
        Without gradient, and from each patch alone, so that the ranks of a training need not ask each other.
        """


class VoxelConfidence(PseudoLabelFilter):
    """Trusts a voxel where the teacher's largest probability, at that scale, is at least ``threshold``.

    Args:
        threshold: from 0 (all voxels) to 1.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = _checked(threshold, "VoxelConfidence")

    def trusted(
        self, teacher: Sequence[Tensor], teacher_labels: Sequence[Tensor], student_labels: Sequence[Tensor]
    ) -> list[Bool[Tensor, " batch *broadcastable"]]:
        return [confidence(logits) >= self.threshold for logits in teacher]


class PatchAgreement(PseudoLabelFilter):
    """Trusts a patch, at every scale, where the siblings' finest labels have a mean Dice of at least ``threshold``.

    The mean is over the foreground classes that either sibling sees in the patch; two that see none agree.

    Args:
        threshold: from 0 (all patches) to 1.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = _checked(threshold, "PatchAgreement")

    def trusted(
        self, teacher: Sequence[Tensor], teacher_labels: Sequence[Tensor], student_labels: Sequence[Tensor]
    ) -> list[Bool[Tensor, " batch *broadcastable"]]:
        agreement = patch_agreement(teacher_labels[0], student_labels[0], classes=teacher[0].shape[1])
        trusted = agreement >= self.threshold
        return [trusted.view(-1, *(1,) * (labels.ndim - 1)) for labels in teacher_labels]


@torch.no_grad()
def confidence(logits: Float[Tensor, "batch klass *spatial"]) -> Float[Tensor, " batch *spatial"]:
    """The largest probability of every voxel, in single precision or better."""
    samples = max(ELEMENTS_AT_A_TIME // logits[0].numel(), 1)
    working = torch.promote_types(logits.dtype, torch.float32)
    parts = [torch.log_softmax(part, 1, dtype=working).amax(1).exp_() for part in logits.split(samples)]
    return torch.cat(parts)


def _checked(threshold: float, name: str) -> float:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"{name}: threshold {threshold}, expected a number from 0 to 1, e.g. 0.9")
    return float(threshold)


@torch.no_grad()
def label_dice(
    labels_1: Integer[Tensor, " batch *spatial"], labels_2: Integer[Tensor, " batch *spatial"], classes: int
) -> tuple[Float[Tensor, "batch foreground"], Bool[Tensor, "batch foreground"]]:
    """Dice of every patch and foreground class between two label maps, and whether either map has the class.

    Dice = 2 |A ∩ B| / (|A| + |B|); 0 where neither has the class.

    >>> label_dice(torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 2]]), classes=4)
    (tensor([[0.6667, 1.0000, 0.0000]]), tensor([[ True,  True, False]]))
    """
    spatial = tuple(range(1, labels_1.ndim))
    common, voxels = [], []
    for label in range(1, classes):
        first, second = labels_1 == label, labels_2 == label
        common.append((first & second).sum(spatial))
        voxels.append(first.sum(spatial) + second.sum(spatial))
    total = torch.stack(voxels, dim=1)
    return dice_coefficient(torch.stack(common, dim=1), total.clamp_min(1)), total > 0


@torch.no_grad()
def patch_agreement(
    labels_1: Integer[Tensor, " batch *spatial"], labels_2: Integer[Tensor, " batch *spatial"], classes: int
) -> Float[Tensor, " batch"]:
    """Mean Dice of each patch over the foreground classes that either map has; 1 where neither has any.

    >>> patch_agreement(torch.tensor([[1, 1, 0, 2], [0, 0, 0, 0]]), torch.tensor([[1, 0, 0, 2], [0, 0, 0, 0]]), 4)
    tensor([0.8333, 1.0000])
    """
    dice, there = label_dice(labels_1, labels_2, classes)
    count = there.sum(1)
    return torch.where(count > 0, dice.sum(1) / count.clamp_min(1), 1.0)
