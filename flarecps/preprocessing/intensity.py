"""Intensities, from what a scan stores to what a network sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flarecps.planning.plan import Intensity
from flarecps.typing import HuArray, NormalisedArray, ScanArray

FILL_HU = -1024  # air's end of the HU scale; scanners write -2000, -3024 … outside their field of view
INT16_MAX = 32767
SMALLEST_SD = 1e-8  # a constant scan becomes 0, not NaN

Statistics = Mapping[str, Sequence[float]]  # "mean" and "sd" of one scan, a number per channel


def clamp_hu(image: ScanArray) -> np.ndarray:
    """``image`` with out-of-field fill below -1024 HU set to -1024 and the top clamped to int16; type kept."""
    return np.clip(image, *_limits(image.dtype))


def to_hu(image: ScanArray) -> HuArray:
    """``image`` rounded to whole HU as int16, clamped as in ``clamp_hu``."""
    if np.issubdtype(image.dtype, np.integer):
        return clamp_hu(image).astype(np.int16)
    return np.clip(np.rint(image), FILL_HU, INT16_MAX).astype(np.int16)


def channel_statistics(image: ScanArray) -> dict[str, list[float]]:
    """Mean and SD of every channel, computed in float64: ``{"mean": [...], "sd": [...]}``."""
    return {
        "mean": [float(np.mean(channel, dtype=np.float64)) for channel in image],
        "sd": [float(np.std(channel, dtype=np.float64)) for channel in image],
    }


def normalise(image: ScanArray, intensity: Intensity, statistics: Statistics) -> NormalisedArray:
    """The network's input, float32 (C, ...): ``ct`` clips and scales by the plan, ``zscore`` by the scan itself.

    ``image``: HU (ct) or stored intensities (zscore), any spatial shape. ``statistics``: the scan's own mean and SD
    per channel (only ``zscore`` looks at them). An SD of 0 gives 0 everywhere.
    """
    result = image.astype(np.float32)
    if intensity.scheme == "ct":
        np.clip(result, np.float32(intensity.low), np.float32(intensity.high), out=result)
        result -= np.float32(intensity.mean)
        result /= np.float32(max(intensity.sd, SMALLEST_SD))
        return result
    for channel, mean, sd in zip(result, statistics["mean"], statistics["sd"], strict=True):
        channel -= np.float32(mean)
        channel /= np.float32(max(sd, SMALLEST_SD))
    return result


def _limits(dtype: np.dtype) -> tuple[int, int]:
    """[-1024, 32767] as far as an integer type can say it (NumPy refuses bounds outside the type)."""
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return max(FILL_HU, int(bounds.min)), min(INT16_MAX, int(bounds.max))
    return FILL_HU, INT16_MAX
