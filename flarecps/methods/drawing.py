"""Methods whose steps draw random numbers, and what they draw for patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flarecps.losses.ranks import rank, rank_count
from flarecps.methods.method import Method
from flarecps.planning.plan import Plan


class DrawingMethod(Method):
    """A method that draws random numbers: by the steps taken and a patch's place in the global batch.

    So neither the number of ranks nor a resumed training changes what is drawn.
    """

    steps = 0

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        super().start(siblings, plan)
        self.steps = 0

    def generators(self, patches: int) -> list[torch.Generator]:
        """A generator for each of this process's patches of one stream in this step.

        Of a global batch rank r has the r-th patch and every ``ranks``-th from there, as ``data.draws`` deals them.
        """
        places = [rank() + number * rank_count() for number in range(patches)]
        return [torch.Generator().manual_seed((self.steps << 16) + place) for place in places]

    def after_step(self, siblings: nn.ModuleList) -> None:
        self.steps += 1

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state


def gaussian_noise(patches: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise of SD 1 for every patch of (B, C, *patch), each by its own generator."""
    drawn = [torch.randn(patches.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(patches, non_blocking=True)


def jittered(patches: Tensor, jitter: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Patches (B, C, *patch) of other contrast and brightness, and with noise, each by its own generator.

    Contrast ×(1 ± jitter), brightness ± jitter, noise of an SD up to half of it; uniform, in the images' own units.
    """
    if not jitter:
        return patches
    drawn = torch.stack([torch.rand(3, generator=generator) * 2 - 1 for generator in generators])
    contrast, brightness, noise = (
        (jitter * drawn.to(patches)).view(len(patches), 3, *(1,) * (patches.ndim - 1)).unbind(1)
    )
    return patches * (1 + contrast) + brightness + noise / 2 * gaussian_noise(patches, generators)
