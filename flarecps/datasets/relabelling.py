"""Label maps with other ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flarecps.datasets.label_checks import MAX_LABEL, label_counts
from flarecps.errors import DatasetError, ScanError
from flarecps.volumes.io import read_volume, write_labels


@dataclass(frozen=True)
class RelabelOrder:
    """One label map to be written again with other ids."""

    source: Path
    out: Path
    ids: tuple[tuple[int, int], ...]  # (old, new)


def parse_ids(words: str) -> tuple[tuple[int, int], ...]:
    """The pairs of "63=1,126=2".

    >>> parse_ids("63=1, -1=0")
    ((63, 1), (-1, 0))
    """
    pairs = []
    for word in words.split(","):
        old, equals, new = word.partition("=")
        try:
            pair = (int(old), int(new))
        except ValueError:
            raise DatasetError(f"ids {words!r}: expected OLD=NEW pairs, such as 63=1,126=2") from None
        if not equals or not 0 <= pair[1] <= MAX_LABEL:
            raise DatasetError(f"ids {words!r}: new id {pair[1]}; expected 0 to {MAX_LABEL}")
        pairs.append(pair)
    if len({old for old, _ in pairs}) != len(pairs):
        raise DatasetError(f"ids {words!r}: an old id is named twice; expected each once")
    return tuple(pairs)


def relabel_file(order: RelabelOrder) -> int:
    """Write the map with its new ids on the same grid (uint8 NIfTI); how many voxels changed.

    Ids that are not named stay. Raises ScanError for fractions, and for ids that end up outside 0 to 255.
    """
    volume = read_volume(order.source)
    array = volume.array[0]
    counts = label_counts(array)
    if counts is None:
        raise ScanError(f"{order.source}: some voxels are not whole numbers; expected a label map")
    table = {old: old for old in counts} | {old: new for old, new in order.ids if old in counts}
    outside = sorted(old for old, new in table.items() if not 0 <= new <= MAX_LABEL)
    if outside:
        raise ScanError(f"{order.source}: the ids {outside} do not fit into 0 to {MAX_LABEL}: name them in --ids")
    old_ids = np.asarray(list(table))
    new_ids = np.asarray([table[old] for old in old_ids.tolist()], np.uint8)
    renumbered = np.empty(array.shape, np.uint8)
    for source, target in zip(array, renumbered, strict=True):
        whole = np.rint(source).astype(np.int64)
        target[:] = new_ids[np.searchsorted(old_ids, whole)]
    write_labels(order.out, renumbered, volume.source)
    return sum(counts[old] for old, new in table.items() if old != new)
