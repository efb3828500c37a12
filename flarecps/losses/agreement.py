"""How far two siblings agree on a patch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from flarecps.dice import dice_coefficient


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
