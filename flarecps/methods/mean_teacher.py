"""Mean teacher (Tarvainen & Valpola 2017), also with the mask of uncertain voxels of UA-MT (Yu et al., MICCAI 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flarecps.losses import LinearRamp, Ramp
from flarecps.losses.ranks import average_of_ranks
from flarecps.methods.averaged_teacher import AveragedTeacher
from flarecps.methods.drawing import gaussian_noise
from flarecps.methods.method import AnyLoss, AnyRamp, Batch, Losses


class MeanTeacher(AveragedTeacher):
    """A pupil that gives noisy unlabelled patches the probabilities that its average gives them under other noise.

    L = Lsup + λ Σ m ‖p − p̄‖² / Σ m over the voxels of unlabelled patches, p the pupil's and p̄ the teacher's
    probabilities at full resolution. m is 1; with ``uncertainty_passes`` it is 1 where the entropy of the teacher's
    mean over so many noisy passes is below H, which rises from ¾ to all of the largest there can be, ln(classes).

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
        ramp: λ by epoch; by default up to 0.1 in 500 epochs.
        decay: of the teacher's weights, per step.
        noise: SD of the noise on unlabelled patches, in SDs of the plan's intensities; cut off at twice itself.
        uncertainty_passes: of the teacher, that judge its uncertainty (Yu et al.: 8); 0 trusts every voxel.
        uncertainty_length: epochs in which H rises.
    """

    def __init__(
        self,
        loss: AnyLoss | None = None,
        ramp: AnyRamp | None = None,
        decay: float = 0.99,
        noise: float = 0.1,
        uncertainty_passes: int = 0,
        uncertainty_length: int = 500,
    ) -> None:
        super().__init__(loss, decay)
        self.ramp: Ramp = ramp or LinearRamp(final=0.1)
        self.noise = noise
        self.uncertainty_passes = uncertainty_passes
        self.threshold = LinearRamp(0.25, uncertainty_length)

    def weight(self, epoch: int) -> float:
        return self.ramp(epoch)

    def step_cost(self, patches: Mapping[str, int], epoch: int) -> float:
        more = self.uncertainty_passes * patches["unlabelled"] / 3 if self.weight(epoch) else 0
        return super().step_cost(patches, epoch) + more

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        (pupil,) = siblings
        weight, images = self.weight(epoch), batch["labelled"]["image"]
        labelled = len(images)
        if weight:
            clean = batch["unlabelled"]["image"]
            generators = self.generators(len(clean))
            images = torch.cat([images, self.noisy(clean, generators)])
        outputs = pupil(images)
        (supervised,) = self.supervised_losses([outputs], batch["labelled"])
        distance = torch.zeros_like(supervised)
        if weight:
            with torch.no_grad():
                taught = self.probabilities(clean, generators)
                certain = self.certain(clean, generators, epoch)
            squares = (_softmax(outputs[0][labelled:]) - taught).square().sum(1)
            distance = (
                squares.mean() if certain is None else (squares * certain).sum() / average_of_ranks(certain.sum())
            )
        return Losses(supervised + weight * distance, [supervised], [distance], [outputs[0].detach()], labelled)

    def noisy(self, patches: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The patches with noise of their own."""
        return patches + self.noise * gaussian_noise(patches, generators).clamp_(-2, 2)

    def probabilities(self, patches: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The teacher's probabilities (B, classes, *patch) of noisy ``patches``."""
        return _softmax(self.teacher(self.noisy(patches, generators))[0])

    def inference_networks(self, siblings: nn.ModuleList) -> list[nn.Module]:
        return [self.teacher]

    def certain(self, patches: Tensor, generators: list[torch.Generator], epoch: int) -> Tensor | None:
        """m (B, *patch) of 0 and 1; None where every voxel is trusted."""
        if not self.uncertainty_passes:
            return None
        mean = torch.stack([self.probabilities(patches, generators) for _ in range(self.uncertainty_passes)]).mean(0)
        entropy = -torch.special.xlogy(mean, mean).sum(1)
        threshold = (0.75 + self.threshold(epoch)) * math.log(mean.shape[1])
        return (entropy < threshold).to(mean.dtype)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
