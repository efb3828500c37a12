"""Intensities, from what a scan stores to what a network sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flarecps.planning.fingerprint import to_hu
from flarecps.planning.plan import Intensity
from flarecps.typing import NormalisedArray, ScanArray
from flarecps.volumes.resampling import Conversion

SMALLEST_SD = 1e-8  # a constant scan becomes 0, not NaN

Statistics = Mapping[str, Sequence[float]]  # "mean" and "sd" of one scan, a number per channel


def channel_statistics(image: ScanArray, before: Conversion | None = None) -> dict[str, list[float]]:
    """Mean and SD of every channel, computed in float64 slice by slice: ``{"mean": [...], "sd": [...]}``.

    ``before`` converts each slice first.
    """
    moments = [_mean_and_sd(channel, before) for channel in image]
    return {"mean": [mean for mean, _ in moments], "sd": [sd for _, sd in moments]}


def _mean_and_sd(channel: np.ndarray, before: Conversion | None) -> tuple[float, float]:
    """Sums of the differences from one slice's mean: one pass over the voxels, and no digits lost to a large mean."""

    def section(number: int) -> np.ndarray:
        stored = channel[number] if before is None else before(channel[number])
        return stored.astype(np.float64).ravel()

    pivot = float(section(len(channel) // 2).mean())
    total = squares = 0.0
    for number in range(len(channel)):
        differences = section(number)
        differences -= pivot
        total += float(differences.sum())
        squares += float(differences @ differences)
    mean = total / channel.size
    return pivot + mean, math.sqrt(max(squares / channel.size - mean * mean, 0.0))


def clip_to_window(intensity: Intensity) -> Conversion:
    """The conversion of stored values into HU clipped to the window, float32: what nnU-Net resamples."""

    def clipped(stored: np.ndarray) -> np.ndarray:
        return np.clip(to_hu(stored).astype(np.float32), np.float32(intensity.low), np.float32(intensity.high))

    return clipped


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
