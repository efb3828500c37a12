"""The plain U-Net of nnU-Net v1, whose parameter counts are the paper's Table 2, and what every U-Net here shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flarecps.networks.blocks import convolution_stage, head, upsampling


class UNet(nn.Module):
    """An encoder's features turned into logits at every decoder level (deep supervision), or at the finest alone.

    A network fills ``encoder`` and, if it has one, ``stem``; upsampling, decoder and heads are built here.
    """

    arguments: dict[str, Any]  # what builds the same network again, kept in checkpoints
    encoder: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.stem: nn.Module | None = None

    def build_decoder(self, convolutions: int, output_bias: bool, deep_supervision: bool) -> None:
        """Add transposed convolutions, decoder stages and heads, coarse to fine."""
        features, strides, kernels = (self.arguments[name] for name in ("features", "strides", "kernels"))
        levels = range(len(features) - 2, -1, -1)
        headed = levels if deep_supervision else levels[-1:]
        self.upsamplings = nn.ModuleList(
            upsampling(features[i + 1], features[i], strides[i + 1], output_bias) for i in levels
        )
        self.decoder = nn.ModuleList(
            convolution_stage(2 * features[i], features[i], kernels[i], [1] * len(kernels[i]), convolutions)
            for i in levels
        )
        self.heads = nn.ModuleList(
            head(features[i], self.arguments["classes"], len(kernels[i]), output_bias) for i in headed
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits ``(batch, class, *spatial)``, finest scale first.

        In training there is one entry per head, each coarser one halved by its stage's stride; in evaluation only the
        finest is computed. Every spatial size must be divisible by the product of strides.
        """
        if self.stem is not None:
            x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        without_head = len(self.decoder) - len(self.heads)
        logits = []
        for level, (upsample, stage) in enumerate(zip(self.upsamplings, self.decoder, strict=True)):
            x = stage(torch.cat([upsample(x), skips.pop()], dim=1))
            if level >= without_head and (self.training or not skips):
                logits.append(self.heads[level - without_head](x))
        return logits[::-1]


def plain_topology(
    features: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]
) -> dict[str, list[Any]]:
    """The topology in plain lists; raises ``ValueError`` when it does not name every stage three times."""
    if not len(features) == len(strides) == len(kernels) >= 2:
        raise ValueError(
            f"features, strides and kernels need one entry per stage and at least two stages; "
            f"got {len(features)}, {len(strides)} and {len(kernels)}"
        )
    return {
        "features": [int(width) for width in features],
        "strides": [[int(step) for step in stride] for stride in strides],
        "kernels": [[int(width) for width in kernel] for kernel in kernels],
    }


class PlainUNet(UNet):
    """A U-Net in two or three dimensions with a head at every decoder level (deep supervision).

    With features 32-64-128-256-320-320, kernels of 3 and 14 classes it has the paper's 30.79 M parameters (3D).

    Args:
        in_channels: image channels.
        classes: labels, background included.
        features: channels per stage, finest first.
        strides: per stage and axis; the first stage's are all 1.
        kernels: per stage and axis, odd.
        convolutions: convolution blocks per stage, on both paths.
        output_bias: biases in transposed convolutions and heads, which nnU-Net v2 has and v1, the paper's, has not.
        deep_supervision: a head at every decoder level; false builds the finest alone.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        convolutions: int = 2,
        output_bias: bool = False,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        topology = plain_topology(features, strides, kernels)
        self.arguments = {"in_channels": in_channels, "classes": classes, **topology, "convolutions": convolutions}
        self.arguments |= {"output_bias": output_bias, "deep_supervision": deep_supervision}
        widths = [in_channels, *features]
        self.encoder = nn.ModuleList(
            convolution_stage(widths[i], widths[i + 1], kernels[i], strides[i], convolutions)
            for i in range(len(features))
        )
        self.build_decoder(convolutions, output_bias, deep_supervision)
