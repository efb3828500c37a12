"""The residual-encoder U-Net of nnU-Net v2 (its ResEnc presets)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flarecps.networks.blocks import ConvolutionBlock, activation, average_pooling, averaged
from flarecps.networks.unet import UNet, plain_topology

BLOCKS_PER_STAGE = (1, 3, 4, 6)  # nnU-Net v2's, and 6 in every deeper stage


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is carried and added (ResNet-D's basic block).

    The carried input is averaged where the block has a stride, and passes a 1×1(×1) convolution without bias and a norm
    where the number of channels changes. The second norm starts at 0, as in nnU-Net: a new block changes nothing yet.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.first = ConvolutionBlock(in_channels, out_channels, kernel, stride)
        self.second = ConvolutionBlock(out_channels, out_channels, kernel, unit, activated=False)
        nn.init.zeros_(self.second.norm.weight)
        self.pooling = average_pooling(stride) if any(step > 1 for step in stride) else nn.Identity()
        self.projection = (
            ConvolutionBlock(in_channels, out_channels, unit, unit, bias=False, activated=False)
            if in_channels != out_channels
            else nn.Identity()
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        out += self.projection(averaged(self.pooling, x))  # in place: nothing needs the norm's output again
        return self.activation(out)


class ResidualEncoderUNet(UNet):
    """A U-Net whose encoder is a residual network; one convolution block per decoder stage.

    Layer for layer nnU-Net v2's network of the same name (``nnunet_parameter_names`` maps the weights), so transposed
    convolutions and heads have biases.

    Args:
        in_channels: image channels.
        classes: labels, background included.
        features: channels per stage, finest first.
        strides: per stage and axis; the first stage's are all 1.
        kernels: per stage and axis, odd.
        blocks_per_stage: residual blocks per encoder stage; null is nnU-Net's 1, 3, 4, 6, 6, …
        decoder_convolutions: convolution blocks per decoder stage (not named as PlainUNet's: a config that changes the
            class keeps the values of settings that both have).
        deep_supervision: a head at every decoder level; false builds the finest alone.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        blocks_per_stage: Sequence[int] | None = None,
        decoder_convolutions: int = 1,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        topology = plain_topology(features, strides, kernels)
        stages = len(features)
        blocks = [BLOCKS_PER_STAGE[min(stage, len(BLOCKS_PER_STAGE) - 1)] for stage in range(stages)]
        if blocks_per_stage is not None:
            blocks = [int(count) for count in blocks_per_stage]
        if len(blocks) != stages or min(blocks) < 1:
            raise ValueError(f"blocks_per_stage is {blocks}; expected {stages} numbers from 1 on, one per stage")
        self.arguments = {"in_channels": in_channels, "classes": classes, **topology, "blocks_per_stage": blocks}
        self.arguments |= {"decoder_convolutions": decoder_convolutions, "deep_supervision": deep_supervision}
        unit = (1,) * len(kernels[0])
        self.stem = ConvolutionBlock(in_channels, features[0], kernels[0], unit)
        widths = [features[0], *features]
        self.encoder = nn.ModuleList(
            _residual_stage(widths[i], widths[i + 1], kernels[i], strides[i], blocks[i]) for i in range(stages)
        )
        self.build_decoder(decoder_convolutions, output_bias=True, deep_supervision=deep_supervision)


def _residual_stage(
    in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int], blocks: int
) -> nn.Sequential:
    unit = (1,) * len(kernel)
    first = ResidualBlock(in_channels, out_channels, kernel, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, kernel, unit) for _ in range(blocks - 1)))
