"""The same loss at several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor

Loss: TypeAlias = Callable[..., Tensor]


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


def downsampled_labels(labels: Integer[Tensor, " batch *spatial"], shape: Sequence[int]) -> Tensor:
    """Labels ``(batch, *shape)``: each coarse voxel takes the label nearest to its centre."""
    if tuple(labels.shape[1:]) == tuple(shape):
        return labels
    # float32 holds every label exactly, and interpolate knows no integers
    resized = F.interpolate(labels[:, None].float(), size=tuple(shape), mode="nearest-exact")
    return resized[:, 0].to(labels.dtype)


class DeepSupervision:
    """A weighted sum of one loss over the scales of a network's outputs."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        annotated: Tensor | None = None,
        counted: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Σ weight × loss(output, target); ``outputs``, ``targets`` and ``counted`` finest first, one per output.

        ``counted``, if given, says which voxels take part. A scale of weight 0 takes part by a sum over nothing, so
        that its head has a gradient (of zero): DDP then needs no search for unused parameters.
        """
        if annotated is not None:
            annotated = annotated.cpu()  # read at every scale, which on a GPU would wait for the device each time
        masks = [()] * len(outputs) if counted is None else [(mask,) for mask in counted]
        total = torch.zeros((), device=outputs[0].device)
        for weight, output, target, mask in zip(scale_weights(len(outputs)), outputs, targets, masks, strict=True):
            total = total + (weight * self.loss(output, target, annotated, *mask) if weight else output[:0].sum())
        return total
