"""Which scans are the same scan: by their voxels, whatever file name, compression, number type, order or header.

Three hashes, each a few bytes per scan or slice, so that thousands of scans are compared without keeping any:

- ``exact``: the values in their order. Equal for copies in any format.
- ``shuffled``: the values in no order. Equal for flipped, turned or transposed copies too.
- ``slices``: one hash per slice that shows something, of its values above its lowest one, in no order. Equal for slices
  cut out of another scan, flipped, or shifted by a constant (stored values against HU).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flarecps.typing import ScanArray

FEWEST_SHOWN = 64  # voxels above a slice's lowest value, and
FEWEST_VALUES = 16  # different values among them: fewer could be equal by chance (air, a mask)
FEWEST_SHARED = 2  # equal slices that make two scans one
COMPARED_TOGETHER = 20  # scans that hold one slice; of more, the first are enough to join them all
SIXTY_FOUR_BITS = (1 << 64) - 1
WIDEST_RANGE = 1 << 20  # of integers that are counted instead of mixed one by one


@dataclass(frozen=True)
class ScanHashes:
    """What recognises a scan (see the module); plain and small."""

    exact: str = ""
    shuffled: int = 0
    slices: tuple[int, ...] = ()


def scan_hashes(array: ScanArray) -> ScanHashes:
    """The hashes of a scan (channel, slice, row, column); the slices' are those of the first channel."""
    shuffled = 0
    slices: list[int] = []
    for number, channel in enumerate(array):
        for plane in channel:
            values, counts = _values(plane)
            bits = _bits(values)
            shuffled += int((_mixed(bits) * counts).sum(dtype=np.uint64))
            above = values > values.min()
            if number or counts[above].sum() < FEWEST_SHOWN:
                continue
            if len(np.unique(values[above][:: max(1, int(above.sum()) // 4096)])) >= FEWEST_VALUES:
                slices.append(int((_mixed(_bits(values - values.min())) * counts).sum(dtype=np.uint64)))
    shape = hashlib.sha256(repr((len(array), sorted(array.shape[1:]))).encode()).digest()[:8]
    whole = (shuffled & SIXTY_FOUR_BITS) ^ int.from_bytes(shape, "little")
    return ScanHashes(content_hash(array), whole, tuple(dict.fromkeys(slices)))


def content_hash(array: ScanArray) -> str:
    """A hash of the values and shape of a scan, whatever the file's name, compression and number type."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for channel in array:
        for plane in channel:  # plane by plane, so that no second copy of the scan is in memory
            digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return digest.hexdigest()


def find_duplicates(hashes: Mapping[str, ScanHashes]) -> list[tuple[tuple[str, ...], str]]:
    """Groups of two or more scans that are the same or share slices, in the order of ``hashes``.

    Of each: the names, and in words how they are alike.
    """
    parent = {name: name for name in hashes}
    words: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(first: str, second: str, alike: str) -> None:
        first, second = root(first), root(second)
        if first != second:
            parent[second] = first
            words.setdefault(first, words.get(second, alike))

    for attribute, alike in (
        ("exact", "equal voxels"),
        ("shuffled", "equal voxels in another order (flipped or turned)"),
    ):
        first_with: dict[str | int, str] = {}
        for name, one in hashes.items():
            if one.exact:
                join(first_with.setdefault(getattr(one, attribute), name), name, alike)
    holders: dict[int, list[str]] = defaultdict(list)
    for name, one in hashes.items():
        for slice_hash in one.slices:
            holders[slice_hash].append(name)
    shared: Counter[tuple[str, str]] = Counter()  # slices that a pair of scans shares
    for names in holders.values():
        shared.update(combinations(names[:COMPARED_TOGETHER], 2))
        shared.update((names[0], name) for name in names[COMPARED_TOGETHER:])
    for (first, second), count in sorted(shared.items()):
        if count >= FEWEST_SHARED:
            of = min(len(hashes[first].slices), len(hashes[second].slices))
            join(first, second, f"{count} equal slices of {of}")
    groups: dict[str, list[str]] = defaultdict(list)
    for name in hashes:
        groups[root(name)].append(name)
    return [(tuple(names), words[first]) for first, names in groups.items() if len(names) > 1]


def _values(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and how often each occurs (int64 or float32, uint64); a float's voxels are listed one by one."""
    if plane.dtype.kind in "iu":
        lowest, highest = int(plane.min()), int(plane.max())
        if highest - lowest < WIDEST_RANGE:
            counts = np.bincount(plane.ravel().astype(np.int64) - lowest)
            present = np.flatnonzero(counts)
            return present + lowest, counts[present].astype(np.uint64)
    values = plane.ravel().astype(np.float32)
    return values, np.ones(values.size, np.uint64)


def _bits(values: np.ndarray) -> np.ndarray:
    """The values as the bits of float32, so that 40 and 40.0 are the same; -0 is 0."""
    return (values.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """64 scrambled bits for each: sums of them are equal for equal multisets only (Steele's SplitMix64)."""
    mixed = bits * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
