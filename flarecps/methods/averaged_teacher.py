"""Methods with a teacher whose weights are the exponential moving average (EMA) of its pupil's."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from flarecps.errors import ConfigError
from flarecps.methods.drawing import DrawingMethod
from flarecps.methods.method import AnyLoss
from flarecps.planning.plan import Plan


class AveragedTeacher(DrawingMethod):
    """One network, the pupil, and a teacher of the same architecture: w̄ ← d w̄ + (1 − d) w after every step.

    In the first steps d is 1 − 1 / (steps + 1), so that the first weights do not linger (Tarvainen & Valpola 2017).

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
        decay: d.
    """

    streams = ("labelled", "unlabelled")
    extra_networks = 0.2
    teacher: nn.Module

    def __init__(self, loss: AnyLoss | None, decay: float) -> None:
        super().__init__(loss)
        if not 0 <= decay < 1:
            raise ConfigError(f"decay {decay}: expected a number from 0 to below 1, e.g. 0.99")
        self.decay = decay

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        super().start(siblings, plan)
        self.teacher = copy.deepcopy(siblings[0])

    def step_cost(self, patches: Mapping[str, int], epoch: int) -> float:
        """The pupil learns from all patches, the teacher labels the unlabelled ones."""
        return super().step_cost(patches, epoch) + (patches["unlabelled"] / 3 if self.weight(epoch) else 0)

    @torch.no_grad()
    def after_step(self, siblings: nn.ModuleList) -> None:
        super().after_step(siblings)
        decay = min(self.decay, 1 - 1 / (self.steps + 1))
        torch._foreach_lerp_(list(self.teacher.parameters()), list(siblings[0].parameters()), 1 - decay)
