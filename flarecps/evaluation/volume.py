"""How much too large or too small a segmented organ is."""

from __future__ import annotations

import math

from flarecps.typing import SpacingMm


def volume_ml(voxels: int, spacing_mm: SpacingMm) -> float:
    """The volume of so many voxels in millilitres (1 ml = 1000 mm³).

    >>> volume_ml(500, (2.0, 1.0, 1.0))
    1.0
    """
    return voxels * math.prod(spacing_mm) / 1000.0


def volume_error_ml(prediction_ml: float, reference_ml: float) -> float:
    """Prediction minus reference in millilitres: negative where too little was found. Both empty: 0."""
    return prediction_ml - reference_ml


def relative_volume_error(prediction_ml: float, reference_ml: float) -> float:
    """The volume error as a share of the reference: 0.1 is 10 % too much, -1 nothing found. Reference empty: NaN.

    >>> relative_volume_error(prediction_ml=33.0, reference_ml=30.0)
    0.1
    """
    return volume_error_ml(prediction_ml, reference_ml) / reference_ml if reference_ml else float("nan")
