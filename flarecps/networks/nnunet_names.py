"""The names under which nnU-Net v2 stores the same weights."""

from __future__ import annotations

import re

from torch import nn

from flarecps.networks.residual import ResidualBlock

_RULES = [
    (r"^stem\.", "encoder.stem.convs.0."),
    (r"^encoder\.(\d+)\.(\d+)\.(convolution|norm)\.", r"encoder.stages.\1.0.convs.\2.\3."),
    (r"^encoder\.(\d+)\.(\d+)\.first\.", r"encoder.stages.\1.blocks.\2.conv1."),
    (r"^encoder\.(\d+)\.(\d+)\.second\.", r"encoder.stages.\1.blocks.\2.conv2."),
    (r"^encoder\.(\d+)\.(\d+)\.projection\.", r"encoder.stages.\1.blocks.\2.skip.{place}."),
    (r"^upsamplings\.", "decoder.transpconvs."),
    (r"^decoder\.(\d+)\.(\d+)\.", r"decoder.stages.\1.convs.\2."),
    (r"^heads\.(\d+)\.", r"decoder.seg_layers.\1."),
]


def nnunet_v2_names(network: nn.Module) -> dict[str, str]:
    """Our name of every parameter → its name in nnU-Net v2's network of the same architecture.

    v2 registers several tensors twice (``decoder.encoder.…``, ``….all_modules.…``); the names given here are those
    without either. Its transposed convolutions and heads always have biases: where ours have none, they are zeros.
    Needs a network with a head at every decoder level.

    >>> from flarecps.networks import PlainUNet
    >>> names = nnunet_v2_names(PlainUNet(1, 2, [4, 8], [[1, 1], [2, 2]], [[3, 3], [3, 3]]))
    >>> names["encoder.1.0.convolution.weight"], names["heads.0.weight"]
    ('encoder.stages.1.0.convs.0.conv.weight', 'decoder.seg_layers.0.weight')
    """
    modules = dict(network.named_modules())
    names = {}
    for ours, _ in network.named_parameters():
        theirs = ours
        for pattern, replacement in _RULES:
            theirs, changed = re.subn(pattern, replacement, theirs)
            if changed:
                break
        if "{place}" in theirs:
            block = modules[ours.partition(".projection.")[0]]
            assert isinstance(block, ResidualBlock)
            theirs = theirs.format(place=0 if isinstance(block.pooling, nn.Identity) else 1)
        names[ours] = theirs.replace(".convolution.", ".conv.")
    return names
