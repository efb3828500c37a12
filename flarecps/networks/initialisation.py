"""He initialisation (paper, Table 2)."""

from __future__ import annotations

import torch
from torch import nn

from flarecps.networks.blocks import NEGATIVE_SLOPE

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def he_normal_(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """``network`` with weights drawn anew, in place: normal, fan-in, leaky slope 0.01; biases 0; norms untouched.

    The numbers come from ``generator`` alone, so that two siblings given two generators are independent and
    nothing else that draws from torch's global generator can change them.
    """
    for module in network.modules():
        if isinstance(module, _CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
