"""Methods and their parts as a user would write them, in a module of their own: what the tests of methods share."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flarecps.losses import LinearRamp, PseudoLabelFilter
from flarecps.methods import Batch, Losses, Method, Supervised


class MeanTeacher(Method):
    """The pupil sees noisy images; on unlabelled ones it follows an EMA of itself, which sees them clean.

    Args:
        loss: Lsup's loss at one scale.
        decay: of the teacher's weights, per step.
        noise: standard deviation of what is added to the pupil's images.
        ramp: λ by epoch.
    """

    streams = ("labelled", "unlabelled")
    extra_networks = 0.2

    def __init__(
        self, loss: nn.Module | None = None, decay: float = 0.9, noise: float = 0.1, ramp: LinearRamp | None = None
    ) -> None:
        super().__init__(loss)
        self.decay, self.noise = decay, noise
        self.ramp = ramp or LinearRamp(length=2)
        self.steps = 0

    def start(self, siblings: nn.ModuleList, plan) -> None:
        super().start(siblings, plan)
        self.teacher = copy.deepcopy(siblings[0])

    def weight(self, epoch: int) -> float:
        return self.ramp(epoch)

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        (pupil,) = siblings
        labelled, weight = batch["labelled"]["image"], self.weight(epoch)
        clean = torch.cat([labelled, batch["unlabelled"]["image"]]) if weight else labelled
        generator = torch.Generator().manual_seed(self.steps)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean)
        outputs = pupil(clean + self.noise * noise)
        (supervised,) = self.supervised_losses([outputs], batch["labelled"])
        distance = torch.zeros_like(supervised)
        if weight:
            with torch.no_grad():
                target = self.teacher(clean[len(labelled) :])[0].softmax(1)
            distance = F.mse_loss(outputs[0][len(labelled) :].softmax(1), target)
        finest = [outputs[0].detach()]
        return Losses(supervised + weight * distance, [supervised], [distance], finest, len(labelled))

    @torch.no_grad()
    def after_step(self, siblings: nn.ModuleList) -> None:
        self.steps += 1
        for mine, theirs in zip(self.teacher.parameters(), siblings[0].parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)

    def inference_networks(self, siblings: nn.ModuleList) -> list[nn.Module]:
        return [self.teacher]

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state


class WithAnotherNetwork(Supervised):
    """Says that a step holds one network's worth of memory more."""

    extra_networks = 1.0


class TrustedClasses(PseudoLabelFilter):
    """A filter of a user's own: trusts the voxels that the teacher gives one of these labels."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def trusted(
        self, teacher: Sequence[Tensor], teacher_labels: Sequence[Tensor], student_labels: Sequence[Tensor]
    ) -> list[Tensor]:
        return [torch.isin(scale, torch.tensor(self.labels, device=scale.device)) for scale in teacher_labels]


class Squared(nn.Module):
    """A loss of a user's own."""

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(
        self, logits: Tensor, labels: Tensor, annotated: Tensor | None = None, trusted: Tensor | None = None
    ) -> Tensor:
        wanted = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)
        return ((logits.softmax(1) - wanted).abs() ** self.power).mean()


class Steps:
    """A ramp of a user's own."""

    def __init__(self, top: float) -> None:
        self.top = top

    def __call__(self, epoch):
        return self.top * (epoch > 0)
