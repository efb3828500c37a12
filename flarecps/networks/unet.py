"""The plain U-Net of nnU-Net v1, whose parameter counts are the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flarecps.networks.blocks import convolution_stage, head, upsampling


class PlainUNet(nn.Module):
    """A U-Net in two or three dimensions with a head at every decoder level (deep supervision).

    With features 32-64-128-256-320-320, kernels of 3 and 14 classes it has the paper's 30.79 M parameters (3D).

    Args:
        in_channels: image channels.
        classes: labels, background included.
        features: channels per stage, finest first.
        strides: per stage and axis; the first stage's are all 1.
        kernels: per stage and axis, odd.
        convolutions: convolution blocks per stage, on both paths.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        if not len(features) == len(strides) == len(kernels) >= 2:
            raise ValueError(
                f"features, strides and kernels need one entry per stage and at least two stages; "
                f"got {len(features)}, {len(strides)} and {len(kernels)}"
            )
        self.arguments: dict[str, Any] = {  # what builds the same network again, kept in checkpoints
            "in_channels": in_channels,
            "classes": classes,
            "features": [int(width) for width in features],
            "strides": [[int(step) for step in stride] for stride in strides],
            "kernels": [[int(width) for width in kernel] for kernel in kernels],
            "convolutions": convolutions,
        }
        widths = [in_channels, *features]
        self.encoder = nn.ModuleList(
            convolution_stage(widths[i], widths[i + 1], kernels[i], strides[i], convolutions)
            for i in range(len(features))
        )
        decoder_levels = range(len(features) - 2, -1, -1)  # coarse to fine
        self.upsamplings = nn.ModuleList(
            upsampling(features[i + 1], features[i], strides[i + 1]) for i in decoder_levels
        )
        self.decoder = nn.ModuleList(
            convolution_stage(2 * features[i], features[i], kernels[i], [1] * len(kernels[i]), convolutions)
            for i in decoder_levels
        )
        self.heads = nn.ModuleList(head(features[i], classes, len(kernels[i])) for i in decoder_levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits ``(batch, class, *spatial)``, finest scale first.

        In training there is one entry per decoder level, each coarser one halved by its stage's stride; in
        evaluation only the finest is computed. Every spatial size must be divisible by the product of strides.
        """
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        logits = []
        for upsample, stage, to_logits in zip(self.upsamplings, self.decoder, self.heads, strict=True):
            x = stage(torch.cat([upsample(x), skips.pop()], dim=1))
            if self.training or not skips:
                logits.append(to_logits(x))
        return logits[::-1]
