"""Triton's kernels tried on the device before a training relies on them."""

from __future__ import annotations

import torch
from torch import Tensor

from flarecps.kernels import Road, instance_norm_leaky_relu, using
from flarecps.losses.class_sums import class_sums

SHAPE = (2, 5, 6, 7, 9)  # odd sizes: every kernel has a remainder to mask
ALIKE = 1e-4  # largest difference of results in single precision, as a share of the largest value


def what_fails(device: torch.device) -> str | None:
    """Why Triton's kernels are not to be used on ``device``: they do not run, or do not compute what PyTorch does.

    None where they do. Norm, activation and the loss's sums are tried, forward and backward, on a few voxels: seconds,
    most of them compilation.
    """
    try:
        found = _computed("triton", device)
    except Exception as error:  # whatever a compiler, a driver or an assembler may raise
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return f"Triton's kernels do not run here ({type(error).__name__}: {reason})"
    for one, wanted in zip(found, _computed("composite", device), strict=True):
        if not (one - wanted).abs().max() <= ALIKE * wanted.abs().max():
            return "Triton's kernels compute something else here than PyTorch does"
    return None


def _computed(road: Road, device: torch.device) -> list[Tensor]:
    """Outputs and gradients of each operation on the same made-up values."""
    values = torch.sin(torch.arange(torch.Size(SHAPE).numel(), device=device) * 0.7).reshape(SHAPE)
    x = values.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight, bias = (torch.linspace(low, 2, SHAPE[1], device=device, requires_grad=True) for low in (0.5, -1))
    labels = torch.arange(values[:, 0].numel(), device=device).reshape(SHAPE[0], *SHAPE[2:]) % SHAPE[1]
    with using(road):
        y = instance_norm_leaky_relu(x, weight, bias, 1e-5, 0.01)
        assert y is not None
        sums = class_sums(y, labels)
        total = (y * values).sum() + sums.entropy.sum() + (sums.overlap * sums.predicted).sum()
        return [tensor.detach() for tensor in (y, *sums, *torch.autograd.grad(total, (x, weight, bias)))]
