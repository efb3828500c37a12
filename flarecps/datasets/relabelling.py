"""Changing the numbers in label files: what the doctor proposes, and `flarecps relabel`, which applies it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.datasets.case_checks import label_counts
from flarecps.datasets.label_names import LARGEST_ID
from flarecps.errors import DatasetError, ScanError, counted, first_few
from flarecps.volumes.io import read_volume, write_labels

UNSIGNED_MINUS_ONE = (2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1)


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
        if not equals or not 0 <= pair[1] <= LARGEST_ID:
            raise DatasetError(f"ids {words!r}: new id {pair[1]}; expected 0 to {LARGEST_ID}")
        pairs.append(pair)
    if len({old for old, _ in pairs}) != len(pairs):
        raise DatasetError(f"ids {words!r}: an old id is named twice; expected each once")
    return tuple(pairs)


def relabel_file(source_and_out: tuple[Path, Path], ids: Sequence[tuple[int, int]]) -> int:
    """Write a label map with other ids on the same grid (uint8 NIfTI); how many voxels changed.

    ``ids``: (old, new); those that are not named stay. Raises ScanError for fractions, and for ids that end up outside
    0 to 255.
    """
    source, out = source_and_out
    volume = read_volume(source)
    array = volume.array[0]
    counts = label_counts(array)
    if counts is None:
        raise ScanError(f"{source}: some voxels are not whole numbers; expected a label map")
    table = {old: old for old in counts} | {old: new for old, new in ids if old in counts}
    outside = sorted(old for old, new in table.items() if not 0 <= new <= LARGEST_ID)
    if outside:
        listed = first_few([str(old) for old in outside])
        cure = "name them in --ids, each as OLD=NEW" if len(outside) <= LARGEST_ID else "is it the scan instead?"
        raise ScanError(f"{source}: the ids {listed} do not fit into 0 to {LARGEST_ID}: {cure}")
    old_ids = np.asarray(list(table))
    new_ids = np.asarray([table[old] for old in old_ids.tolist()], np.uint8)
    renumbered = np.empty(array.shape, np.uint8)
    for before, after in zip(array, renumbered, strict=True):
        after[:] = new_ids[np.searchsorted(old_ids, np.rint(before).astype(np.int64))]
    write_labels(out, renumbered, volume.source)
    return sum(counts[old] for old, new in table.items() if old != new)


@dataclass(frozen=True)
class Renumbering:
    """A proposed map of label ids, the ``labels`` of dataset.json that go with it, and why.

    ``folders``: where the label maps lie that are to be renumbered.
    """

    ids: dict[int, int]  # old -> new; ids not named stay
    labels: dict[str, int]
    reason: str
    left_right_pairs: tuple[tuple[int, int], ...] = ()
    changes_dataset_json: bool = True
    folders: tuple[Path, ...] = ()

    @property
    def commands(self) -> list[str]:
        """What renumbers the label maps, a command for each folder: the maps are written beside it, the old ones stay.

        Empty where only dataset.json is to be changed.
        """
        ids = ",".join(f"{old}={new}" for old, new in self.ids.items())
        return [relabel_command(folder, ids) for folder in self.folders if ids]

    def to_json(self) -> dict[str, Any]:
        """The proposal as plain JSON types; ``dataset_json`` is the fragment to put into dataset.json."""
        return {
            "reason": self.reason,
            "ids": {str(old): new for old, new in self.ids.items()},
            "dataset_json": self.dataset_json,
            "commands": self.commands,
        }

    @property
    def dataset_json(self) -> dict[str, Any]:
        """The entries that dataset.json must have."""
        pairs = {"left_right_pairs": [list(pair) for pair in self.left_right_pairs]} if self.left_right_pairs else {}
        return {"labels": self.labels} | pairs

    @property
    def fragment(self) -> str:
        """The changed entries of dataset.json on one line; empty where it stays as it is."""
        if not self.changes_dataset_json:
            return ""
        return json.dumps(self.dataset_json, ensure_ascii=False)[1:-1]


def relabel_command(folder: Path, ids: str) -> str:
    """The command that writes the label maps of ``folder`` with other ids (as "63=1,126=2") beside it."""
    out = folder.with_name(f"{folder.name}_renumbered")
    return shlex.join(["flarecps", "relabel", str(folder), str(out), f"--ids={ids}"])  # "=", for an id may be below 0


def propose_renumbering(
    labels: Mapping[str, int],
    maps: Sequence[Collection[int]],
    pairs: Sequence[tuple[int, int]] = (),
    folders: Sequence[Path] = (),
) -> Renumbering | None:
    """The map to consecutive ids, or None where there is nothing to renumber. Ids that fit stay what they are.

    ``labels`` and ``pairs`` (right, left) are dataset.json's, ``maps`` the ids in each label map. Gaps in dataset.json
    are closed. Ids below 0 that it does not name are cleared, and -1 as unsigned numbers hold it. If the maps hold as
    many unknown ids as dataset.json has structures that nobody drew, they are paired in ascending order. Otherwise an
    unknown id takes the place of the one structure that is missing wherever it occurs; failing that it becomes a
    structure of its own, after the known ones, to be named or mapped to 0 by the user.

    >>> propose_renumbering({"background": 0, "liver": 1, "spleen": 2}, [{0, 63, 126}, {0, 126}]).ids
    {63: 1, 126: 2}
    >>> propose_renumbering({"background": 0, "liver": 1, "spleen": 2}, [{-1, 0, 1}]).ids
    {-1: 0}
    >>> propose_renumbering({"background": 0, "liver": 1, "spleen": 2}, [{0, 1, 255}]).ids
    {255: 0}
    """
    closed = {name: new for new, name in enumerate(sorted(labels, key=lambda name: (labels[name] < 0, labels[name])))}
    ids = {labels[name]: new for name, new in closed.items() if labels[name] != new}
    reasons = ["dataset.json leaves gaps between its ids, or holds some outside 0 to 255"] if ids else []
    known = set(labels.values()) - {0}
    drawn = sorted(set().union(*maps) - {0})
    unlooked = [label for label in drawn if (label < 0 or label in UNSIGNED_MINUS_ONE) and label not in known]
    unknown = [label for label in drawn if label not in known and label not in unlooked]
    never = sorted(known - set(drawn))
    extended = dict(closed)
    names = {label: name for name, label in labels.items()}
    if unlooked:
        ids |= dict.fromkeys(unlooked, 0)
        reasons.append(
            f"{_listed(unlooked)} below 0 (or -1 as an unsigned number), which programs write where nobody looked: "
            'cleared; a structure that was left out there belongs on no list under "annotated" in splits.json'
        )
    if unknown and len(unknown) == len(never):
        ids |= {label: closed[names[missing]] for label, missing in zip(unknown, never, strict=True)}
        reasons.append(
            f"the label maps hold {counted(len(unknown), 'unknown id')}, as many as there are structures that nobody "
            "drew: paired in ascending order; check with the pictures that the names fit"
        )
        unknown = []
    own = []
    for label in unknown:
        missing = _missing_with(label, known, maps)
        if len(missing) == 1 and len([one for one in unknown if _missing_with(one, known, maps) == missing]) == 1:
            name = names[missing.pop()]
            ids[label] = closed[name]
            reasons.append(f"{label} stands where {name} is missing")
        else:
            own.append(label)
            extended[f"unknown {label}"] = len(extended)
            ids[label] = extended[f"unknown {label}"]
    if own:
        reasons.append("unknown ids become structures of their own: name them, or write ID=0 to clear")
    if not reasons:
        return None
    renumbered = tuple((ids.get(right, right), ids.get(left, left)) for right, left in pairs)
    ids = {old: new for old, new in sorted(ids.items()) if old != new}
    return Renumbering(ids, extended, "; ".join(reasons), renumbered, extended != dict(labels), tuple(folders))


def _listed(ids: Sequence[int]) -> str:
    return f"{'id' if len(ids) == 1 else 'ids'} {', '.join(map(str, ids))}"


def _missing_with(label: int, known: set[int], maps: Sequence[Collection[int]]) -> set[int]:
    """The known structures that are missing wherever ``label`` occurs."""
    return set.intersection(*(known - set(held) for held in maps if label in held))
