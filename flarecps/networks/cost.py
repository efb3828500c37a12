"""What a network costs: parameters and multiply-accumulates, counted from the layers' shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flarecps.networks.contract import rebuilt

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
_POOLINGS = (nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one forward pass of one patch, with all heads."""

    parameters: int
    macs: int  # of convolutions alone; a transposed one has one kernel entry per output voxel (kernel = stride)
    macs_table_2: int  # as the paper's Table 2 counts them, see ``network_cost``
    convolved_elements: int  # outputs of all convolutions but the coarser heads: what nnU-Net's rule of memory counts


def network_cost(network: nn.Module, in_channels: int, patch_voxels: Sequence[int]) -> NetworkCost:
    """The cost of ``network`` (on torch's ``meta`` device: nothing is computed) for one patch.

    Table 2's convention counts a transposed convolution as its whole kernel per *output* voxel, 1 per output of a
    convolution with bias, 2 per normalised element, 1 per activation and 1 per element that is averaged; it gives the
    paper's 585.43 G (3D) and 65.55 G (2D). Additions of a residual network count nothing.
    """
    macs = table_2 = elements = 0
    coarser_heads = list(getattr(network, "heads", []))[:-1]

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, table_2, elements
        if isinstance(layer, _CONVOLUTIONS + _TRANSPOSED):
            kernel = math.prod(layer.kernel_size) * layer.in_channels * layer.out_channels
            voxels = output[0, 0].numel()
            proper = inputs[0][0, 0].numel() if isinstance(layer, _TRANSPOSED) else voxels
            macs += kernel * proper
            table_2 += kernel * voxels + (output[0].numel() if layer.bias is not None else 0)
            elements += 0 if layer in coarser_heads else output[0].numel()
        elif isinstance(layer, _NORMS):
            table_2 += 2 * output[0].numel()
        elif isinstance(layer, nn.LeakyReLU):
            table_2 += output[0].numel()
        elif isinstance(layer, _POOLINGS):
            table_2 += inputs[0][0].numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    try:
        with torch.no_grad():
            network.train()(torch.empty(1, in_channels, *patch_voxels, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return NetworkCost(sum(parameter.numel() for parameter in network.parameters()), macs, table_2, elements)


def cost_of_shapes(network: Any, in_channels: int, patch_voxels: Sequence[int]) -> NetworkCost | None:
    """The cost of a sibling's network; None for one of the user's that computes with real voxels, not shapes alone."""
    try:
        return network_cost(rebuilt(network), in_channels, patch_voxels)
    except (RuntimeError, TypeError):  # the latter of NumPy, which has no shapes without voxels
        return None
