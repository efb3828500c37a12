"""Whether a scan and its labels belong together: the one check that planning and preprocessing share."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from flarecps.errors import ScanError
from flarecps.volumes.io import Volume


def check_labels(volume: Volume, labels: Volume, known: Collection[int], name: str) -> None:
    """Nothing, or ``ScanError`` when grids differ or a label value is not in ``known``; names case ``name``."""
    path = labels.source.path
    if not volume.space.same_grid(labels.space):
        raise ScanError(
            f"{path}: labels of case '{name}' are on another grid than the image {volume.source.path}: "
            f"{volume.space.difference(labels.space)}; resample the labels onto the image, or pair the right files"
        )
    present = {label for section in labels.array[0] for label in np.flatnonzero(np.bincount(section[section != 0]))}
    unknown = sorted(int(label) for label in present - set(known))
    if unknown:
        raise ScanError(
            f"{path}: labels of case '{name}' hold the value{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(map(str, unknown))}; dataset.json knows {', '.join(map(str, sorted(known)))}; "
            f"add the structure to dataset.json, or remove it from the file"
        )
