"""A network's shape in nnU-Net v2's words, and back: the ``architecture`` of a configuration in its plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flarecps.errors import CheckpointError
from flarecps.json_fields import is_whole, shown
from flarecps.networks import PlainUNet, ResidualEncoderUNet, network_name
from flarecps.networks.blocks import NEGATIVE_SLOPE
from flarecps.networks.unet import UNet
from flarecps.planning.plan import LARGEST_KERNEL, MOST_FEATURES, MOST_LAYERS, MOST_STAGES

CLASSES = {"PlainUNet": "PlainConvUNet", "ResidualEncoderUNet": "ResidualEncoderUNet"}  # ours -> theirs
MODULE = "dynamic_network_architectures.architectures.unet"
NORM_EPSILON = 1e-5


def architecture_to_nnunet(network: UNet) -> dict[str, Any]:
    """The ``architecture`` entry of nnU-Net's plans for ``network``; CheckpointError for a kind nnU-Net has not."""
    name, given = network_name(network), network.arguments
    if name not in CLASSES:
        raise CheckpointError(f"nnU-Net v2 has no network like '{name}'; it knows {', '.join(CLASSES)}")
    stages, dimensions = len(given["features"]), len(given["kernels"][0])
    plain = name == "PlainUNet"
    encoder = {"n_conv_per_stage": [given["convolutions"]] * stages} if plain else {
        "n_blocks_per_stage": given["blocks_per_stage"]
    }  # fmt: skip
    return {
        "network_class_name": f"{MODULE}.{CLASSES[name]}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": given["features"],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": given["kernels"],
            "strides": given["strides"],
            **encoder,
            "n_conv_per_stage_decoder": [given["convolutions" if plain else "decoder_convolutions"]] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": NORM_EPSILON, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def network_from_nnunet(configuration: Mapping[str, Any], channels: int, classes: int, where: str) -> UNet:
    """A network of the shape that a configuration of nnU-Net's plans describes, with weights yet to be given.

    ``where`` begins every message. Raises CheckpointError for another kind of network, and for what this program's
    networks can't be: other norms, activations, dropout, bottleneck blocks, stages of unlike depth in the decoder.
    """
    architecture = _architecture(configuration, where)
    name = str(architecture.get("network_class_name", "")).rpartition(".")[2]
    known = {theirs: ours for ours, theirs in CLASSES.items()}
    if name not in known:
        raise CheckpointError(f"{where}: its network is a '{name}'; this program has {' and '.join(known)}")
    given = architecture.get("arch_kwargs")
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{where}: 'arch_kwargs' is missing from its architecture")
    try:
        _check_layers(given, where)
        stages = _count("n_stages", given["n_stages"], MOST_STAGES)
        dimensions = _count("conv_op", int(str(given["conv_op"])[-2]), 3)
        shape: dict[str, Any] = {
            "in_channels": channels,
            "classes": classes,
            "features": [
                _count("features_per_stage", one, MOST_FEATURES)
                for one in _per_stage(given["features_per_stage"], stages)
            ],
            "strides": [_per_axis(row, dimensions) for row in _per_stage(given["strides"], stages)],
            "kernels": [_per_axis(row, dimensions) for row in _per_stage(given["kernel_sizes"], stages)],
        }
        decoder = _counts(given, "n_conv_per_stage_decoder", stages - 1, MOST_LAYERS)
        if known[name] == "ResidualEncoderUNet":
            blocks = _counts(given, "n_blocks_per_stage", stages, MOST_LAYERS)
            depth = _one_depth(set(decoder), "n_conv_per_stage_decoder", where)
            return ResidualEncoderUNet(**shape, blocks_per_stage=blocks, decoder_convolutions=depth)
        depth = _one_depth(
            {*decoder, *_counts(given, "n_conv_per_stage", stages, MOST_LAYERS)}, "n_conv_per_stage", where
        )
        return PlainUNet(**shape, convolutions=depth, output_bias=True)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{where}: its architecture is not complete or contradicts itself ({error})") from error


def _architecture(configuration: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The ``architecture`` entry; of plans before nnU-Net 2.4, which had none, what it was made of."""
    found = configuration.get("architecture")
    if isinstance(found, Mapping):
        return found
    if "UNet_class_name" not in configuration:
        raise CheckpointError(f"{where}: its configuration has no 'architecture'; expected plans written by nnU-Net v2")
    kind = configuration["UNet_class_name"]
    try:
        depths = configuration["n_conv_per_stage_encoder"]
        _count("the number of stages", len(depths), MOST_STAGES)
        base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
        dimensions = len(configuration["patch_size"])
        return {
            "network_class_name": kind,
            "arch_kwargs": {
                "n_stages": len(depths),
                "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": configuration["conv_kernel_sizes"],
                "strides": configuration["pool_op_kernel_sizes"],
                "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": depths,
                "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": f"InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": NORM_EPSILON, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
            },
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its network can't be rebuilt from the plans ({error!r})") from error


def _check_layers(given: Mapping[str, Any], where: str) -> None:
    """Nothing, or CheckpointError for layers that this program's networks have not."""
    dimensions = str(given["conv_op"])[-2:]
    norm, nonlin = str(given.get("norm_op")), str(given.get("nonlin"))
    norm_settings, nonlin_settings = given.get("norm_op_kwargs") or {}, given.get("nonlin_kwargs") or {}
    block = given.get("block")
    wrong = {
        f"norm_op {norm}": not norm.endswith(f"InstanceNorm{dimensions}"),
        f"norm_op_kwargs {norm_settings}": norm_settings.get("eps", NORM_EPSILON) != NORM_EPSILON
        or not norm_settings.get("affine", False),
        f"nonlin {nonlin}": not nonlin.endswith("LeakyReLU"),
        f"nonlin_kwargs {nonlin_settings}": nonlin_settings.get("negative_slope", NEGATIVE_SLOPE) != NEGATIVE_SLOPE,
        f"dropout_op {given.get('dropout_op')}": given.get("dropout_op") is not None,
        "conv_bias false": not given.get("conv_bias", False),
        "nonlin_first": bool(given.get("nonlin_first")),
        f"block {block}": block is not None and not str(block).endswith("BasicBlockD"),
        "bottleneck_channels": given.get("bottleneck_channels") is not None,
        "stem_channels": given.get("stem_channels") not in (None, _per_stage(given["features_per_stage"], 1)[0]),
        "squeeze_excitation": bool(given.get("squeeze_excitation")),
    }
    found = [name for name, differs in wrong.items() if differs]
    if found:
        raise CheckpointError(
            f"{where}: its network has {', '.join(found)}; expected nnU-Net's default layers: biases, InstanceNorm "
            "(affine, eps 1e-5), LeakyReLU (0.01), no dropout, basic residual blocks"
        )


def _per_stage(value: Any, stages: int) -> list[Any]:
    """``value`` for every stage; a list must have one entry each."""
    if not isinstance(value, list | tuple):
        return [value] * stages
    if len(value) < stages:
        raise ValueError(f"{list(value)} for {stages} stages")
    return list(value)


def _per_axis(value: Any, dimensions: int) -> list[int]:
    sizes = list(value) if isinstance(value, list | tuple) else [value] * dimensions
    return [_count("a kernel or stride", size, LARGEST_KERNEL) for size in sizes]


def _counts(given: Mapping[str, Any], name: str, stages: int, most: int) -> list[int]:
    return [_count(name, value, most) for value in _per_stage(given[name], stages)]


def _count(name: str, value: Any, most: int) -> int:
    """``value`` if it is a whole number from 1 to ``most``; ValueError otherwise."""
    if not is_whole(value, 1) or value > most:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number from 1 to {most}")
    return int(value)


def _one_depth(depths: set[Any], name: str, where: str) -> int:
    if len(depths) != 1:
        raise CheckpointError(
            f"{where}: {name} differs between stages ({sorted(depths)}); this program's networks have one number of "
            "convolutions in all of them"
        )
    return int(depths.pop())
