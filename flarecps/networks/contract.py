"""What a network must offer to be trained, stored in a checkpoint and built again from it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flarecps.errors import ConfigError
from flarecps.networks.residual import ResidualEncoderUNet
from flarecps.networks.unet import PlainUNet

NETWORKS = {network.__name__: network for network in (PlainUNet, ResidualEncoderUNet)}  # built from any checkpoint
NEEDED = ("in_channels", "classes")  # among the arguments: a checkpoint's reader compares them with the plan's
PLAIN = (bool, int, float, str, type(None))


@runtime_checkable
class SegmentationNetwork(Protocol):
    """A ``torch.nn.Module`` that may be a sibling; ``PlainUNet`` is one, docs/extending.md shows another.

    It is called with images (batch, channel, *patch) and returns logits (batch, class, *spatial) in a list, finest
    scale first: the first has the images' size; in training coarser ones may follow, which deep supervision weights by
    1/2, 1/4, …; in evaluation only the first is used. Its constructor is called with in_channels, classes, features,
    strides, kernels in this order, and with the config's ``init_args`` by name.

    ``arguments`` are what ``type(network)(**arguments)`` builds the same layers from: ``in_channels``, ``classes`` and
    whatever else, in plain types (numbers, texts, lists, dicts), for a checkpoint keeps them.
    """

    arguments: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Sequence[Tensor]: ...


def network_name(network: object) -> str:
    """How a checkpoint names the network's class: ``PlainUNet``, or ``my_lab.nets.MyUNet`` for one's own."""
    kind = type(network)
    if NETWORKS.get(kind.__name__) is kind:
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def rebuilt(network: SegmentationNetwork, **changes: Any) -> nn.Module:
    """The same layers built anew from ``arguments`` with ``changes``, on the meta device: shapes without memory."""
    arguments = {**network.arguments, **changes}
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                built = type(network)(**arguments)
        except RuntimeError:  # some constructors compute with tensors, such as a drop rate per layer
            built = type(network)(**arguments)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{network_name(network)} is no torch.nn.Module")
    return built.to("meta")


def class_tensors(network: SegmentationNetwork) -> set[str]:
    """The names in its ``state_dict`` whose shapes follow the number of classes: the heads."""
    other = _shapes(rebuilt(network, classes=int(network.arguments["classes"]) + 1))
    return {name for name, shape in _shapes(rebuilt(network)).items() if other.get(name) != shape}


def check_contract(network: object) -> None:
    """Nothing, or ConfigError when a checkpoint of ``network`` could not be read back: to be asked before training.

    Its class must be found by its dotted path, ``arguments`` be plain, and the layers that they build have the weights'
    names and shapes.
    """
    name = network_name(network)
    if not _is_importable(type(network)):
        raise ConfigError(
            f"model.network is {name}: defined in a script, a notebook or a function, where whoever reads its "
            "checkpoints can't find it; move the class into a module, such as my_lab/nets.py, and give "
            "class_path: my_lab.nets.MyUNet"
        )
    if not isinstance(network, SegmentationNetwork) or not isinstance(network.arguments, Mapping):
        raise ConfigError(
            f"model.network {name} has no dict 'arguments', from which its checkpoints build it again; set "
            "self.arguments = {'in_channels': in_channels, 'classes': classes, ...} in its constructor: all that it "
            "was called with, in plain types"
        )
    odd = {key: value for key, value in network.arguments.items() if not (isinstance(key, str) and _is_plain(value))}
    missing = [key for key in NEEDED if key not in network.arguments]
    if odd or missing:
        found = f"lack {', '.join(missing)}" if missing else f"hold {next(iter(odd))} = {next(iter(odd.values()))!r}"
        raise ConfigError(
            f"model.network {name}: its 'arguments' {found}; expected in_channels, classes and what else its "
            "constructor takes, as numbers, texts, lists and dicts: a checkpoint holds nothing else"
        )
    assert isinstance(network, nn.Module)
    try:
        again = _shapes(rebuilt(network))
    except Exception as error:  # whatever somebody's own constructor raises
        raise ConfigError(
            f"model.network {name}: can't be built again from its 'arguments' {dict(network.arguments)} "
            f"({type(error).__name__}: {error}); its constructor must take them all by name"
        ) from error
    ours = _shapes(network)
    different = sorted(key for key in ours.keys() | again.keys() if ours.get(key) != again.get(key))
    if different:
        first = different[0]
        raise ConfigError(
            f"model.network {name}: built again from its 'arguments' it has other weights: {first} is "
            f"{again.get(first, 'missing')} instead of {ours.get(first, 'missing')}; put whatever decides its layers "
            "into 'arguments'"
        )


def _is_importable(kind: type) -> bool:
    if kind.__module__ == "__main__" or "." in kind.__qualname__:
        return False
    try:
        return getattr(importlib.import_module(kind.__module__), kind.__name__, None) is kind
    except ImportError:
        return False


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return type(value) in PLAIN


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Shape by name of everything in ``state_dict``; None for what is no tensor."""
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in network.state_dict().items()
    }
