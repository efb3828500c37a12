"""The losses against independent float64 computations written from the paper and nnU-Net's definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flarecps.losses import (
    DeepSupervision,
    LinearRamp,
    dice_cross_entropy,
    downsampled_labels,
    scale_weights,
    soft_dice,
)
from flarecps.methods.cross_pseudo import cross_pseudo_losses


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True)


def reference_loss(logits: np.ndarray, labels: np.ndarray, batch_dice: bool) -> float:
    """Cross-entropy − mean soft Dice by one-hot loops, float64."""
    p = softmax(logits.astype(np.float64))
    b, k = p.shape[:2]
    p, y = p.reshape(b, k, -1), labels.reshape(b, -1)
    entropy = -np.mean([np.log(p[i, y[i, v], v]) for i in range(b) for v in range(y.shape[1])])
    one_hot = np.stack([(y == c).astype(np.float64) for c in range(k)], 1)
    groups = [range(b)] if batch_dice else [[i] for i in range(b)]
    dices = []
    for group in groups:
        rows = list(group)
        for c in range(1, k):
            overlap = (p[rows, c] * one_hot[rows, c]).sum()
            dices.append((2 * overlap + 1e-5) / (p[rows, c].sum() + one_hot[rows, c].sum() + 1e-5))
    return float(entropy - np.mean(dices))


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 4, 6, 5, generator=generator) * 2
    labels = torch.randint(0, 4, (3, 4, 6, 5), generator=generator)
    labels[1][labels[1] == 2] = 0  # a class absent from one sample
    return logits, labels


@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_cross_entropy_is_the_reference(problem: tuple[torch.Tensor, torch.Tensor], batch_dice: bool) -> None:
    logits, labels = problem
    ours = dice_cross_entropy(logits, labels, batch_dice).item()
    assert ours == pytest.approx(reference_loss(logits.numpy(), labels.numpy(), batch_dice), abs=1e-5)


def test_perfect_prediction_scores_minus_one() -> None:
    labels = torch.tensor([[[0, 1], [2, 2]]])
    logits = 50.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(-1.0, abs=1e-5)


def test_absent_class_scores_nearly_nothing() -> None:
    dice = soft_dice(
        overlap=torch.tensor([[5.0, 0]]), predicted=torch.full((1, 2), 5.0), present=torch.tensor([[10.0, 0.0]])
    )
    assert dice.item() == pytest.approx(1e-5 / (5 + 1e-5), rel=1e-4)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_unannotated_classes_leave_the_loss(problem: tuple[torch.Tensor, torch.Tensor], batch_dice: bool) -> None:
    """p₀ + Σ p_c stands for background where classes c were not annotated, and their Dice leaves the mean."""
    logits, labels = problem
    annotated = torch.tensor([[True, True, True, True], [True, True, False, True], [True, False, False, True]])
    labels = labels.clone()
    labels[1][labels[1] == 2] = 0
    labels[2][(labels[2] == 1) | (labels[2] == 2)] = 0
    p = softmax(logits.double().numpy())
    for sample, known in enumerate(annotated.numpy()):
        p[sample, 0] += p[sample, ~known].sum(0)
        p[sample, ~known] = 0
    y = labels.numpy()
    entropy = -np.mean(np.log(np.take_along_axis(p, y[:, None], 1)))
    dices = []
    for group in [[0, 1, 2]] if batch_dice else [[0], [1], [2]]:
        for c in range(1, 4):
            rows = [i for i in group if annotated[i, c]]
            if rows:
                overlap = sum(p[i, c][y[i] == c].sum() for i in rows)
                volume = sum(p[i, c].sum() + (y[i] == c).sum() for i in rows)
                dices.append((2 * overlap + 1e-5) / (volume + 1e-5))
    ours = dice_cross_entropy(logits, labels, batch_dice, annotated)
    assert ours.item() == pytest.approx(entropy - np.mean(dices), abs=1e-5)


def test_gradient_with_unannotated_classes_is_finite() -> None:
    logits = torch.randn(2, 3, 8, requires_grad=True)
    annotated = torch.tensor([[True, False, False], [True, False, False]])
    dice_cross_entropy(logits, torch.zeros(2, 8, dtype=torch.long), annotated=annotated).backward()
    assert torch.isfinite(logits.grad).all()


def test_scale_weights_are_nnunets() -> None:
    np.testing.assert_allclose(scale_weights(5), [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    np.testing.assert_allclose(scale_weights(7)[:2], [32 / 63, 16 / 63])
    assert scale_weights(1) == [1.0]


def test_downsampled_labels_take_the_nearest_centre() -> None:
    labels = torch.arange(16).view(1, 4, 4).to(torch.uint8)
    expected = labels[:, 1::2, 1::2]  # centres of a halved grid lie between two voxels; the upper one is taken
    torch.testing.assert_close(downsampled_labels(labels, (2, 2)), expected)
    assert downsampled_labels(labels, (4, 4)) is labels


@pytest.mark.parametrize("one_mean", [False, True])
def test_cross_pseudo_loss_is_equation_2(one_mean: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    sizes = [(4, 4), (2, 2)]
    first = [torch.randn(3, 3, *size, generator=generator) for size in sizes]
    second = [torch.randn(3, 3, *size, generator=generator) for size in sizes]
    labelled = 1
    weights = [1.0, 0.0]  # two scales: the coarsest counts nothing
    expected = []
    for outputs, teacher in ((first, second), (second, first)):
        total = 0.0
        for part in [slice(0, 3)] if one_mean else [slice(0, labelled), slice(labelled, 3)]:
            for weight, output, other in zip(weights, outputs, teacher, strict=True):
                total += weight * reference_loss(output[part].numpy(), other[part].numpy().argmax(1), True)
        expected.append(total)
    loss = DeepSupervision(dice_cross_entropy_batch)
    ours = cross_pseudo_losses(first, second, labelled, (loss, loss), one_mean)
    np.testing.assert_allclose([one.item() for one in ours], expected, atol=1e-5)


def dice_cross_entropy_batch(
    logits: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor | None
) -> torch.Tensor:
    return dice_cross_entropy(logits, labels, True, annotated)


def test_no_gradient_flows_through_pseudo_labels() -> None:
    first = [torch.randn(2, 3, 4, requires_grad=True)]
    second = [torch.randn(2, 3, 4, requires_grad=True)]
    loss = DeepSupervision(dice_cross_entropy_batch)
    loss_1, _ = cross_pseudo_losses(first, second, 1, (loss, loss))
    loss_1.backward()
    assert first[0].grad is not None
    assert second[0].grad is None


def test_ramp_is_the_papers() -> None:
    ramp = LinearRamp(final=0.5, length=500)
    assert [ramp(epoch) for epoch in (0, 250, 500, 999)] == [0.0, 0.25, 0.5, 0.5]
    waiting = LinearRamp(final=0.5, length=10, start=20)
    assert [waiting(epoch) for epoch in (0, 19, 20, 25, 30)] == [0.0, 0.0, 0.0, 0.25, 0.5]
    assert LinearRamp(final=0.3, length=0, start=2)(2) == 0.3
