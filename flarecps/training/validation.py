"""Whole scans during training: labels of each sibling and of their average, and DSC per organ."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from flarecps import metric_names
from flarecps.anatomy import organs_of
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
    for number, sibling in enumerate(siblings, start=1):
        probabilities = predict_probabilities(
            sibling, image, plan.patch_voxels, plan.class_count, step=step, device=image.device
        )
        predicted[f"sibling_{number}"] = probabilities.argmax(0)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    predicted["average"] = total.argmax(0)
    return predicted


class OrganScores(Metric):
    """Mean DSC per organ and source over the cases seen since the last reset, exact over any number of ranks.

    A case in which neither prediction nor reference holds an organ, or in which nobody drew it, says nothing about it
    and is left out.
    """

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

    def update(self, predicted: dict[str, Tensor], reference: Tensor, annotated: Tensor | None = None) -> None:
        """Count one scan, all arrays ``(slice, row, column)``; ``annotated`` says of each class whether it is drawn."""
        drawn = None if annotated is None else annotated.tolist()
        for row, source in enumerate(self.sources):
            for column, organ in enumerate(self.organs):
                if drawn is not None and not drawn[organ.id]:
                    continue
                ours, theirs = predicted[source] == organ.id, reference == organ.id
                volume = (ours.sum() + theirs.sum()).double()
                if volume > 0:
                    self.total[row, column] += 2 * (ours & theirs).sum() / volume
                    self.count[row, column] += 1

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
