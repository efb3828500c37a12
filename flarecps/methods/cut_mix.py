"""Cross-pseudo supervision on mixed patches: CutMix as in Chen et al. (CVPR 2021, section 3.3), in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flarecps.errors import ConfigError
from flarecps.losses import CrossEntropy, DeepSupervision, LinearRamp, Ramp, downsampled_labels
from flarecps.methods.cross_pseudo import pseudo_labels
from flarecps.methods.drawing import DrawingMethod, jittered
from flarecps.methods.method import AnyLoss, AnyRamp, Batch, Losses, outputs_of
from flarecps.planning.plan import Plan

BOXES = 3  # of a mask (French et al., BMVC 2020)


class CrossPseudoCutMix(DrawingMethod):
    """Two siblings that teach each other on mixed patches: teachers see them whole and clean, pupils mixed and noisier.

    A mask M of three boxes mixes two unlabelled patches into u₀(1 − M) + u₁M and u₁(1 − M) + u₀M. The labels that a
    sibling gives to u₀ and u₁ are mixed alike and teach the other one: L = Lsup + λ Lcps, Lcps on mixed patches alone.
    The pupils' image differs from their teachers', so what they share by looking at the same thing is no agreement.

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
        ramp: λ by epoch; by default the paper's.
        pseudo_label_loss: Lcps's loss at one scale; by default cross-entropy alone.
        mixed_share: smallest and largest volume of the three boxes together, as a share of the patch.
        jitter: of the mixed patches: contrast ×(1 ± jitter), brightness ± jitter, Gaussian noise of an SD up to half
            of it, in SDs of the plan's intensities; 0 leaves them as they are.
        equal_steps: divide L by 1 + λ, so that a step stays as large as a supervised one.
        siblings_in_turn: hold one sibling's feature maps at a time: about half of the memory, a sixth more time, the
            same gradients.
    """

    streams = ("labelled", "unlabelled")
    sibling_count = 2

    def __init__(
        self,
        loss: AnyLoss | None = None,
        ramp: AnyRamp | None = None,
        pseudo_label_loss: AnyLoss | None = None,
        mixed_share: tuple[float, float] = (0.25, 0.5),
        jitter: float = 0.25,
        equal_steps: bool = False,
        siblings_in_turn: bool = False,
    ) -> None:
        super().__init__(loss)
        self.ramp: Ramp = ramp or LinearRamp()
        self.pseudo_label_loss = DeepSupervision(pseudo_label_loss or CrossEntropy())
        self.mixed_share = tuple(mixed_share)
        if not 0 < self.mixed_share[0] <= self.mixed_share[1] < 1:
            raise ConfigError(f"mixed_share {list(mixed_share)}: expected two shares, 0 < smallest ≤ largest < 1")
        self.jitter = jitter
        self.equal_steps = equal_steps
        self.siblings_in_turn = siblings_in_turn

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        super().start(siblings, plan)
        _check_pairs(plan.global_batch.get("unlabelled", 2), "data.global_batch.unlabelled")

    def weight(self, epoch: int) -> float:
        return self.ramp(epoch)

    def step_cost(self, patches: Mapping[str, int], epoch: int) -> float:
        """Both siblings learn from all patches, and both label the unlabelled ones before."""
        teachers = 2 / 3 * patches["unlabelled"] if self.weight(epoch) else 0
        return super().step_cost(patches, epoch) + teachers

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        weight = self.weight(epoch)
        images = batch["labelled"]["image"]
        labelled = len(images)
        if not weight:
            outputs = outputs_of(siblings, images, self.siblings_in_turn)
            crossed = [torch.zeros((), device=images.device) for _ in siblings]
        else:
            clean = batch["unlabelled"]["image"]
            generators = self.generators(len(clean))
            mask = self.drawn_mask(clean, generators)
            with torch.no_grad():
                taught = [[mixed(one, mask) for one in pseudo_labels(sibling(clean))] for sibling in siblings]
            seen = jittered(mixed(clean, mask), self.jitter, generators)
            outputs = outputs_of(siblings, torch.cat([images, seen]), self.siblings_in_turn)
            crossed = [
                self.pseudo_label_loss([scale[labelled:] for scale in pupil], labels)
                for pupil, labels in zip(outputs, reversed(taught), strict=True)
            ]
        supervised = self.supervised_losses(outputs, batch["labelled"])
        total = torch.stack(supervised).sum() + weight * torch.stack(crossed).sum()
        if self.equal_steps:
            total = total / (1 + weight)
        return Losses(total, supervised, crossed, [scales[0].detach() for scales in outputs], labelled)

    def drawn_mask(self, patches: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """M of this step, bool (B, 1, *patch): patches j and j + B/2, which are mixed, share it.

        They are on one rank however many there are.
        """
        _check_pairs(len(patches), "unlabelled patches of a process")
        masks = [box_mask(patches.shape[2:], self.mixed_share, one) for one in generators[: len(patches) // 2]]
        return torch.stack(masks + masks)[:, None].to(patches.device, non_blocking=True)


def _check_pairs(patches: int, name: str) -> None:
    if patches % 2:
        raise ConfigError(f"{name}: {patches}; CutMix mixes two of them, so give every process an even number")


def box_mask(shape: torch.Size, share: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """M, bool of ``shape``: true in three boxes of random proportions and places, of a third of a drawn share each.

    Boxes may overlap; M then covers less than the share.
    """
    covered = share[0] + (share[1] - share[0]) * float(torch.rand((), generator=generator))
    mask = torch.zeros(shape, dtype=torch.bool)
    for _ in range(BOXES):
        stretch = torch.rand(len(shape), generator=generator) - 0.5
        edges = (covered / BOXES) ** (1 / len(shape)) * torch.exp(stretch - stretch.mean())
        sizes = [min(size, max(1, round(size * edge))) for size, edge in zip(shape, edges.tolist(), strict=True)]
        lower = [int(torch.randint(size - edge + 1, (), generator=generator))
                 for size, edge in zip(shape, sizes, strict=True)]  # fmt: skip
        mask[tuple(slice(first, first + size) for first, size in zip(lower, sizes, strict=True))] = True
    return mask


def mixed(patches: Tensor, mask: Tensor) -> Tensor:
    """Images (B, C, *patch) or labels (B, *scale), each with patch j + B/2 in its place where ``mask`` is true.

    At a coarser scale a voxel of the mask is the one nearest to its centre, as for labels.
    """
    if patches.ndim < mask.ndim:
        mask = downsampled_labels(mask[:, 0], patches.shape[1:])
    return torch.where(mask, patches.roll(len(patches) // 2, 0), patches)
