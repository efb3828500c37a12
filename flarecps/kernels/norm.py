"""Instance norm and LeakyReLU as one differentiable operation that keeps the layout of its input in memory.

PyTorch's instance norm goes through batch norm on a contiguous view, so that a tensor with channels innermost is copied
there and back in both passes, and the activation reads and writes everything once more. Here the convolution's output,
its mean and its inverse deviation are kept; the activation's mask is computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flarecps.kernels.roads import current_road, triton_takes

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def instance_norm_leaky_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor | None:
    """LeakyReLU (``slope``; 1: none) of the affine instance norm of ``x`` (B, C, *spatial), in its dtype and layout.

    Statistics are over the spatial axes, in single precision or better. None where the present road does not compute
    it: on the plain road, and on Triton's for another layout than channels innermost or double precision.
    """
    road = current_road()
    if road == "composite":
        return _Composite.apply(x, weight, bias, eps, slope)
    if road == "triton" and triton_takes(x) and x.is_contiguous(memory_format=_CHANNELS_LAST[x.ndim]):
        return _Triton.apply(x, weight, bias, eps, slope)
    return None


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, tuple(range(2, x.ndim)), correction=0, keepdim=True)
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.slope = slope
        y = (wide - mean) * inverse * _by_channel(weight, x) + _by_channel(bias, x)
        return torch.where(y > 0, y, slope * y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """With x̂ the normalised x and g the gradient before the activation: w/σ (g − mean g − x̂ mean(g x̂))."""
        x, weight, bias, mean, inverse = ctx.saved_tensors
        over = tuple(range(2, x.ndim))
        hat = (x.to(mean.dtype) - mean) * inverse
        scale = _by_channel(weight, x)
        wide = gradient.to(mean.dtype)
        wide = torch.where(hat * scale + _by_channel(bias, x) > 0, wide, ctx.slope * wide)
        sums, products = wide.sum(over, keepdim=True), (wide * hat).sum(over, keepdim=True)
        voxels = x[0, 0].numel()
        of_x = (wide - sums / voxels - hat * (products / voxels)) * (scale * inverse)
        return of_x.to(x.dtype), _of_parameter(products, weight), _of_parameter(sums, bias), None, None


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        from flarecps.kernels import norm_triton

        y, mean, inverse = norm_triton.forward(x, weight, bias, eps, slope)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from flarecps.kernels import norm_triton

        x, weight, bias, mean, inverse = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        of_x, products, sums = norm_triton.backward(gradient, x, weight, bias, mean, inverse, ctx.slope)
        return of_x, _of_parameter(products, weight), _of_parameter(sums, bias), None, None


def _by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(1, -1, *(1,) * (x.ndim - 2))


def _of_parameter(sums: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of a parameter (C,) from each sample's sums (B, C, …)."""
    return sums.sum(0).view_as(parameter).to(parameter.dtype)
