"""Convolution blocks in two and three dimensions, and He initialisation of what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flarecps.kernels import current_road, instance_norm_leaky_relu

NEGATIVE_SLOPE = 0.01  # of LeakyReLU, nnU-Net's
_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_AVERAGES: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class ConvolutionBlock(nn.Module):
    """Convolution (with bias), instance norm (affine, eps 1e-5) and LeakyReLU (0.01), the last if ``activated``.

    Norm and activation are one operation where ``flarecps.kernels.using`` says so.
    """

    padded_channels = 0  # the convolution's input gets channels of zeros up to so many (see ``pad_image_channels``)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        bias: bool = True,
        activated: bool = True,
    ) -> None:
        super().__init__()
        dimensions = len(kernel)
        padding = tuple(width // 2 for width in kernel)
        self.convolution = _CONVOLUTIONS[dimensions](
            in_channels, out_channels, tuple(kernel), tuple(stride), padding, bias=bias
        )
        self.norm = _NORMS[dimensions](out_channels, eps=1e-5, affine=True)
        self.activation = activation() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self._convolved(x)
        slope = getattr(self.activation, "negative_slope", 1.0)
        fused = instance_norm_leaky_relu(x, self.norm.weight, self.norm.bias, self.norm.eps, slope)
        return self.activation(_unviewed(self.norm(x))) if fused is None else fused

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution, with channels of zeros beside the image's where ``padded_channels`` asks for more."""
        missing = self.padded_channels - x.shape[1]
        if missing <= 0:
            return self.convolution(x)
        layer, zeros = self.convolution, (0, 0) * (x.ndim - 2) + (0, missing)
        weight = F.pad(layer.weight, zeros)
        convolve = F.conv3d if x.ndim == 5 else F.conv2d
        return convolve(F.pad(x, zeros), weight, layer.bias, layer.stride, layer.padding)


def _unviewed(y: Tensor) -> Tensor:
    """PyTorch's instance norm ``y``, which nothing else uses, no longer a view of batch norm's output.

    What is done in place to a view has its gradient copied twice, as large as the features, in the backward pass.
    """
    return torch.ops.aten._unsafe_view(y, y.shape) if y.requires_grad else y


def activation() -> nn.Module:
    """LeakyReLU (0.01), in place."""
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)


def convolution_stage(
    in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int], convolutions: int
) -> nn.Sequential:
    """``convolutions`` blocks in a row; the first one carries the stride (paper, section 2.2)."""
    unit = (1,) * len(kernel)
    blocks = [ConvolutionBlock(in_channels, out_channels, kernel, stride)]
    blocks += [ConvolutionBlock(out_channels, out_channels, kernel, unit) for _ in range(convolutions - 1)]
    return nn.Sequential(*blocks)


def upsampling(in_channels: int, out_channels: int, stride: Sequence[int], bias: bool = False) -> nn.Module:
    """A transposed convolution whose kernel is its stride: every output voxel has one source."""
    return _TRANSPOSED[len(stride)](in_channels, out_channels, tuple(stride), tuple(stride), bias=bias)


def average_pooling(stride: Sequence[int]) -> nn.Module:
    """The mean of every block of ``stride`` voxels."""
    return _AVERAGES[len(stride)](tuple(stride), tuple(stride))


def averaged(pooling: nn.Module, x: Tensor) -> Tensor:
    """``pooling(x)``, ``average_pooling``'s or none, in the layout of ``x`` on the roads that keep it.

    PyTorch's 3D pooling copies a tensor with channels innermost to the default layout, and on a GPU its backward pass
    is refused by ``trainer.deterministic``.
    """
    refused = x.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
    if not isinstance(pooling, nn.AvgPool3d) or (current_road() == "plain" and not refused):
        return pooling(x)
    blocks = x.movedim(1, -1)
    for axis, width in zip((1, 3, 5), cast(tuple[int, int, int], pooling.kernel_size), strict=True):
        blocks = blocks.unflatten(axis, (-1, width))
    return blocks.mean((2, 4, 6)).movedim(-1, 1)


def head(in_channels: int, classes: int, dimensions: int, bias: bool = False) -> nn.Module:
    """A 1×1(×1) convolution that turns features into logits."""
    return _CONVOLUTIONS[dimensions](in_channels, classes, 1, bias=bias)


@torch.no_grad()
def he_normal_(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """``network`` with He-normal weights drawn anew, in place (paper, Table 2): fan-in, leaky slope 0.01; biases 0.

    Norms stay as they are, and so does what is no convolution.
    The numbers come from ``generator`` alone, so that two siblings given two generators are independent and
    nothing else that draws from torch's global generator can change them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
