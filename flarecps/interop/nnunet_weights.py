"""A network's weights under nnU-Net v2's names, and back.

nnU-Net registers most layers twice or more: the encoder also as a part of the decoder, and convolution and norm of a
block also in its list ``all_modules``. Its files hold every name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from flarecps.errors import CheckpointError
from flarecps.networks.residual import ResidualBlock
from flarecps.networks.unet import UNet

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
_ENCODER_AGAIN = "decoder.encoder."
_HEADS = "decoder.seg_layers."
_LISTED = {"conv": "all_modules.0", "norm": "all_modules.1"}  # of a block without dropout
SHOWN = 3  # names in a message


def nnunet_parameter_names(network: nn.Module) -> dict[str, str]:
    """Our name of every parameter → its name in nnU-Net v2's network of the same architecture.

    v2 registers several tensors twice (``decoder.encoder.…``, ``….all_modules.…``); the names given here are those
    without either. Its transposed convolutions and heads always have biases: where ours have none, they are zeros.
    Needs a network with a head at every decoder level.

    >>> from flarecps.networks import PlainUNet
    >>> names = nnunet_parameter_names(PlainUNet(1, 2, [4, 8], [[1, 1], [2, 2]], [[3, 3], [3, 3]]))
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


def nnunet_state_dict(network: UNet) -> dict[str, Tensor]:
    """The state of nnU-Net's network of the same shape, under all its names.

    Biases that only nnU-Net has are zeros, and so are coarser heads where ours has the finest alone.
    """
    state: dict[str, Tensor] = {}
    for ours, theirs in _names(network).items():
        state[theirs] = network.get_parameter(ours).detach().clone()
    finest = f"{_HEADS}{len(network.decoder) - 1}."
    weight = state[f"{finest}weight"]
    for level in range(len(network.upsamplings)):
        features = state[f"decoder.transpconvs.{level}.weight"].shape[1]
        state.setdefault(f"{_HEADS}{level}.weight", weight.new_zeros(len(weight), features, *weight.shape[2:]))
        state.setdefault(f"{_HEADS}{level}.bias", weight.new_zeros(len(weight)))
        state.setdefault(f"decoder.transpconvs.{level}.bias", weight.new_zeros(features))
    return {name: value for once, value in state.items() for name in _all_names(once)}


def load_nnunet_state_dict(network: UNet, state: Mapping[str, Tensor], where: str) -> None:
    """Put nnU-Net's weights into ``network``, in place.

    Raises CheckpointError, naming ``where``, when tensors are missing, left over or of another shape: then the model's
    architecture is another one than its plans say (a trainer of its own, for example).
    """
    given = {_once(name): value for name, value in state.items()}
    ours = {}
    for name, theirs in _names(network).items():
        expected = network.get_parameter(name)
        if theirs in given and given[theirs].shape != expected.shape:
            raise CheckpointError(
                f"{where}: {theirs} has the shape {tuple(given[theirs].shape)}; by its plans and dataset.json it "
                f"should be {tuple(expected.shape)}: do the three files belong together?"
            )
        if theirs in given:
            ours[name] = given.pop(theirs).to(expected.device).float()  # the sizes alone are tried on "meta"
    missing = sorted(set(dict(network.named_parameters())) - ours.keys())
    for what, names in (("lacks", missing), ("also holds", sorted(given))):
        if names:
            raise CheckpointError(
                f"{where}: another network than its plans describe; it {what} {', '.join(names[:SHOWN])}"
                f"{' …' if len(names) > SHOWN else ''}; was it trained by a trainer with a network of its own?"
            )
    network.load_state_dict(ours)


def _names(network: UNet) -> dict[str, str]:
    """Our names → theirs, once each; a single head is the finest of theirs."""
    names = nnunet_parameter_names(network)
    without = len(network.decoder) - len(network.heads)
    if without:
        for ours, theirs in names.items():
            if theirs.startswith(_HEADS):
                names[ours] = re.sub(r"\d+", lambda level: str(int(level.group()) + without), theirs, count=1)
    return names


def _all_names(name: str) -> list[str]:
    """Everything that nnU-Net calls a tensor, in its own order."""
    listed = re.sub(r"\.(conv|norm)\.(weight|bias)$", lambda found: f".{_LISTED[found[1]]}.{found[2]}", name)
    names = [name] if listed == name else [name, listed]
    if name.startswith("encoder."):
        names += [f"decoder.{one}" for one in names]
    return names


def _once(name: str) -> str:
    """One name of those in ``_all_names``."""
    if name.startswith(_ENCODER_AGAIN):
        name = name.removeprefix("decoder.")
    for short, listed in _LISTED.items():
        name = name.replace(f".{listed}.", f".{short}.")
    return name
