"""Cross pseudo supervision: each sibling learns from the other's hard labels (paper, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flarecps.losses.deep_supervision import DeepSupervision
from flarecps.losses.filters import PseudoLabelFilter


@torch.no_grad()
def pseudo_labels(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Hard labels ``(batch, *spatial)`` of each scale: the argmax of the output *at that scale*, without gradient."""
    small = torch.uint8 if outputs[0].shape[1] <= 256 else torch.int64
    return [output.argmax(1).to(small) for output in outputs]


def cross_pseudo_losses(
    outputs_1: Sequence[Tensor],
    outputs_2: Sequence[Tensor],
    labelled: int,
    loss: DeepSupervision,
    one_mean: bool = False,
    believe: PseudoLabelFilter | None = None,
) -> tuple[Tensor, Tensor]:
    """Lcps of sibling 1 (taught by sibling 2) and of sibling 2 (taught by sibling 1).

    ``outputs_*`` hold the labelled patches first (``labelled`` of them), then the unlabelled ones, finest scale first.
    Lcps = Lcps(labelled) + Lcps(unlabelled), two terms as the paper writes it; with ``one_mean`` a single loss over
    all patches, as the authors' code computes it. Either part may be empty and then adds nothing. ``believe`` leaves
    some of the pseudo-labels out (None: all are believed, as in the paper).
    """
    labels_1, labels_2 = pseudo_labels(outputs_1), pseudo_labels(outputs_2)
    patches = len(labels_1[0])
    sizes = [patches] if one_mean else [size for size in (labelled, patches - labelled) if size]
    taught = []
    for outputs, mine, teacher, targets in (
        (outputs_1, labels_1, outputs_2, labels_2),
        (outputs_2, labels_2, outputs_1, labels_1),
    ):
        masks = [] if believe is None else believe.believed(teacher, targets, mine)
        counted = _parts(masks, sizes) if masks else [None] * len(sizes)
        terms = [
            loss(part, target, counted=mask)
            for part, target, mask in zip(_parts(outputs, sizes), _parts(targets, sizes), counted, strict=True)
        ]
        taught.append(torch.stack(terms).sum())
    return taught[0], taught[1]


def _parts(scales: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """The scales of each part of a batch, split along its first axis."""
    return [list(part) for part in zip(*(scale.split(list(sizes)) for scale in scales), strict=True)]
