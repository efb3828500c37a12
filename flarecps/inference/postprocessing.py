"""What may be put right in finished labels, scan by scan: stray components taken away, holes filled.

Which of it does good is found on validation scans (`postprocessing_rules`) and kept in one JSON file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from flarecps import atomic
from flarecps.errors import ConfigError
from flarecps.typing import LabelArray

FILE_NAME = "postprocessing.json"  # beside a checkpoint, this is what --postprocess auto applies
SCHEMA_VERSION = 1
OUTSIDE = 0  # what lies around the scan, for the neighbours of a hole


@dataclass(frozen=True)
class Rules:
    """What is done to a label map, in this order; none of it by default.

    ``evidence`` says how the rules were found; it does nothing.
    """

    labels: dict[str, int]
    whole_foreground: bool = False  # keep only the largest component of all organs together
    largest: tuple[int, ...] = ()  # organs that keep only their largest component
    filled: tuple[int, ...] = ()  # organs whose holes are filled
    evidence: dict[str, Any] = field(default_factory=dict)

    def __call__(self, labels: LabelArray) -> LabelArray:
        """Labels (slice, row, column) by these rules; a copy when they change anything."""
        if self.whole_foreground:
            labels = largest_foreground(labels)
        if self.largest:
            labels = largest_of_each(labels, self.largest)
        return filled(labels, self.filled) if self.filled else labels

    def __bool__(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.whole_foreground or self.largest or self.filled)

    def describe(self) -> str:
        """The rules for people."""
        name = {label: organ for organ, label in self.labels.items()}
        parts = ["largest component of all organs together"] if self.whole_foreground else []
        if self.largest:
            parts.append(f"largest component of {', '.join(name[label] for label in self.largest)}")
        if self.filled:
            parts.append(f"holes filled in {', '.join(name[label] for label in self.filled)}")
        return "; ".join(parts) or "nothing: no step made the validation scans better"


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a boolean (S, H, W) mask; components of equal size are all kept.

    Voxels are connected by faces (six neighbours), as in nnU-Net v1.
    """
    components, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    return (sizes == sizes.max())[components]


def largest_foreground(labels: LabelArray) -> LabelArray:
    """``labels`` without what is not connected with the largest component of all organs together."""
    return np.where(largest_component(labels > 0), labels, 0).astype(labels.dtype, copy=False)


def largest_of_each(labels: LabelArray, organs: tuple[int, ...]) -> LabelArray:
    """``labels`` in which every one of ``organs`` keeps its largest component only; the rest becomes background."""
    result = labels
    for organ, box in _boxes(labels, organs):
        mask = labels[box] == organ
        stray = mask & ~largest_component(mask)
        if stray.any():
            result = labels.copy() if result is labels else result
            result[box][stray] = 0
    return result


def filled(labels: LabelArray, organs: tuple[int, ...]) -> LabelArray:
    """``labels`` in which the holes of ``organs`` are filled.

    A hole is a connected piece of background (by faces) that touches one organ alone, and not the scan's border. So
    no organ's hole is another's, and nothing but background changes.
    """
    owners, holes = enclosing_labels(labels)
    fill = np.where(np.isin(owners, organs), owners, 0).astype(labels.dtype)
    if not fill.any():
        return labels
    return np.where(labels == 0, fill[holes], labels)


def enclosing_labels(labels: LabelArray) -> tuple[np.ndarray, np.ndarray]:
    """For every piece of background the organ whose hole it is, 0 for none; and the number of the piece per voxel."""
    holes, count = ndimage.label(labels == 0)
    lowest = np.full(count + 1, np.iinfo(np.int16).max, np.int16)
    highest = np.full(count + 1, -1, np.int16)
    for axis in range(labels.ndim):
        ahead, behind = [slice(None)] * labels.ndim, [slice(None)] * labels.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        for piece, other in ((tuple(ahead), tuple(behind)), (tuple(behind), tuple(ahead))):
            met = (holes[piece] > 0) & (labels[other] > 0)
            np.minimum.at(lowest, holes[piece][met], labels[other][met])
            np.maximum.at(highest, holes[piece][met], labels[other][met])
        for end in (0, -1):
            border = np.unique(holes.take(end, axis=axis))
            lowest[border] = OUTSIDE
    owners = np.where(lowest == highest, lowest, 0)
    owners[0] = 0
    return owners, holes


def write_rules(path: Path, rules: Rules) -> None:
    """Write ``rules`` as JSON, atomically."""
    content = {
        "schema": SCHEMA_VERSION,
        "labels": rules.labels,
        "largest_component_of_all_organs": rules.whole_foreground,
        "largest_component_of": list(rules.largest),
        "holes_filled_in": list(rules.filled),
        "evidence": rules.evidence,
    }
    atomic.write_json(path, content)


def read_rules(path: Path, labels: dict[str, int] | None = None) -> Rules:
    """The rules in ``path``; ConfigError when it is no such file, or made for another label set than ``labels``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA_VERSION:
            raise ConfigError(f"{path}: schema {content['schema']}, this version reads {SCHEMA_VERSION}")
        rules = Rules(
            {str(name): int(label) for name, label in content["labels"].items()},
            bool(content["largest_component_of_all_organs"]),
            tuple(int(label) for label in content["largest_component_of"]),
            tuple(int(label) for label in content["holes_filled_in"]),
            dict(content["evidence"]),
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; 'flarecps postprocess determine PREDICTIONS REFERENCES --out {path}' makes it from "
            "validation scans"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not the rules that 'flarecps postprocess determine' writes ({error})") from error
    if strange := (set(rules.largest) | set(rules.filled)) - (set(rules.labels.values()) - {0}):
        raise ConfigError(f"{path}: structures {sorted(strange)} are not in its own label set")
    if labels is not None and _organs(rules.labels) != _organs(labels):
        raise ConfigError(
            f"{path}: made for the labels {_organs(rules.labels)}, the checkpoint's are {_organs(labels)}"
        )
    return rules


def rules_beside(checkpoints: tuple[Path, ...]) -> Path:
    """The postprocessing.json in the checkpoints' folders; ConfigError when there is none, or several differ."""
    found = [path for folder in dict.fromkeys(one.parent for one in checkpoints)
             if (path := folder / FILE_NAME).is_file()]  # fmt: skip
    if not found:
        raise ConfigError(
            f"{checkpoints[0].parent / FILE_NAME}: no such file; 'flarecps postprocess determine PREDICTIONS "
            f"REFERENCES --out {checkpoints[0].parent}' makes it from validation scans"
        )
    first = read_rules(found[0])
    for other in found[1:]:
        theirs = read_rules(other)
        if (theirs.whole_foreground, theirs.largest, theirs.filled) != (
            first.whole_foreground, first.largest, first.filled,
        ):  # fmt: skip
            raise ConfigError(f"{other}: other rules than {found[0]}; name the file to be applied")
    return found[0]


def _organs(labels: dict[str, int]) -> dict[str, int]:
    return {name: label for name, label in labels.items() if label}


def _boxes(labels: LabelArray, organs: tuple[int, ...]) -> list[tuple[int, tuple[slice, ...]]]:
    """Each organ that is there, with the box around it: everything about it can be done inside."""
    boxes = ndimage.find_objects(labels)
    return [(organ, boxes[organ - 1]) for organ in organs if organ <= len(boxes) and boxes[organ - 1] is not None]
