"""The sums of Dice and cross-entropy, and their hand-written gradient, against autograd in double precision."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from flarecps.losses import class_sums, dice_cross_entropy
from flarecps.losses.class_sums import joined_classes

CLASSES = 4
KNOWN = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
SETTINGS = [
    (batch, known, mask) for batch in (True, False) for known in (False, True) for mask in (None, "voxel", "patch")
]


def problem(known: bool, mask: str | None) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
    """Logits, labels, which classes were annotated, and which voxels count, of three samples."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, CLASSES, 4, 5, 3, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, CLASSES, (3, 4, 5, 3), generator=generator).to(torch.uint8)
    labels[0][labels[0] == 2] = 0  # a class absent from one sample
    if known:
        for sample, classes in enumerate(KNOWN):
            labels[sample][~classes[labels[sample].long()]] = 0
    counted = None
    if mask == "voxel":
        counted = torch.rand(3, 4, 5, 3, generator=generator) < 0.4
        counted[1] = False  # nothing of this sample counts
    elif mask == "patch":
        counted = torch.tensor([True, False, True]).view(3, 1, 1, 1)
    return logits, labels, KNOWN if known else None, counted


def reference_loss(
    logits: torch.Tensor, labels: torch.Tensor, batch_dice: bool, known: Any, counted: Any
) -> torch.Tensor:
    """The loss sample by sample and class by class from the voxels that count, differentiated by autograd."""
    shape = labels.shape
    mask = torch.ones(shape, dtype=torch.bool) if counted is None else counted.expand(shape)
    logs, p_of, y_of = [], [], []
    for sample in range(len(logits)):
        p = logits[sample].softmax(0)[:, mask[sample]]  # class, voxel
        y = labels[sample][mask[sample]].long()
        if known is not None:
            unknown = ~known[sample]
            kept = [p[0] + p[unknown].sum(0)]
            p = torch.stack(kept + [p[c] * (not unknown[c]) for c in range(1, CLASSES)])
        logs.append(torch.stack([p[y[v], v] for v in range(len(y))]).log() if len(y) else p.new_zeros(0))
        p_of.append(p)
        y_of.append(y)
    voxels = sum(len(y) for y in y_of)
    entropy = -torch.cat(logs).sum() / max(voxels, 1)
    dice = []
    groups = [[0, 1, 2]] if batch_dice else [[0], [1], [2]]
    for group in groups:
        if not sum(len(y_of[i]) for i in group):
            continue
        for c in range(1, CLASSES):
            if known is None or any(known[i, c] for i in group):
                overlap = sum(p_of[i][c][y_of[i] == c].sum() for i in group)
                volume = sum(p_of[i][c].sum() + (y_of[i] == c).sum() for i in group)
                dice.append((2 * overlap + 1e-5) / (volume + 1e-5))
    return entropy - torch.stack(dice).mean() if dice else entropy


@pytest.mark.parametrize(("batch_dice", "known", "mask"), SETTINGS)
def test_loss_and_gradient_are_the_references(batch_dice: bool, known: bool, mask: str | None) -> None:
    logits, labels, annotated, counted = problem(known, mask)
    theirs = logits.detach().clone().requires_grad_()
    expected = reference_loss(theirs, labels, batch_dice, annotated, counted)
    expected.backward()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = logits.detach().clone().to(dtype).requires_grad_()
        loss = dice_cross_entropy(ours, labels, batch_dice, annotated, counted)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mask", [None, "voxel", "patch"])
def test_gradient_of_each_sum_is_its_difference_quotient(known: bool, mask: str | None) -> None:
    logits, labels, annotated, counted = problem(known, mask)
    joined = None if annotated is None else joined_classes(annotated)
    few = (..., slice(2), slice(1))  # difference quotients need two losses per value
    counted = None if counted is None else counted[few]

    def sums(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(class_sums(values, labels[few], joined, counted))[:3]

    assert torch.autograd.gradcheck(sums, logits[few].clone().requires_grad_())


@pytest.mark.parametrize("batch_dice", [True, False])
def test_where_nothing_counts_nothing_is_taught(batch_dice: bool) -> None:
    logits, labels, _, _ = problem(False, None)
    logits.requires_grad_()
    loss = dice_cross_entropy(logits, labels, batch_dice, trusted=torch.zeros_like(labels, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_everything_counted_is_the_loss_without_a_mask() -> None:
    logits, labels, _, _ = problem(False, None)
    for batch_dice in (True, False):
        whole = dice_cross_entropy(logits, labels, batch_dice)
        masked = dice_cross_entropy(logits, labels, batch_dice, trusted=torch.ones(3, 1, 1, 1, dtype=torch.bool))
        torch.testing.assert_close(masked, whole)


def test_only_logits_and_labels_are_kept_for_the_backward_pass() -> None:
    """Autograd's own Dice + cross-entropy keeps two softmaxes in single precision, and masks."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    logits = torch.randn(2, 14, 16, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 14, (2, 16, 16, 16), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dice_cross_entropy(logits, labels)
    large = [tensor for tensor in kept.values() if tensor.numel() >= labels.numel()]
    assert {tensor.untyped_storage().data_ptr() for tensor in large} == {
        logits.untyped_storage().data_ptr(),
        labels.untyped_storage().data_ptr(),
    }


def test_a_few_patches_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, annotated, counted = problem(True, "voxel")
    results = []
    for elements in (2**25, 1):
        monkeypatch.setattr(sys.modules[class_sums.__module__], "ELEMENTS_AT_A_TIME", elements)
        values = logits.detach().clone().requires_grad_()
        dice_cross_entropy(values, labels, False, annotated, counted).backward()
        results.append(values.grad)
    assert torch.equal(*results)


def test_channels_last_logits_change_nothing() -> None:
    logits, labels, annotated, _ = problem(True, None)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        values = logits.clone(memory_format=memory_format).requires_grad_()
        loss = dice_cross_entropy(values, labels, True, annotated)
        loss.backward()
        results.append((loss.detach(), values.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_two_million_voxels_are_exact_to_1e_5(dtype: torch.dtype) -> None:
    """Under autocast, too: neither a sum nor a mean is ever taken in 16 bits."""
    generator = torch.Generator().manual_seed(9)
    logits = (torch.randn(1, 3, 128, 128, 128, generator=generator) * 3).to(dtype)
    labels = (torch.rand(1, 128, 128, 128, generator=generator) < 1e-4).long()  # an organ of 200 voxels
    p = logits.double().softmax(1)
    entropy = -p.gather(1, labels[:, None]).log().mean()
    target = torch.stack([labels == 1, labels == 2], 1).double()
    axes = (0, 2, 3, 4)
    dice = (2 * (p[:, 1:] * target).sum(axes) + 1e-5) / (p[:, 1:].sum(axes) + target.sum(axes) + 1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = dice_cross_entropy(logits, labels)
        sums = class_sums(logits, labels)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx((entropy - dice.mean()).item(), rel=1e-5)
    torch.testing.assert_close(sums.predicted[0].double(), p.sum(axes), rtol=1e-5, atol=0)
    assert sums.present.tolist() == [[(labels == c).sum().item() for c in range(3)]]


def test_gradient_under_autocast_is_that_of_single_precision() -> None:
    """Lightning calls backward inside autocast, where a product of matrices would be rounded to 16 bits."""
    logits, labels, _, _ = problem(False, None)
    gradients = []
    for enabled in (False, True):
        values = logits.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            dice_cross_entropy(values, labels).backward()
        gradients.append(values.grad)
    assert torch.equal(*gradients)
