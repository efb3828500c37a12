"""Are the pseudo-labels sound? Agreement, volume and entropy per class, and what a vanished class does to λ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Integer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from flarecps import metric_names
from flarecps.anatomy import organs_of
from flarecps.dice import dice_coefficient
from flarecps.errors import visible
from flarecps.losses.label_counts import counted_labels
from flarecps.planning.plan import Plan
from flarecps.training.ranks import warn

OnCollapse = Literal["warn", "hold"]
COMPARED = 2  # siblings, of more the first
ENTROPY_EVERY = 2  # voxels along each axis: an eighth of a volume tells a mean entropy as well as all of it


def vanished(shares: Float[Tensor, "siblings klass"], prior: Float[Tensor, " klass"], below: float) -> list[int]:
    """Classes whose share is less than ``below`` times their prior in either sibling; never background.

    A class without a prior (0: in no labelled scan) can't vanish.

    >>> vanished(torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([0.8, 0.1, 0.1]), below=0.01)
    [2]
    """
    gone = (shares < below * prior).any(0) & (prior > 0)
    return [int(label) for label in gone.nonzero() if label > 0]


def voxel_entropy(logits: Float[Tensor, "batch klass *spatial"]) -> Float[Tensor, " batch *spatial"]:
    """Entropy of softmax over the classes, divided by its greatest value: 0 is certain, 1 knows nothing.

    >>> voxel_entropy(torch.zeros(1, 4, 1)).item()
    1.0
    """
    log_p = torch.log_softmax(logits.float(), 1)
    return -(log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])


def class_priors(plan: Plan) -> Float[Tensor, " klass"]:
    """Each class's share of the labelled scans' voxels, by the plan's fingerprint; 0 where it says nothing."""
    structures = plan.fingerprint.get("structures", {})
    prior = torch.zeros(plan.class_count, dtype=torch.float64)
    for name, label in plan.labels.items():
        if label:
            prior[label] = structures.get(name, {}).get("share_of_labelled_voxels", 0.0)
    return prior


class PseudoLabelCounts(NamedTuple):
    """What one batch's unlabelled patches tell, counted before the backward pass, which then needs no logits."""

    confusion: Integer[Tensor, "klass klass"]  # voxels by label of sibling 1 (row) and of sibling 2 (column)
    entropy: list[Tensor]  # by sibling: summed over the voxels that it calls a class (classes,)
    voxels: list[Tensor]  # by sibling: how many these are


@torch.no_grad()
def pseudo_label_counts(logits: Sequence[Float[Tensor, "batch klass *spatial"]]) -> PseudoLabelCounts | None:
    """Counts of the finest logits of the same unlabelled patches by each sibling, the first two of more; None without
    patches.
    """
    classes = logits[0].shape[1]
    if not len(logits[0]):
        return None
    logits = logits[:COMPARED]
    labels = [one.argmax(1) for one in logits]
    pairs = counted_labels((labels[0] * classes + labels[-1]).flatten(), classes**2)
    axes = [slice(None, None, ENTROPY_EVERY)] * (labels[0].ndim - 1)
    counts = PseudoLabelCounts(pairs.view(classes, classes), [], [])
    for one, called_so in zip(logits, labels, strict=True):
        entropy = voxel_entropy(one[(slice(None), slice(None), *axes)])
        known = torch.arange(classes, device=entropy.device)
        called = (called_so[(slice(None), *axes)].flatten()[:, None] == known).to(entropy.dtype)
        counts.entropy.append(entropy.flatten() @ called)
        counts.voxels.append(called.sum(0))
    return counts


class PseudoLabelHealth(Metric):
    """What the siblings make of the unlabelled patches since the last reset, exact over any number of ranks.

    Two siblings are compared; of more, the first two. One alone agrees with nobody.
    """

    full_state_update = False
    confusion: Tensor
    entropy: Tensor  # of both siblings
    entropy_voxels: Tensor

    def __init__(self, classes: int, siblings: int = 2) -> None:
        super().__init__()
        self.seen = min(siblings, COMPARED)
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("entropy", torch.zeros(classes, dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("entropy_voxels", torch.zeros(classes, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, counts: PseudoLabelCounts) -> None:
        """Add one batch."""
        self.confusion += counts.confusion
        for entropy, voxels in zip(counts.entropy, counts.voxels, strict=True):
            self.entropy += entropy
            self.entropy_voxels += voxels

    def compute(self) -> dict[str, Tensor]:
        """By class: Dice between the siblings, ``agreement`` (C,), each one's share of the voxels, ``shares``
        (siblings, C), and mean ``entropy`` (C,); nan where there are no voxels.
        """
        counts = self.confusion.double()
        volumes = torch.stack([counts.sum(1), counts.sum(0)])
        dice = dice_coefficient(counts.diagonal(), volumes.sum(0))
        return {
            "agreement": dice if self.seen > 1 else torch.full_like(self.entropy, math.nan),
            "shares": (volumes / counts.sum())[: self.seen],
            "entropy": self.entropy / self.entropy_voxels,
        }


def named_health(health: dict[str, Tensor], prior: Tensor, labels: dict[str, int]) -> dict[str, float]:
    """The health of every structure under its logged names; what is undefined is left out."""
    named = {}
    for organ in organs_of(labels):
        named[metric_names.health_agreement(organ.name)] = float(health["agreement"][organ.id])
        named[metric_names.health_entropy(organ.name)] = float(health["entropy"][organ.id])
        if prior[organ.id] > 0:
            for number, share in enumerate(health["shares"][:, organ.id], start=1):
                named[metric_names.health_volume(number, organ.name)] = float(share / prior[organ.id])
    return {name: value for name, value in named.items() if not math.isnan(value)}


class CollapseWatch(nn.Module):
    """Remembers which classes have vanished from the pseudo-labels, and for how many epochs that held λ back.

    What it decides is equal on all ranks, because it is told numbers that are, and kept in the checkpoint.
    """

    def __init__(self, on_collapse: OnCollapse, labels: dict[str, int]) -> None:
        super().__init__()
        self.on_collapse = on_collapse
        self.names = {label: name for name, label in labels.items()}
        self.vanished: list[int] = []
        self.held_epochs = 0

    def update(self, vanished: Sequence[int], epoch: int) -> None:
        """Take note of the classes that are vanished at the end of ``epoch``; says what is new."""
        gone = [label for label in vanished if label not in self.vanished]
        back = [label for label in self.vanished if label not in vanished]
        self.vanished = list(vanished)
        hold = self.on_collapse == "hold"
        if gone:
            then = "λ is held until they recover" if hold else "model.on_collapse: hold would keep λ from rising"
            warn(f"epoch {epoch}: pseudo-labels of unlabelled patches hold (almost) no {self._named(gone)}; {then}")
        if back:
            still = f"; still missing: {self._named(self.vanished)}" if self.vanished else ""
            rank_zero_info(visible(f"epoch {epoch}: pseudo-labels hold {self._named(back)} again{still}"))
        if hold and self.vanished:
            self.held_epochs += 1

    def _named(self, labels: Sequence[int]) -> str:
        return ", ".join(self.names[label] for label in labels)

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"vanished": list(self.vanished), "held_epochs": self.held_epochs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.vanished, self.held_epochs = list(state["vanished"]), int(state["held_epochs"])
