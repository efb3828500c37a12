"""The names and ids of structures as a dataset.json gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flarecps.errors import DatasetError

LARGEST_ID = 255  # labels are stored as uint8
IGNORE = "ignore"  # nnU-Net v2's name of a label that its loss passes over


def label_names(content: Any, where: str) -> dict[str, int]:
    """``{name: id}`` from nnU-Net v2's ``{name: id}`` or MSD's ``{"id": name}``, ascending by id, background (0) added.

    Ids may have gaps. Raises DatasetError, naming ``where``, for no mapping, a region (several ids), a label to be
    ignored, an id that is no whole number from 0 to 255, a name or id given twice, and no structure but background.
    """
    if not isinstance(content, Mapping) or not content:
        raise DatasetError(f'{where}: expected "labels" as {{"background": 0, "liver": 1, ...}}')
    pairs = []
    for key, value in content.items():
        name, label = (value, key) if isinstance(value, str) and not value.isdigit() else (key, value)
        if isinstance(label, list):
            if len(label) != 1:
                raise DatasetError(
                    f"{where}: label {name!r} is a region of the ids {label}; regions overlap, and here a voxel has "
                    "one label: name the ids that the label files hold, each once"
                )
            label = label[0]  # nnU-Net, too, takes a region of one id for that id
        if name == IGNORE:
            raise DatasetError(
                f"{where}: label {name!r} marks voxels that nobody annotated, which is not known here voxel by voxel; "
                f"clear them ('flarecps relabel --ids {label}=0') and remove the entry; structures that are not drawn "
                'in a case are left out of its list under "annotated" in splits.json'
            )
        try:
            pairs.append((str(name), int(label)))
        except (TypeError, ValueError):
            raise DatasetError(f"{where}: label {name!r} has the id {label!r}; expected a whole number") from None
    if all(label != 0 for _, label in pairs):
        pairs.append(("background", 0))
    labels = dict(sorted(pairs, key=lambda pair: pair[1]))
    ids = [label for _, label in pairs]
    if len(labels) != len(pairs) or len(set(ids)) != len(ids):
        raise DatasetError(f"{where}: two labels share a name or an id; expected each once")
    if not 0 <= min(ids) <= max(ids) <= LARGEST_ID:
        raise DatasetError(f"{where}: label ids {sorted(ids)}; expected 0 to {LARGEST_ID}: renumber the labels")
    if len(labels) < 2:
        raise DatasetError(f'{where}: no structure besides background in "labels"')
    return labels


def left_right_pairs(labels: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """(right, left) ids of structures that are named alike but for the side: "right X" and "left X", "X_right" …

    >>> left_right_pairs({"background": 0, "right kidney": 1, "liver": 2, "left kidney": 3})
    ((1, 3),)
    """
    lower = {name.lower(): label for name, label in labels.items()}
    pairs = ((label, lower.get(name.replace("right", "left"))) for name, label in lower.items() if "right" in name)
    return tuple((right, left) for right, left in pairs if left is not None)
