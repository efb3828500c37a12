"""Intensities in 16 bits: for scans that are not CT, whose numbers have no fixed meaning and range."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flarecps.typing import ScanArray
from flarecps.volumes.resampling import slabs

TOLERANCE_SD = 1e-4  # of a scan's SD: what a network sees changes by less than float32's own noise in training
STEPS = 65534  # int16 without its lowest number, so that the middle of the range is 0
INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Scaling:
    """How stored numbers become intensities: times ``scale`` plus ``offset``, one pair per channel."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {key: list(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Scaling:
        """The inverse of ``to_dict``."""
        return Scaling(tuple(content["scale"]), tuple(content["offset"]))


def quantise(image: ScanArray, sd: list[float]) -> tuple[np.ndarray, Scaling | None]:
    """``image`` (C, S, H, W) as int16 and the scaling that brings it back, or float32 as it is and None.

    Whole numbers stay exact. Otherwise each channel's range is divided evenly; where that would miss some voxel by more
    than 1e-4 of the channel's ``sd`` (a few voxels far brighter than the rest), nothing is quantised.
    """
    stored = np.empty(image.shape, np.int16)
    pairs = []
    for channel, out, spread in zip(image, stored, sd, strict=True):
        scale, offset = _scale_and_offset(channel)
        if not _fill(out, channel, scale, offset, TOLERANCE_SD * spread):
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


def _fill(out: np.ndarray, channel: np.ndarray, scale: float, offset: float, tolerance: float) -> bool:
    """Fill ``out``; whether every voxel comes back within ``tolerance``."""
    scaling = Scaling((scale,), (offset,))
    for slab in slabs(channel.shape):
        steps = np.rint((channel[slab].astype(np.float64) - offset) / scale)
        out[slab] = np.clip(steps, INT16.min, INT16.max)
        if float(np.abs(dequantise(out[None, slab], scaling)[0] - channel[slab]).max()) > tolerance:
            return False
    return True
