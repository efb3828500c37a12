"""The sums over voxels of which Dice and cross-entropy are made, with a gradient that keeps nothing large.

Autograd would keep a softmax and a log-softmax of every voxel and class until the backward pass, for each of the six
losses of a step and at every scale. Here only the logits, which exist anyway, and the labels are kept; probabilities
are computed again in the backward pass, a few patches at a time, in single precision whatever the autocast. No float
one-hot of all classes is built: what a target selects is a boolean mask of the patches at hand. On the road ``triton``
(see ``flarecps.kernels``) the logits are read once in each direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from flarecps.kernels import current_road, triton_takes

ELEMENTS_AT_A_TIME = 2**25  # of logits: one patch of 112×160×128 with 14 classes, 128 MB in single precision
MOST_CLASSES_AT_ONCE = 256  # that a Triton program holds of a voxel


class ClassSums(NamedTuple):
    """Sums over the trusted voxels of each sample, in single precision or better."""

    entropy: Float[Tensor, " batch"]  # Σ −log p of the target's class
    overlap: Float[Tensor, "batch klass"]  # Σ p of the class where the target is the class
    predicted: Float[Tensor, "batch klass"]  # Σ p
    present: Float[Tensor, "batch klass"]  # voxels of the target


def class_sums(
    logits: Float[Tensor, "batch klass *spatial"],
    labels: Integer[Tensor, " batch *spatial"],
    joined: Bool[Tensor, "batch klass"] | None = None,
    trusted: Bool[Tensor, " batch *broadcastable"] | None = None,
) -> ClassSums:
    """The sums of softmax(``logits``) against ``labels``, differentiable once with respect to ``logits``.

    ``joined`` names classes whose probability is added to background's (see ``merge_unannotated``). ``trusted`` says
    which voxels take part at all (None: all); sizes of 1 stand for whole axes.
    """
    return ClassSums(*_ClassSums.apply(logits, labels, joined, trusted))


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, joined: Tensor | None, trusted: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, labels, joined, trusted)
        ctx.by_triton = current_road() == "triton" and triton_takes(logits) and logits.shape[1] <= MOST_CLASSES_AT_ONCE
        if ctx.by_triton:
            from flarecps.kernels.class_sums_triton import Read

            entropy, overlap, predicted, present = Read(logits, labels, joined, trusted).sums()
            ctx.mark_non_differentiable(present)
            return entropy, overlap, predicted, present
        with torch.autocast(logits.device.type, enabled=False):
            parts = [_sums(*chunk) for chunk in _chunks(logits, labels, joined, trusted)]
        entropy, overlap, predicted, present = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(present)
        return entropy, overlap, predicted, present

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, entropy: Tensor, overlap: Tensor, predicted: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None, None]:
        logits, labels, joined, trusted = ctx.saved_tensors
        if ctx.by_triton:
            from flarecps.kernels.class_sums_triton import Read

            return Read(logits, labels, joined, trusted).gradient(entropy, overlap, predicted), None, None, None
        gradient = torch.empty_like(logits)
        first = 0
        with torch.autocast(logits.device.type, enabled=False):
            for chunk in _chunks(logits, labels, joined, trusted):
                rows = slice(first, first + len(chunk[0]))
                gradient[rows] = _gradient(*chunk, entropy[rows], overlap[rows], predicted[rows])
                first = rows.stop
        return gradient, None, None, None


def _chunks(
    logits: Tensor, labels: Tensor, joined: Tensor | None, trusted: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """As many samples at a time as ``ELEMENTS_AT_A_TIME`` allows, at least one."""
    samples = max(ELEMENTS_AT_A_TIME // logits[0].numel(), 1)
    for first in range(0, len(logits), samples):
        rows = slice(first, first + samples)
        yield (
            logits[rows],
            labels[rows],
            None if joined is None else joined[rows],
            None if trusted is None else trusted[rows],
        )


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, 1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _sums(
    logits: Tensor, labels: Tensor, joined: Tensor | None, trusted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_p = _log_probabilities(logits)
    if joined is not None:
        log_p = merge_unannotated(log_p, joined)
    spatial = tuple(range(1, labels.ndim))
    entropy = -log_p.gather(1, labels[:, None].long())[:, 0]
    classes = torch.arange(logits.shape[1], device=logits.device, dtype=labels.dtype)
    present = labels[:, None] == classes.view(-1, *(1,) * len(spatial))
    p = log_p.exp_()
    if trusted is not None:
        left_out = ~trusted
        entropy.masked_fill_(left_out, 0)
        p.masked_fill_(left_out[:, None], 0)
        present &= trusted[:, None]
    over = tuple(axis + 1 for axis in spatial)
    predicted = p.sum(over)
    overlap = p.masked_fill_(~present, 0).sum(over)
    return entropy.sum(spatial), overlap, predicted, present.sum(over).to(p.dtype)


def _gradient(
    logits: Tensor,
    labels: Tensor,
    joined: Tensor | None,
    trusted: Tensor | None,
    entropy: Tensor,
    overlap: Tensor,
    predicted: Tensor,
) -> Tensor:
    """∂L/∂logits from ∂L/∂(each sum).

    With p the probabilities and y the target, L depends on p_k by g_k = predicted_k + [k = y] overlap_k, hence on logit
    k by p_k (g_k − Σ_j p_j g_j), and through cross-entropy by entropy × (p_k − [k = y]).
    """
    extra = (1,) * (labels.ndim - 1)
    log_p = _log_probabilities(logits)
    share = None
    if joined is not None:
        merged = merge_unannotated(log_p, joined)
        absent = joined.view(*joined.shape, *extra)
        share = log_p.sub_(merged[:, :1]).exp_().masked_fill_(~absent, 0)  # of background's p, by class
        log_p = merged
    p = log_p.exp_()
    index = labels[:, None].long()
    p_target = p.gather(1, index)
    overlap_target = overlap.gather(1, index.flatten(1)).view_as(index)
    entropy = entropy.view(-1, 1, *extra)
    gradient = p * predicted.view(*predicted.shape, *extra)
    of_target = p_target * overlap_target
    gradient.addcmul_(p, entropy - of_target - gradient.sum(1, keepdim=True))
    gradient.scatter_(1, index, gradient.gather(1, index) + of_target - entropy)
    if share is not None:
        gradient = torch.where(absent, share * gradient[:, :1], gradient)
    if trusted is not None:
        gradient.masked_fill_(~trusted[:, None], 0)
    return gradient


def joined_classes(annotated: Bool[Tensor, "batch klass"]) -> Bool[Tensor, "batch klass"]:
    """The classes whose probability stands for background in each sample: those not annotated, and background."""
    joined = ~annotated
    joined[:, 0] = True
    return joined


def merge_unannotated(
    log_probabilities: Float[Tensor, "batch klass *spatial"], joined: Bool[Tensor, "batch klass"]
) -> Float[Tensor, "batch klass *spatial"]:
    """Log-probabilities after the ``joined`` classes' have become background's.

    exp(result)₀ = p₀ + Σ p_c over the classes c without annotation, exp(result)_c = 0 for those, and the others
    keep theirs: where an organ was never looked for, a voxel that is called that organ is not wrong to be unlabelled.
    """
    absent = joined.view(*joined.shape, *(1,) * (log_probabilities.ndim - 2))
    background = torch.logsumexp(log_probabilities.masked_fill(~absent, -torch.inf), dim=1)
    merged = log_probabilities.masked_fill(absent, -torch.inf)
    merged[:, 0] = background
    return merged
