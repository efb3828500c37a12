"""Bidirectional copy-paste, BCP (Bai et al., CVPR 2023): labelled and unlabelled patches pasted into each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flarecps.errors import ConfigError
from flarecps.losses import downsampled_labels
from flarecps.methods.averaged_teacher import AveragedTeacher
from flarecps.methods.cross_pseudo import pseudo_labels
from flarecps.methods.method import AnyLoss, Batch, Losses
from flarecps.planning.plan import Plan

EDGE = 2 / 3  # of the pasted cuboid, as a share of each edge of the patch


class BidirectionalCopyPaste(AveragedTeacher):
    """A pupil that sees labelled patches with an unlabelled cuboid in them, and unlabelled ones with a labelled cuboid.

    M is 0 in a random cuboid and 1 elsewhere: x₁ = l_a M + u_a (1 − M), x₂ = u_b M + l_b (1 − M), a and b the halves of
    a batch. The teacher labels u_a and u_b. L = ½ Σ over x₁, x₂ of (L on the true labels' voxels + w L on the
    pseudo-labels' voxels). Before, labelled halves are pasted into each other, with L on the voxels of both; both ways,
    where Bai et al. have x₁ alone, so that a step has as many patches.

    Args:
        loss: L at one scale; by default Dice + cross-entropy.
        pretrained_epochs: in which only labelled patches are pasted, into each other.
        unlabelled_weight: w.
        decay: of the teacher's weights, per step.
    """

    def __init__(
        self,
        loss: AnyLoss | None = None,
        pretrained_epochs: int = 0,
        unlabelled_weight: float = 0.5,
        decay: float = 0.99,
    ) -> None:
        super().__init__(loss, decay)
        self.pretrained_epochs = pretrained_epochs
        self.unlabelled_weight = unlabelled_weight

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        super().start(siblings, plan)
        for stream in self.streams:
            _check_halves(plan.global_batch.get(stream, 2), f"data.global_batch.{stream}")
        if len(set(plan.global_batch.values())) > 1:
            raise ConfigError(f"data.global_batch {plan.global_batch}: copy-paste wants as many patches of each kind")

    def weight(self, epoch: int) -> float:
        return self.unlabelled_weight if epoch >= self.pretrained_epochs else 0.0

    def step_cost(self, patches: Mapping[str, int], epoch: int) -> float:
        """The pupil sees as many pasted patches as there are labelled ones; the teacher labels the unlabelled ones."""
        return float(patches["labelled"] + (patches["unlabelled"] / 3 if self.weight(epoch) else 0))

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        (pupil,) = siblings
        weight, labelled = self.weight(epoch), batch["labelled"]
        a, b = _halves(labelled["image"])
        mask = self.drawn_mask(a)
        other_mask = mask if weight else ~mask
        others = _halves(batch["unlabelled"]["image"]) if weight else (b, a)
        outputs = pupil(torch.cat([torch.where(mask, a, others[0]), torch.where(other_mask, others[1], b)]))
        x1, x2 = [scale[: len(a)] for scale in outputs], [scale[len(a) :] for scale in outputs]
        supervised = self.true_loss(x1, labelled, 0, mask) + self.true_loss(x2, labelled, 1, ~other_mask)
        pseudo = torch.zeros_like(supervised)
        if weight:
            with torch.no_grad():
                taught = _halves(pseudo_labels(self.teacher(batch["unlabelled"]["image"])[:1])[0])
            pseudo = self.pseudo_loss(x1, taught[0], ~mask) + self.pseudo_loss(x2, taught[1], mask)
        else:
            supervised = supervised + self.true_loss(x1, labelled, 1, ~mask) + self.true_loss(x2, labelled, 0, ~mask)
        supervised, pseudo = supervised / 2, pseudo / 2
        return Losses(supervised + weight * pseudo, [supervised], [pseudo], [outputs[0].detach()], len(a))

    def true_loss(self, outputs: Sequence[Tensor], labelled: Mapping[str, Tensor], half: int, where: Tensor) -> Tensor:
        """L of half of the labelled patches on the voxels ``where`` they stand in the pasted ones."""
        annotated = labelled.get("annotated")
        known = None if annotated is None else _halves(annotated)[half]
        targets, trusted = _scales(_halves(labelled["labels"][:, 0])[half], where, outputs)
        return self.loss(outputs, targets, known, trusted)

    def pseudo_loss(self, outputs: Sequence[Tensor], labels: Tensor, where: Tensor) -> Tensor:
        """L of the teacher's labels on the voxels ``where`` their patches stand in the pasted ones."""
        targets, trusted = _scales(labels, where, outputs)
        return self.loss(outputs, targets, None, trusted)

    def drawn_mask(self, patches: Tensor) -> Tensor:
        """M of this step, bool (B, 1, *patch): false in one cuboid, of ⅔ of each edge, at a place of its own."""
        masks = []
        for generator in self.generators(len(patches)):
            mask = torch.ones(patches.shape[2:], dtype=torch.bool)
            sizes = [int(size * EDGE) for size in mask.shape]
            lower = [int(torch.randint(size - edge + 1, (), generator=generator))
                     for size, edge in zip(mask.shape, sizes, strict=True)]  # fmt: skip
            mask[tuple(slice(start, start + edge) for start, edge in zip(lower, sizes, strict=True))] = False
            masks.append(mask)
        return torch.stack(masks)[:, None].to(patches.device, non_blocking=True)


def _check_halves(patches: int, name: str) -> None:
    if patches % 2:
        raise ConfigError(
            f"{name}: {patches}; copy-paste works on halves of a batch: give every process an even number"
        )


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    _check_halves(len(values), "patches of a process")
    return values[: len(values) // 2], values[len(values) // 2 :]


def _scales(labels: Tensor, where: Tensor, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (B, *patch) and the mask ``where`` (B, 1, *patch) at each output's scale."""
    shapes = [scale.shape[2:] for scale in outputs]
    return [downsampled_labels(labels, one) for one in shapes], [downsampled_labels(where[:, 0], one) for one in shapes]
