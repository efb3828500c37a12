"""Whole scans during training: labels of each sibling and of their average, and DSC per organ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from flarecps import metric_names
from flarecps.anatomy import Organ, organs_of
from flarecps.dice import dice_coefficient
from flarecps.inference.resources.placement import windows_at_a_time
from flarecps.inference.sliding_window import predict_probabilities
from flarecps.planning.plan import Plan


@torch.no_grad()
def sibling_labels(siblings: Iterable[nn.Module], image: Tensor, plan: Plan, step: float) -> dict[str, Tensor]:
    """Labels ``(slice, row, column)`` of a whole scan ``(channel, slice, row, column)`` on the network's grid.

    ``siblings`` map patches to full-resolution logits.

    Keys are ``sibling_1``, ``sibling_2`` and ``average`` (of the siblings' probabilities); with one network
    ``sibling_1`` and ``average`` are the same.
    """
    predicted = {}
    total: Tensor | None = None
    batch = windows_at_a_time(plan.patch_voxels, image.device)
    for number, sibling in enumerate(siblings, start=1):
        probabilities = predict_probabilities(
            sibling, image, plan.patch_voxels, plan.class_count, step, batch, image.device
        )
        predicted[f"sibling_{number}"] = probabilities.argmax(0)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    predicted["average"] = total.argmax(0)
    return predicted


@torch.no_grad()
def organ_dsc(
    predicted: dict[str, Tensor], reference: Tensor, organs: Sequence[Organ], annotated: Tensor | None = None
) -> dict[tuple[str, str], float]:
    """DSC of one scan by (source, organ name), all arrays ``(slice, row, column)``.

    An organ that neither prediction nor reference holds says nothing and is left out, and so is one that nobody drew:
    ``annotated`` says of each class whether it is.
    """
    classes = 1 + max(organ.id for organ in organs)
    drawn = None if annotated is None else annotated.tolist()

    def voxels(labels: Tensor) -> Tensor:
        return torch.bincount(labels.flatten().long(), minlength=classes)

    present = voxels(reference)
    found = {}
    for source, labels in predicted.items():
        volume = (voxels(labels) + present).tolist()
        overlap = voxels(reference[labels == reference]).tolist()
        for organ in organs:
            if volume[organ.id] and (drawn is None or drawn[organ.id]):
                found[source, organ.name] = dice_coefficient(overlap[organ.id], volume[organ.id])
    return found


class OrganScores(Metric):
    """Mean DSC per organ and source over the cases seen since the last reset, exact over any number of ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, labels: dict[str, int], siblings: int) -> None:
        super().__init__()
        self.organs = organs_of(labels)
        self.sources = [*(f"sibling_{number}" for number in range(1, 1 + siblings)), "average"]
        shape = (len(self.sources), len(self.organs))
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, dsc: dict[tuple[str, str], float]) -> None:
        """Count one scan, given its ``organ_dsc``."""
        names = [organ.name for organ in self.organs]
        for (source, organ), value in dsc.items():
            place = self.sources.index(source), names.index(organ)
            self.total[place] += value
            self.count[place] += 1

    def compute(self) -> dict[tuple[str, str], float]:
        """Mean DSC by (source, organ name); an organ never seen is left out."""
        mean = (self.total / self.count).tolist()  # 0/0 is nan
        return {
            (source, organ.name): value
            for source, row in zip(self.sources, mean, strict=True)
            for organ, value in zip(self.organs, row, strict=True)
            if value == value
        }


def named_scores(scores: dict[tuple[str, str], float], stage: str) -> dict[str, float]:
    """The scores under their logged names, with the mean over organs of the siblings' average."""
    named = {metric_names.dsc(source, organ, stage): value for (source, organ), value in scores.items()}
    average = [value for (source, _), value in scores.items() if source == "average"]
    if average:
        named[metric_names.dsc_mean(stage)] = sum(average) / len(average)
    return named
