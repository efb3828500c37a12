"""How the siblings are executed: memory layout and compilation, neither of which changes what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from flarecps.errors import ConfigError
from flarecps.networks.blocks import ConvolutionBlock

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
MODES = ("default", "max-autotune-no-cudagraphs")  # the others replay CUDA graphs, which own the networks' outputs


def set_memory_format(networks: Iterable[nn.Module], dimensions: int, channels_last: bool) -> None:
    """Give the weights of ``networks``, in place, and from now on the images that they see, channels innermost."""
    if not channels_last:
        return
    memory_format = _CHANNELS_LAST[dimensions]
    for network in networks:
        network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs leave it out
        network.register_forward_pre_hook(partial(_laid_out, memory_format))


def _laid_out(memory_format: torch.memory_format, network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.to(memory_format=memory_format) for one in inputs)


def keeps_layout(network: nn.Module) -> bool:
    """Whether its norms can be ``flarecps.kernels``': of one's own networks, those made of ``ConvolutionBlock``."""
    return _first_block(network) is not None


def _first_block(network: nn.Module) -> ConvolutionBlock | None:
    return next((layer for layer in network.modules() if isinstance(layer, ConvolutionBlock)), None)


def pad_image_channels(networks: Iterable[nn.Module], to: int) -> None:
    """Let the first convolution of ``networks`` see channels of zeros beside the image's, ``to`` in all.

    Its weights get as many zeros while it computes, so outputs, gradients and what is stored stay the same; a
    convolution of one channel falls on slow kernels of cuDNN. Networks that are not made of ``ConvolutionBlock`` stay
    as they are.
    """
    for network in networks:
        first = _first_block(network)
        if first is not None:
            first.padded_channels = to


def compile_in_place(networks: Iterable[nn.Module], mode: bool | str) -> None:
    """Let every network be compiled when it is first called; ``mode`` is one of torch.compile's, or true for default.

    The names in ``state_dict`` stay as they are, so a checkpoint does not tell whether its networks were compiled.
    Raises ``ConfigError`` for a mode that does not fit two siblings whose outputs are needed at once.
    """
    if mode is False:
        return
    name = "default" if mode is True else str(mode)
    if name not in MODES:
        raise ConfigError(f"model.compile is '{name}'; expected false, true or '{MODES[-1]}'")
    for network in networks:
        network.compile(mode=name, dynamic=False)  # training and validation each have one shape of their own
