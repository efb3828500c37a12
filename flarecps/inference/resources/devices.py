"""The device that networks run on."""

from __future__ import annotations

import torch
from torch import nn

from flarecps.errors import ConfigError

ALIKE = 1e-2  # largest difference of logits of size 1, between devices that round and add up differently


def torch_device(name: torch.device | str) -> torch.device:
    """The device called ``name``; ``"auto"`` is a GPU if there is one. ConfigError when it is not there.

    Of Apple's GPUs (``"mps"``) ``"auto"`` takes those that compute a network's layers as the CPU does: PyTorch has 3D
    layers there in some versions only. A CUDA GPU always has its index.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available() and computes_as_the_cpu(torch.device("mps")):
            name = "mps"
    try:
        device = with_index(torch.device(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if "out of memory" in str(error):
            raise ConfigError(
                f"device '{name}': it is there, but its memory is full; close other programs on it (nvidia-smi), or "
                "use another card (cuda:N) or --device cpu"
            ) from error
        raise ConfigError(f"device '{name}': not available here; expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "mps" and not computes_as_the_cpu(device):
        raise ConfigError(
            "device 'mps': this PyTorch lacks 3D layers there, or gets other numbers than on the CPU; use --device "
            "cpu, or a newer PyTorch"
        )
    return device


def with_index(device: torch.device) -> torch.device:
    """``device``, a CUDA GPU by its index: limits are set for one card, and ``torch.cuda`` won't guess which."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def computes_as_the_cpu(device: torch.device) -> bool:
    """Whether a small network of the kinds of layers used here (3D) runs on ``device``, with the CPU's numbers."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.InstanceNorm3d(4, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(4, 4, 3, stride=2, padding=1),
        nn.ConvTranspose3d(4, 3, 2, stride=2),
    )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        image = torch.randn((1, 2, 8, 8, 8), generator=generator)
        expected = layers(image)
        try:
            found = layers.to(device)(image.to(device)).cpu()
        except RuntimeError:  # NotImplementedError is one
            return False
    return bool(torch.allclose(found, expected, rtol=ALIKE, atol=ALIKE))
