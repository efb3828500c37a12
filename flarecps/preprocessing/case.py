"""One case, from the scan's grid to the network's grid and back: crop, reorder axes, resample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flarecps.errors import ScanError
from flarecps.planning.plan import Plan
from flarecps.preprocessing.intensity import FILL_HU, channel_statistics, clamp_hu, to_hu
from flarecps.typing import LabelArray, ScanArray, SpacingMm, Triple
from flarecps.volumes.cropping import Box, crop, field_box, uncrop
from flarecps.volumes.io import Volume
from flarecps.volumes.resampling import coarse_axis, resample, resample_labels, resampled_shape


@dataclass(frozen=True)
class WayBack:
    """How to return from the network's grid to the scan's: plain numbers, so that it travels as JSON.

    ``scan_*`` and ``box_*`` are on the canonical scan grid (slice, row, column); ``network_*`` are in network order:
    network axis ``a`` is canonical axis ``axis_order[a]``.
    """

    scan_shape: Triple
    scan_spacing_mm: SpacingMm
    box_lower: Triple
    box_upper: Triple
    axis_order: Triple
    network_shape: Triple
    network_spacing_mm: SpacingMm

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {key: list(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> WayBack:
        """The inverse of ``to_dict``."""
        return WayBack(**{key: tuple(value) for key, value in content.items()})

    @property
    def box(self) -> Box:
        """The part of the scan that was kept."""
        return Box(self.box_lower, self.box_upper)


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid."""

    image: ScanArray  # (C, S, H, W): int16 HU for CT, float32 otherwise; not normalised
    labels: LabelArray | None  # (S, H, W) uint8
    way_back: WayBack
    statistics: dict[str, list[float]]  # "mean" and "sd" per channel of the cropped scan, before resampling


def prepare_case(volume: Volume, plan: Plan, labels: Volume | None = None) -> Prepared:
    """The case on the network's grid: cropped to its field of view, axes in the plan's order, resampled.

    ``labels``: a label volume (1, S, H, W) on the same grid. CT is clamped to int16, with fill below -1024 HU at
    -1024, before resampling (order 3) and rounded to whole HU after it. In 2D the slice axis keeps its spacing.
    Raises ``ScanError`` when channels, grids or label values disagree with the plan.
    """
    raise NotImplementedError


def labels_to_scan(labels: LabelArray, way_back: WayBack) -> LabelArray:
    """``labels`` (S, H, W) of the network's grid on the canonical scan grid; 0 outside the field of view."""
    raise NotImplementedError


def probabilities_to_scan_labels(probabilities: np.ndarray, way_back: WayBack) -> LabelArray:
    """Labels on the canonical scan grid from class probabilities (K, S, H, W) of the network's grid.

    Each class is resampled linearly and compared with the best so far, so that memory holds two classes, not K, at
    the scan's size. 0 outside the field of view.
    """
    raise NotImplementedError
