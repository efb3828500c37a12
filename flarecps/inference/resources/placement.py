"""Where windows are computed and how many at a time, and the way down when a GPU's memory does not suffice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from flarecps.errors import ConfigError

CPU = torch.device("cpu")
# Voxels that go through the network at once, by device: enough to keep it busy, little beside the activations.
BATCH_VOXELS = {"cpu": 2**18, "cuda": 2**22}


def windows_at_a_time(patch_voxels: Sequence[int], device: torch.device) -> int:
    """How many windows of this size suit the device, at least 1.

    Small windows one by one waste a GPU, and a CPU, too: PyTorch convolves one sample of few channels by a road five
    times slower than that of two (measured on 32³ voxels and 8 channels, one thread, PyTorch 2.13).

    >>> windows_at_a_time((32, 32, 32), CPU), windows_at_a_time((112, 160, 128), CPU)
    (8, 1)
    """
    return max(1, BATCH_VOXELS.get(device.type, BATCH_VOXELS["cuda"]) // math.prod(patch_voxels))


@dataclass(frozen=True)
class Placement:
    """How the windows of a scan are computed: none of it changes labels beyond rounding.

    ``batch`` windows at a time go through the networks on ``device``; the sums over windows are kept on ``sums_on``,
    with ``half_sums`` in half precision.
    """

    batch: int = 1
    device: torch.device = field(default=CPU)
    sums_on: torch.device = field(default=CPU)
    half_sums: bool = False

    def __str__(self) -> str:
        precision = "half" if self.half_sums else "single"
        windows = "1 window" if self.batch == 1 else f"{self.batch} windows"
        return f"{windows} at a time on {self.device}, sums in {precision} precision on {self.sums_on}"


def placements(batch: int, device: torch.device, half_sums: bool) -> tuple[Placement, ...]:
    """The placement wanted and those below it, each needing less GPU memory than the one before.

    Half as many windows at a time, down to one; then the sums move to RAM; then the networks do.

    >>> [str(one) for one in placements(2, torch.device("cuda"), True)][-1]
    '1 window at a time on cpu, sums in single precision on cpu'
    """
    chain = [Placement(batch, device, device, half_sums)]
    while batch > 1:
        batch //= 2
        chain.append(Placement(batch, device, device, half_sums))
    if device.type != "cpu":
        chain += [Placement(1, device, CPU), Placement(1, CPU, CPU)]
    return tuple(chain)


class FallbackChain:
    """The placement that is stood on now, of several; ``fall_back`` takes the next one."""

    def __init__(self, steps: Sequence[Placement]) -> None:
        self.steps = tuple(steps)
        self.place = 0

    @property
    def now(self) -> Placement:
        """The present placement."""
        return self.steps[self.place]

    def fall_back(self) -> None:
        """Take the next placement, or raise ConfigError when this was the last."""
        if self.place + 1 == len(self.steps):
            raise ConfigError(
                f"device {self.now.device}: not enough memory for one window, even with {self.now}; close other "
                "programs on it, or use --device cpu"
            )
        self.place += 1
        if self.now.device.type == "cuda" or self.now.sums_on.type == "cuda":
            torch.cuda.empty_cache()
