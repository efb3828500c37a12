"""Cross pseudo supervision: each sibling learns from the other's hard labels (paper, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flarecps.losses.deep_supervision import DeepSupervision


@torch.no_grad()
def pseudo_labels(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Hard labels ``(batch, *spatial)`` of each scale: the argmax of the output *at that scale*, without gradient."""
    return [output.argmax(1) for output in outputs]


def cross_pseudo_losses(
    outputs_1: Sequence[Tensor],
    outputs_2: Sequence[Tensor],
    labelled: int,
    loss: DeepSupervision,
    one_mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Lcps of sibling 1 (taught by sibling 2) and of sibling 2 (taught by sibling 1).

    ``outputs_*`` hold the labelled patches first (``labelled`` of them), then the unlabelled ones, finest scale first.
    Lcps = Lcps(labelled) + Lcps(unlabelled), two terms as the paper writes it; with ``one_mean`` a single loss over
    all patches, as the authors' code computes it. Either part may be empty and then adds nothing.
    """
    taught = []
    for outputs, teacher in ((outputs_1, outputs_2), (outputs_2, outputs_1)):
        targets = pseudo_labels(teacher)
        patches = outputs[0].shape[0]
        parts = [(0, patches)] if one_mean else [(0, labelled), (labelled, patches)]
        terms = [
            loss([output[first:last] for output in outputs], [target[first:last] for target in targets])
            for first, last in parts
            if last > first
        ]
        taught.append(torch.stack(terms).sum())
    return taught[0], taught[1]
