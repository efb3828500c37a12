"""Are these Hounsfield units? What a CT's histogram says about how its values were made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flarecps.datasets.findings import Finding

LOWEST_HU, HIGHEST_HU = -4096, 16384  # of the histogram; what lies outside is counted at its ends
AIR_HU = (-1200, -500)  # air and lung; fill values such as -2000 lie below
TISSUE_HU = (-200, 300)  # fat to enhanced organs
TISSUE_STORED = (824, 1324)  # the same, 1024 higher
BETWEEN_STORED = (300, 700)  # nearly empty in stored values, between air and fat
NARROW = 64  # a CT spans more; [0, 1], [-1, 1] and z-scores do not
LEAST_AIR = 0.001  # shares of voxels
LEAST_TISSUE = 0.01
LEAST_STORED_TISSUE = 0.05
SPIKE = 0.002  # of the voxels that are not air, at one end of the values: clipped
BEYOND_CLIPPING_HU = 1500  # ends above this are the scanner's own (1023 with noise, 3071)
VERY_DENSE_HU = 5000  # bone ends at 2000, the usual scale at 3071


def hu_histogram(channel: np.ndarray) -> np.ndarray:
    """How many voxels have each whole HU from ``LOWEST_HU`` to ``HIGHEST_HU`` (int64)."""
    counts = np.zeros(HIGHEST_HU - LOWEST_HU + 1, np.int64)
    for plane in channel:  # plane by plane, so that no second copy of the scan is in memory
        whole = plane if plane.dtype.kind in "iu" else np.rint(plane)
        clipped = np.clip(whole.astype(np.float64 if whole.dtype.kind == "f" else np.int64), LOWEST_HU, HIGHEST_HU)
        counts += np.bincount(clipped.ravel().astype(np.int64) - LOWEST_HU, minlength=len(counts))
    return counts


def hounsfield_findings(
    name: str, counts: np.ndarray, lowest: float, highest: float, ends: tuple[int, int]
) -> Iterator[Finding]:
    """What is wrong with the values of one CT channel (which is not constant).

    Args:
        name: of the case.
        counts: ``hu_histogram`` of the channel.
        lowest, highest: its extreme values.
        ends: how many voxels have exactly the lowest and the highest value.
    """
    air, tissue = _share(counts, AIR_HU), _share(counts, TISSUE_HU)
    stored, between = _share(counts, TISSUE_STORED), _share(counts, BETWEEN_STORED)
    span = f"values from {lowest:g} to {highest:g}"
    hounsfield = "HU, air near -1000 and soft tissue near 50"
    if highest - lowest < NARROW:
        yield Finding(name, "normalised", f"{span}, a width of {highest - lowest:.3g}", hounsfield)
    elif lowest >= 0 and highest <= 255:
        yield Finding(name, "eight-bit", f"{span}, as in a picture", hounsfield)
    elif air < LEAST_AIR and stored >= LEAST_STORED_TISSUE and between < stored / 2:
        yield Finding(name, "not-rescaled", f"{span}, soft tissue near {_mode(counts, TISSUE_STORED)}", hounsfield)
    elif lowest >= 0:
        yield Finding(name, "not-ct", f"{span}, none negative, soft tissue not near 1000 either", hounsfield)
    elif tissue < LEAST_TISSUE and air >= LEAST_AIR:
        yield Finding(
            name, "rescaled-twice", f"{span}, {tissue:.1%} of the voxels between {TISSUE_HU[0]} and {TISSUE_HU[1]}",
            f"soft tissue there: at least {LEAST_TISSUE:.0%}",
        )  # fmt: skip
    elif tissue < LEAST_TISSUE:
        yield Finding(name, "not-ct", f"{span}, neither air nor soft tissue where HU have them", hounsfield)
    else:
        yield from _end_findings(name, counts, lowest, highest, ends)


def _end_findings(
    name: str, counts: np.ndarray, lowest: float, highest: float, ends: tuple[int, int]
) -> Iterator[Finding]:
    """Plausible HU: were they clipped, and is there air?"""
    total = int(counts.sum())
    solid = max(1, total - round(_share(counts, (LOWEST_HU, AIR_HU[1])) * total))
    no_air = lowest > AIR_HU[1]
    span = f"values from {lowest:g} to {highest:g}"
    spikes = [
        f"{count / total:.1%} of the voxels at exactly {end:g}"
        for end, count, counted in (
            (lowest, ends[0], no_air),
            (highest, ends[1], highest < BEYOND_CLIPPING_HU),
        )
        if counted and count > SPIKE * solid
    ]
    if spikes:
        yield Finding(name, "clipped", f"{span}; {', '.join(spikes)}", "HU from -1000 (air) to bone above 1000")
    elif no_air:
        yield Finding(name, "no-air", span, f"air below {AIR_HU[1]} HU")
    if highest > VERY_DENSE_HU:
        dense = int(counts[VERY_DENSE_HU + 1 - LOWEST_HU :].sum())
        yield Finding(
            name, "very-dense", f"{dense} voxels above {VERY_DENSE_HU} HU, up to {highest:g}", "at most 3071 HU"
        )


def _share(counts: np.ndarray, bounds: tuple[int, int]) -> float:
    """The share of voxels from the lower bound to below the upper one."""
    return float(counts[bounds[0] - LOWEST_HU : bounds[1] - LOWEST_HU].sum() / counts.sum())


def _mode(counts: np.ndarray, bounds: tuple[int, int]) -> int:
    """The most frequent value between two bounds, smoothed over 20 HU."""
    part = np.convolve(counts[bounds[0] - LOWEST_HU : bounds[1] - LOWEST_HU], np.ones(20), mode="same")
    return bounds[0] + int(np.argmax(part))
