"""Pseudo-labels that are not trusted leave Lcps, by voxel or by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flarecps.errors import ConfigError
from flarecps.losses import (
    DeepSupervision,
    DiceCrossEntropy,
    PatchAgreement,
    PseudoLabelFilter,
    VoxelConfidence,
    label_dice,
    patch_agreement,
)
from flarecps.methods.cross_pseudo import cross_pseudo_losses

SIZES = [(6, 4, 5), (3, 2, 5), (3, 2, 5)]  # three scales: the coarsest has no weight
WEIGHTS = [2 / 3, 1 / 3]
LABELLED = 2
LOSS = DeepSupervision(DiceCrossEntropy(True))


def outputs(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.randn(4, 3, *size, generator=generator, dtype=torch.float64) * 2 for size in SIZES]
    scales[0][0, 1] += 9  # both siblings see little but class 1 in patch 0, and agree
    return scales


def reference_loss(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> float:
    """Cross-entropy − batch Dice over the voxels of ``mask``; 0 where there are none."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p, y = np.moveaxis(p, 1, -1)[mask], labels[mask]
    if not len(y):
        return 0.0
    dice = [
        (2 * p[y == c, c].sum() + 1e-5) / (p[:, c].sum() + (y == c).sum() + 1e-5) for c in range(1, logits.shape[1])
    ]
    return float(-np.log(p[np.arange(len(y)), y]).mean() - np.mean(dice))


def voxel_masks(teacher: list[torch.Tensor], student: list[torch.Tensor], threshold: float) -> list[np.ndarray]:
    return [(scale.softmax(1).max(1).values >= threshold).numpy() for scale in teacher]


def patch_masks(teacher: list[torch.Tensor], student: list[torch.Tensor], threshold: float) -> list[np.ndarray]:
    a, b = teacher[0].argmax(1).numpy(), student[0].argmax(1).numpy()
    kept = []
    for one, other in zip(a, b, strict=True):
        seen = [c for c in (1, 2) if (one == c).any() or (other == c).any()]
        dice = [2 * ((one == c) & (other == c)).sum() / ((one == c).sum() + (other == c).sum()) for c in seen]
        kept.append(np.mean(dice) >= threshold if dice else True)
    return [np.broadcast_to(np.array(kept)[:, None, None, None], (4, *size)) for size in SIZES]


@pytest.mark.parametrize("one_mean", [False, True])
@pytest.mark.parametrize(
    ("trust", "masks"),
    [
        (VoxelConfidence(0.8), voxel_masks),
        (VoxelConfidence(1.0), voxel_masks),
        (PatchAgreement(0.42), patch_masks),
        (PatchAgreement(0.8), patch_masks),
    ],
)
def test_filtered_cross_pseudo_loss_is_the_reference(trust: PseudoLabelFilter, masks, one_mean: bool) -> None:
    first, second = outputs(1), outputs(2)
    ours = cross_pseudo_losses(first, second, LABELLED, (LOSS, LOSS), one_mean, trust)
    for loss, student, teacher in zip(ours, (first, second), (second, first), strict=True):
        kept = masks(teacher, student, trust.threshold)
        expected = 0.0
        for part in [slice(0, 4)] if one_mean else [slice(0, LABELLED), slice(LABELLED, 4)]:
            for weight, logits, other, mask in zip(WEIGHTS, student, teacher, kept, strict=False):
                labels = other.argmax(1).numpy()
                expected += weight * reference_loss(logits[part].numpy(), labels[part], mask[part])
        assert loss.item() == pytest.approx(expected, abs=1e-6)  # summed up in single precision


def test_the_reference_patches_are_filtered_unevenly() -> None:
    """What makes the test above one: some patches and voxels stay in each part, and some leave."""
    first, second = outputs(1), outputs(2)
    patches = patch_masks(second, first, 0.42)[0][:, 0, 0, 0]
    assert patches.any()
    assert not patches.all()
    voxels = voxel_masks(second, first, 0.8)[0]
    assert 0.2 < voxels.mean() < 0.9


def test_a_threshold_of_nothing_trusts_everything() -> None:
    first, second = outputs(1), outputs(2)
    loss = DeepSupervision(DiceCrossEntropy(False))
    plain = torch.stack(cross_pseudo_losses(first, second, LABELLED, (loss, loss)))
    for trust in (VoxelConfidence(0.0), PatchAgreement(0.0)):
        filtered = torch.stack(cross_pseudo_losses(first, second, LABELLED, (loss, loss), trust=trust))
        torch.testing.assert_close(filtered, plain)


@pytest.mark.parametrize("trust", [VoxelConfidence(0.8), PatchAgreement(0.42)])
def test_no_gradient_through_the_filter_nor_where_it_filters(trust: PseudoLabelFilter) -> None:
    first, second = ([scale.requires_grad_() for scale in outputs(seed)] for seed in (1, 2))
    cross_pseudo_losses(first, second, LABELLED, (LOSS, LOSS), trust=trust)[0].backward()
    labels = [[scale.argmax(1) for scale in scales] for scales in (first, second)]
    mask = trust.trusted(second, labels[1], labels[0])[0].expand(4, *SIZES[0])
    moved = first[0].grad.abs().amax(1) > 0
    assert torch.equal(moved, mask)
    assert all(scale.grad is None for scale in second)


def test_agreement_by_hand() -> None:
    one = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 3, 3]], dtype=torch.uint8)
    other = torch.tensor([[1, 0, 0, 2], [0, 0, 0, 0], [2, 2, 2, 2], [0, 3, 3, 0]], dtype=torch.uint8)
    dice, there = label_dice(one, other, classes=4)
    torch.testing.assert_close(dice, torch.tensor([[2 / 3, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.5]]))
    assert there.tolist() == [[True, True, False], [False] * 3, [True, True, False], [False, False, True]]
    torch.testing.assert_close(patch_agreement(one, other, 4), torch.tensor([(2 / 3 + 1) / 2, 1.0, 0.0, 0.5]))


@pytest.mark.parametrize("kind", [VoxelConfidence, PatchAgreement])
def test_a_threshold_that_is_no_share_is_refused(kind: type) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        kind(threshold=90.0)
