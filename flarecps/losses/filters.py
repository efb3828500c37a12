"""Which voxels' pseudo-labels are trusted (the paper's first future aim; its own answer is: all)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flarecps.errors import ConfigError
from flarecps.losses.agreement import patch_agreement
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
