"""The same loss at several scales."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Integer
from torch import Tensor, nn


@runtime_checkable
class Loss(Protocol):
    """The loss of a batch at one scale: any function or module that can be called so and gives a scalar.

    ``logits`` (B, C, *patch) and integer ``labels`` (B, *patch). ``annotated`` (B, C), true where the class was
    annotated in that sample (None: all), is given with true labels; ``trusted``, a mask that broadcasts to
    ``labels`` of the voxels that take part (None: all), with pseudo-labels that a filter has judged. A loss whose
    attribute ``batch_dice`` is None is given the plan's decision (see ``DeepSupervision.decide_batch_dice``).

    Where training is distributed, the gradient that is used is the mean of the ranks' gradients.
    """

    def __call__(
        self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None, trusted: Tensor | None = None
    ) -> Tensor: ...


def scale_weights(scales: int) -> list[float]:
    """nnU-Net's weights, finest first: 1, ½, ¼, …, the coarsest 0 (if there are two or more), divided by their sum.

    >>> [round(weight * 15) for weight in scale_weights(5)]
    [8, 4, 2, 1, 0]
    >>> scale_weights(1)
    [1.0]
    """
    weights = [0.5**scale for scale in range(scales)]
    if scales > 1:
        weights[-1] = 0.0
    total = sum(weights)
    return [weight / total for weight in weights]


def downsampled_labels(
    labels: Integer[Tensor, " batch *spatial"] | Bool[Tensor, " batch *spatial"], shape: Sequence[int]
) -> Tensor:
    """Labels, or a mask, ``(batch, *shape)``: each coarse voxel takes the value nearest to its centre."""
    if tuple(labels.shape[1:]) == tuple(shape):
        return labels
    # float32 holds every label exactly, and interpolate knows no integers
    resized = F.interpolate(labels[:, None].float(), size=tuple(shape), mode="nearest-exact")
    return resized[:, 0].to(labels.dtype)


class DeepSupervision(nn.Module):
    """A weighted sum of one loss over the scales of a network's outputs."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss: Any = loss

    def decide_batch_dice(self, batch_dice: bool) -> None:
        """Let a loss that left open (None) whether Dice is summed over the batch do so, or not.

        The loss that was handed in stays as it is: a copy takes the decision.
        """
        if getattr(self.loss, "batch_dice", False) is None:
            self.loss = copy.copy(self.loss)
            self.loss.batch_dice = batch_dice

    def forward(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        annotated: Tensor | None = None,
        trusted: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Σ weight × loss(output, target); ``outputs``, ``targets`` and ``trusted`` finest first, one per output.

        ``trusted``, if given, says which voxels take part. A scale of weight 0 takes part by a sum over nothing, so
        that its head has a gradient (of zero): DDP then needs no search for unused parameters.
        """
        masks = [()] * len(outputs) if trusted is None else [(mask,) for mask in trusted]
        total = torch.zeros((), device=outputs[0].device)
        for weight, output, target, mask in zip(scale_weights(len(outputs)), outputs, targets, masks, strict=True):
            total = total + (weight * self.loss(output, target, annotated, *mask) if weight else output[:0].sum())
        return total
