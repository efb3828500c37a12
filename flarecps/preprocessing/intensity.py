"""Intensities, from what a scan stores to what a network sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flarecps.planning.plan import Intensity
from flarecps.typing import NormalisedArray, ScanArray

SMALLEST_SD = 1e-8  # a constant scan becomes 0, not NaN

Statistics = Mapping[str, Sequence[float]]  # "mean" and "sd" of one scan, a number per channel


def channel_statistics(image: ScanArray) -> dict[str, list[float]]:
    """Mean and SD of every channel, computed in float64: ``{"mean": [...], "sd": [...]}``."""
    return {
        "mean": [float(np.mean(channel, dtype=np.float64)) for channel in image],
        "sd": [float(np.std(channel, dtype=np.float64)) for channel in image],
    }


def normalise(image: ScanArray, intensity: Intensity, statistics: Statistics) -> NormalisedArray:
    """The network's input, float32 (C, ...): ``ct`` clips and scales by the plan, ``zscore`` by the scan itself.

    ``image``: HU (ct) or stored intensities (zscore), any spatial shape. ``statistics``: the scan's own mean and SD
    per channel (only ``zscore`` looks at them). Where the SD is 0 the result is 0.
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
