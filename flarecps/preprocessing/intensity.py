"""Intensities: what a network sees, and, for scans that are not CT, their 16 bits in the case store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flarecps.planning.fingerprint import to_hu
from flarecps.planning.plan import Intensity
from flarecps.typing import NormalisedArray, ScanArray
from flarecps.volumes.resampling import Conversion, slabs

SMALLEST_SD = 1e-8  # a constant scan becomes 0, not NaN
TOLERANCE_SD = 1e-4  # of a scan's SD: what a network sees changes by less than float32's own noise in training
STEPS = 65534  # int16 without its lowest number, so that the middle of the range is 0
INT16 = np.iinfo(np.int16)

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


@dataclass(frozen=True)
class Scaling:
    """How stored numbers become intensities: times ``scale`` plus ``offset``, one pair per channel."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]


def quantise(image: ScanArray, sd: list[float]) -> tuple[np.ndarray, Scaling | None]:
    """``image`` (C, S, H, W) as int16 and the scaling that brings it back, or float32 as it is and None.

    Whole numbers stay exact. Otherwise each channel's range is divided evenly; where that would miss some voxel by more
    than 1e-4 of the channel's ``sd`` (a few voxels far brighter than the rest), nothing is quantised.
    """
    stored = np.empty(image.shape, np.int16)
    pairs = []
    for channel, out, spread in zip(image, stored, sd, strict=True):
        scale, offset = _scale_and_offset(channel)
        scaling = Scaling((scale,), (offset,))
        for slab in slabs(channel.shape):
            steps = np.rint((channel[slab].astype(np.float64) - offset) / scale)
            out[slab] = np.clip(steps, INT16.min, INT16.max)
            if np.abs(dequantise(out[None, slab], scaling)[0] - channel[slab]).max() > TOLERANCE_SD * spread:
                return image, None
        pairs.append((scale, offset))
    return stored, Scaling(tuple(scale for scale, _ in pairs), tuple(offset for _, offset in pairs))


def dequantise(stored: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Intensities, float32 (C, ...), from stored numbers of any part of the scan."""
    result = stored.astype(np.float32)
    for channel, scale, offset in zip(result, scaling.scale, scaling.offset, strict=True):
        channel *= np.float32(scale)
        channel += np.float32(offset)
    return result


def _scale_and_offset(channel: np.ndarray) -> tuple[float, float]:
    lowest, highest = float(channel.min()), float(channel.max())
    whole = all(np.array_equal(channel[slab], np.rint(channel[slab])) for slab in slabs(channel.shape))
    if whole and INT16.min <= lowest and highest <= INT16.max:
        return 1.0, 0.0
    if whole and highest - lowest <= STEPS:
        return 1.0, float(np.ceil((lowest + highest) / 2))
    return max((highest - lowest) / STEPS, float(np.finfo(np.float32).tiny)), (lowest + highest) / 2
