"""The measures as torchmetrics: means per organ over scans, the same for any number of ranks and any share of them.

Every class keeps two sums per organ, of values and of scans, so ranks may hold different numbers of scans. Measures
that are found together share their sums; in a ``MetricCollection`` they are worked out once. The arithmetic is that of
the ``strict`` protocol.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from flarecps.anatomy import FLARE22_ORGANS, Organ
from flarecps.evaluation.flare22 import OrganScore, count_case, score_case
from flarecps.typing import SpacingMm


class _MeanPerOrgan(Metric):
    """Means per organ over scans; a subclass says which measures are found together and which is its own."""

    full_state_update = False
    is_differentiable = False
    measures: ClassVar[tuple[str, ...]]
    deciding: ClassVar[tuple[str, ...]]  # what of an organ its sums depend on; another number of fields in each family
    measure: ClassVar[str]
    total: Tensor
    count: Tensor
    settings: Tensor

    def __init__(self, organs: Sequence[Organ] = FLARE22_ORGANS, **options: Any) -> None:
        """``organs`` may be of any label set (`flarecps.anatomy.organs_of`); ``options`` are torchmetrics' own."""
        super().__init__(**options)
        self.organs = tuple(organs)
        for name in ("total", "count"):
            zeros = torch.zeros(len(self.measures), len(self.organs), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        # A MetricCollection lets metrics share one update when their states are equal after the first scan, which
        # chance can make them (a perfect scan). With their settings among the states only true siblings are equal.
        settings = [[float(getattr(organ, field)) for field in self.deciding] for organ in self.organs]
        self.add_state("settings", torch.tensor(settings, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, prediction: Tensor, reference: Tensor, spacing_mm: SpacingMm) -> None:
        """Count one scan: two label maps (slice, row, column) of whole numbers 0 to 255, and the spacing in that order.

        Raises ValueError for different shapes or other numbers, ScanError for label values that are no organ's.
        """
        scores = self._scores(_uint8(prediction), _uint8(reference), spacing_mm)
        for row, measure in enumerate(self.measures):
            for column, organ in enumerate(self.organs):
                value = getattr(scores[organ.name], measure)
                if value is not None and math.isfinite(value):
                    self.total[row, column] += value
                    self.count[row, column] += 1

    def compute(self) -> Tensor:
        """The mean over scans of every organ, in the order of ``organs``; NaN for an organ without a value."""
        return self.total[self.measures.index(self.measure)] / self.scans

    @property
    def scans(self) -> Tensor:
        """How many scans of this rank each organ's mean is of."""
        return self.count[self.measures.index(self.measure)]

    @abstractmethod
    def _scores(self, prediction: np.ndarray, reference: np.ndarray, spacing_mm: SpacingMm) -> dict[str, OrganScore]:
        """The scores of one scan by organ name: those in ``measures``; None or NaN: it says nothing here."""


class _Counted(_MeanPerOrgan):
    measures = ("dsc", "volume_error_ml", "volume_error_relative")
    deciding = ("id",)

    def _scores(self, prediction: np.ndarray, reference: np.ndarray, spacing_mm: SpacingMm) -> dict[str, OrganScore]:
        return count_case(prediction, reference, spacing_mm, self.organs)


class _Surfaced(_MeanPerOrgan):
    measures = ("nsd", "hd95_mm", "assd_mm")
    deciding = ("id", "tolerance_mm")

    def _scores(self, prediction: np.ndarray, reference: np.ndarray, spacing_mm: SpacingMm) -> dict[str, OrganScore]:
        return score_case(prediction, reference, spacing_mm, self.organs, "strict")


class DiceScore(_Counted):
    """Mean DSC per organ, 0 to 1. Empty in both: the scan is left out; empty in one: 0.

    >>> from flarecps.anatomy import organs_of
    >>> score = DiceScore(organs_of({"liver": 1, "spleen": 2}))
    >>> score.update(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]]), spacing_mm=(2.5, 0.8, 0.8))
    >>> score.compute()
    tensor([0.6667,    nan], dtype=torch.float64)
    """

    measure = "dsc"
    higher_is_better = True


class VolumeError(_Counted):
    """Mean volume error per organ in ml, prediction minus reference. Empty in both: the scan is left out."""

    measure = "volume_error_ml"


class RelativeVolumeError(_Counted):
    """Mean volume error per organ as a share of the reference, -1 and up. Reference empty: the scan is left out."""

    measure = "volume_error_relative"


class NormalisedSurfaceDice(_Surfaced):
    """Mean NSD per organ, 0 to 1, within each organ's tolerance. Empty in both: left out; empty in one: 0."""

    measure = "nsd"
    higher_is_better = True


class HausdorffDistance95(_Surfaced):
    """Mean HD95 per organ in mm. Empty in one or both: there is no distance, the scan is left out (see ``scans``)."""

    measure = "hd95_mm"
    higher_is_better = False


class AverageSurfaceDistance(_Surfaced):
    """Mean ASSD per organ in mm. Empty in one or both: there is no distance, the scan is left out (see ``scans``)."""

    measure = "assd_mm"
    higher_is_better = False


def _uint8(labels: Tensor) -> np.ndarray:
    if labels.ndim != 3 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"a label map (slice, row, column) of whole numbers is needed, not {labels.dtype} "
                         f"of shape {tuple(labels.shape)}")  # fmt: skip
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())}; expected 0 to 255")
    return labels.detach().to("cpu", torch.uint8).numpy()
