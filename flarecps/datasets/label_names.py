"""The names of structures and channels as a dataset.json gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from flarecps.errors import DatasetError
from flarecps.json_fields import shown

LARGEST_ID = 255  # labels are stored as uint8
_ID = re.compile(r"-?[0-9]{1,9}")
IGNORE = "ignore"  # nnU-Net v2's name of a label that its loss passes over


def label_names(
    content: Any,
    where: str,
    any_ids: bool = False,
    relabel: Callable[[str], str] = "flarecps relabel LABELS OUT --ids={}".format,
) -> dict[str, int]:
    """``{name: id}`` from nnU-Net v2's ``{name: id}`` or MSD's ``{"id": name}``, ascending by id, background (0) added.

    Ids may have gaps. Raises DatasetError, naming ``where``, for no mapping, a region (several ids), a label to be
    ignored, an id that is no whole number from 0 to 255 (with ``any_ids``: no whole number), a name or id given twice,
    and no structure but background. ``relabel`` makes the command that clears a label to be ignored.
    """
    if not isinstance(content, Mapping) or not content:
        raise DatasetError(f'{where}: expected "labels" as {{"background": 0, "liver": 1, ...}}, not {shown(content)}')
    pairs = []
    for key, value in content.items():
        name, label = (value, key) if isinstance(value, str) and not _ID.fullmatch(value) else (key, value)
        if isinstance(label, list):
            if len(label) != 1:
                raise DatasetError(
                    f"{where}: label {name!r} is a region of the ids {label}; regions overlap, and here a voxel has "
                    "one label: name the ids that the label files hold, each once"
                )
            label = label[0]  # nnU-Net, too, takes a region of one id for that id
        number = _whole_number(label)
        if number is None or not str(name).strip():
            raise DatasetError(
                f"{where}: label {name!r} has the id {shown(label)}; expected a whole number and a name, as in "
                '"liver": 1'
            )
        if name == IGNORE:
            raise DatasetError(
                f"{where}: label {name!r} marks voxels that nobody annotated, which is not known here voxel by voxel; "
                f"clear them ({relabel(f'{number}=0')}) and remove the entry; structures that are not drawn "
                'in a case are left out of its list under "annotated" in splits.json'
            )
        pairs.append((str(name), number))
    if all(label != 0 for _, label in pairs):
        pairs.append(("background", 0))
    labels = dict(sorted(pairs, key=lambda pair: pair[1]))
    ids = [label for _, label in pairs]
    if len(labels) != len(pairs) or len(set(ids)) != len(ids):
        raise DatasetError(f"{where}: two labels share a name or an id; expected each once")
    if len(labels) > LARGEST_ID + 1:
        raise DatasetError(f"{where}: {len(labels) - 1} structures; expected at most {LARGEST_ID}: merge some")
    if not any_ids and not 0 <= min(ids) <= max(ids) <= LARGEST_ID:
        raise DatasetError(
            f"{where}: label ids {sorted(ids)}; expected 0 to {LARGEST_ID}: renumber the labels ('flarecps inspect' of "
            "the data set says how)"
        )
    if len(labels) < 2:
        raise DatasetError(f'{where}: no structure besides background in "labels"')
    return labels


def _whole_number(label: Any) -> int | None:
    """The id as a number, whether it was written 1, "1" or 1.0; None where it is none."""
    if isinstance(label, str):
        return int(label) if _ID.fullmatch(label) else None
    if isinstance(label, bool) or not isinstance(label, int | float) or label != int(label):
        return None
    return int(label)


def channel_names(description: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The channels in order, from ``{"0": "CT"}`` under "channel_names" (nnU-Net v2) or "modality" (MSD, v1).

    CT where there is neither. Raises DatasetError, naming ``where``, for anything but such a mapping, a list or a text.
    """
    key = next((one for one in ("channel_names", "modality") if one in description), None)
    content = {"0": "CT"} if key is None else description[key]
    if isinstance(content, str):
        content = [content]
    elif isinstance(content, Mapping) and all(_ID.fullmatch(str(number)) for number in content):
        content = [content[number] for number in sorted(content, key=int)]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise DatasetError(f'{where}: "{key}" is {shown(description[str(key)])}; expected {{"0": "CT"}} or the like')
    return tuple(content)


def left_right_pairs(labels: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """(right, left) ids of structures that are named alike but for the side: "right X" and "left X", "X_right" …

    >>> left_right_pairs({"background": 0, "right kidney": 1, "liver": 2, "left kidney": 3})
    ((1, 3),)
    """
    lower = {name.lower(): label for name, label in labels.items()}
    pairs = ((label, lower.get(name.replace("right", "left"))) for name, label in lower.items() if "right" in name)
    return tuple((right, left) for right, left in pairs if left is not None)
