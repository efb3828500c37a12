"""Convolution blocks in two and three dimensions, and He initialisation of what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01  # of LeakyReLU, nnU-Net's
_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_AVERAGES: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class ConvolutionBlock(nn.Module):
    """Convolution (with bias), instance norm (affine, eps 1e-5) and LeakyReLU (0.01), the last if ``activated``."""

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
        return self.activation(self.norm(self.convolution(x)))


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
