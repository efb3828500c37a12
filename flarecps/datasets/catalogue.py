"""What a data set holds: its cases with their roles, its labels, its channels. No voxel is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flarecps.case_names import ALIKE, taken_by
from flarecps.datasets.findings import FindingCollector
from flarecps.datasets.label_names import channel_names, label_names, left_right_pairs
from flarecps.datasets.layouts import Case, Role, list_folder
from flarecps.datasets.relabelling import relabel_command
from flarecps.datasets.splits import DEFAULT_SPLIT, SPLITS, Split, choose_split, data_set_splits, read_splits
from flarecps.errors import DatasetError
from flarecps.json_fields import is_whole, shown

__all__ = ["Case", "Catalogue", "Role", "read_catalogue"]


@dataclass(frozen=True)
class Catalogue:
    """The cases of one data set and what its numbers mean.

    ``labels`` maps structure names to ids 0..K-1 with background 0, ascending by id. ``left_right_pairs`` holds
    (right, left) label ids. Unlabelled and test cases keep the path of their labels where the data set has some:
    nothing but evaluation may look at them.
    """

    root: Path
    name: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    left_right_pairs: tuple[tuple[int, int], ...]
    cases: tuple[Case, ...]
    layout: str = "nnU-Net"
    validation_names: tuple[str, ...] = ()  # labelled cases that a split holds out
    faults: Mapping[str, str] = field(default_factory=dict)  # why a case was left out, by its name

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with labels to learn from, validation cases included."""
        return tuple(case for case in self.cases if case.role == "labelled")

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases of which only the image may be used in training."""
        return tuple(case for case in self.cases if case.role == "unlabelled")

    @property
    def test(self) -> tuple[Case, ...]:
        """Cases kept apart for the end; their labels may be absent."""
        return tuple(case for case in self.cases if case.role == "test")

    @property
    def label_folders(self) -> tuple[Path, ...]:
        """The folders in which the label maps lie that training or testing uses."""
        return label_folders(self.cases)

    @property
    def split(self) -> Split:
        """The roles as a split, which ``splits.json`` can hold."""
        held_out = set(self.validation_names)
        return Split(
            labelled=tuple(case.name for case in self.labelled if case.name not in held_out),
            unlabelled=tuple(case.name for case in self.unlabelled),
            test=tuple(case.name for case in self.test),
            validation=self.validation_names,
            annotated={case.name: case.annotated for case in self.cases if case.annotated is not None},
        )

    def with_split(self, split: Split, complaints: FindingCollector | None = None) -> Catalogue:
        """The same data set with the roles of ``split``; cases it does not name are left out.

        A name the data set does not have, and a labelled or validation case without labels, are faults. Raises
        DatasetError for annotated label ids it does not know, and when no labelled case is left.
        """
        complaints = complaints or FindingCollector()
        by_name = {case.name: case for case in self.cases}
        known = {*by_name, *self.faults}
        roles: list[tuple[str, Role]] = [(name, "labelled") for name in split.labelled + split.validation]
        roles += [(name, "unlabelled") for name in split.unlabelled]
        roles += [(name, "test") for name in split.test]
        unknown = [name for name in (*(name for name, _ in roles), *split.annotated) if name not in known]
        for name in dict.fromkeys(unknown):
            complaints.add_fault(
                name, "missing-file",
                f"{self.root}: the split names {len(unknown)} cases that are not there, first {unknown[0]!r}",
                "case names: file names without _0000 and suffix",
            )  # fmt: skip
        for name, ids in split.annotated.items():
            strange = sorted(set(ids) - set(self.labels.values()))
            if strange:
                raise DatasetError(f"{self.root}: annotated ids {strange} of case {name!r} are not in dataset.json")
        cases = tuple(
            replace(by_name[name], role=role, annotated=split.annotated.get(name, by_name[name].annotated))
            for name, role in roles
            if name in by_name
        )
        held_out = tuple(name for name in split.validation if name in by_name)
        return _with_labels(replace(self, cases=cases, validation_names=held_out), complaints)


def label_folders(cases: Sequence[Case]) -> tuple[Path, ...]:
    """The folders that hold the label maps of labelled and test cases, each once."""
    return tuple(dict.fromkeys(case.labels.parent for case in cases if case.labels and case.role != "unlabelled"))


def read_catalogue(
    dataset: Path | str, split: str | None = None, complaints: FindingCollector | None = None
) -> Catalogue:
    """The catalogue of a data set folder, with the roles its folders give or those of a split of ``splits.json``.

    ``split`` names one of several; without it a flat ``splits.json`` (or its split "default") counts, and named splits
    do not. nnU-Net's ``splits_final.json`` holds such named splits: "fold_0", "fold_1", … A case that lacks a channel,
    labels, its image or a listed file, whose name is taken, or has no plain name, is left out and stands in ``faults``:
    whoever works through the cases says so. Raises DatasetError: missing folder, no images, no labelled case, or labels
    that are not ``{name: id}`` with ids 0, 1, 2, ...

    With ``complaints`` that collect, what concerns the numbering of labels is kept there instead of raised, and ids
    stay as they are written.
    """
    complaints = complaints or FindingCollector()
    root = Path(dataset)
    layout, cases, description = list_folder(root, complaints)
    where = str(root / "dataset.json")
    labels = _read_labels(description.get("labels"), where, complaints, label_folders(cases))
    name = description.get("name", root.resolve().name)
    if not isinstance(name, str):
        raise DatasetError(f'{where}: "name" is {shown(name)}; expected a text in quotes')
    catalogue = Catalogue(
        root=root,
        name=name,
        labels=labels,
        channels=channel_names(description, where),
        left_right_pairs=_read_pairs(description.get("left_right_pairs"), labels, where),
        cases=cases,
        layout=layout,
    )
    catalogue = replace(catalogue, cases=_sound_cases(catalogue, complaints), faults=complaints.faults)
    roles = catalogue.split
    splits = data_set_splits(root, roles.unlabelled, roles.test)
    if split is not None and not splits:
        splits = read_splits(root / SPLITS)  # which says that there is none
    if split is not None or DEFAULT_SPLIT in splits:
        return catalogue.with_split(choose_split(splits, split, root), complaints)
    return _with_labels(catalogue, complaints)


def _read_labels(content: Any, where: str, complaints: FindingCollector, folders: Sequence[Path]) -> dict[str, int]:
    """``{name: id}`` ascending by id; a gap in the ids is complained of: networks have a channel for every id."""
    command = partial(relabel_command, folders[0] if folders else Path(where).with_name("LABELS"))
    labels = label_names(content, where, any_ids=True, relabel=command)
    if list(labels.values()) != list(range(len(labels))):
        in_order = sorted(labels.values(), key=lambda label: (label < 0, label))
        changed = {old: new for new, old in enumerate(in_order) if new != old}
        proposal = ", ".join(f"{old}->{new}" for old, new in changed.items())
        ids = ",".join(f"{old}={new}" for old, new in changed.items())
        commands = " and ".join(relabel_command(folder, ids) for folder in folders)
        complaints.add(
            "", "label-ids",
            f"{where}: label ids {list(labels.values())}",
            "0, 1, 2, ... without gaps",
            f"renumber the label files{f' ({commands})' if commands else ''} and dataset.json: {proposal}",
        )  # fmt: skip
    return labels


def _read_pairs(content: Any, labels: dict[str, int], where: str) -> tuple[tuple[int, int], ...]:
    """(right, left) ids as written, else found by name: "right X" and "left X", "X_right" and "X_left"."""
    if content is None:
        return left_right_pairs(labels)
    if not isinstance(content, list | tuple) or not all(  # a tuple of the presets
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_whole, pair)) for pair in content
    ):
        raise DatasetError(f'{where}: "left_right_pairs" is {shown(content)}; expected a list of [right id, left id]')
    pairs = tuple((right, left) for right, left in content)
    strange = sorted({label for pair in pairs for label in pair} - set(labels.values()))
    if strange:
        raise DatasetError(f'{where}: "left_right_pairs" names the ids {strange}, which "labels" does not have')
    return pairs


def _sound_cases(catalogue: Catalogue, complaints: FindingCollector) -> tuple[Case, ...]:
    """The cases that can be used: each name once, one file per channel."""
    if not any(case.role == "labelled" for case in catalogue.cases):
        raise _no_labelled_case(catalogue.root, complaints.faults)
    sound: dict[str, Case] = {}
    known: dict[str, str] = {}
    for case in catalogue.cases:
        other = taken_by(case.name, known)
        if other in sound:
            code, where = ("same-name", "") if other == case.name else ("letter-case", ALIKE)
            complaints.add_fault(
                case.name, code,
                f"{case.images[0]}: the case name {case.name!r} is taken by {sound[other].images[0]}{where}",
                "one scan per name",
            )  # fmt: skip
        elif len(case.images) != len(catalogue.channels):
            complaints.add_fault(
                case.name, "channel-count",
                f"{case.images[0]}: case {case.name!r} has {len(case.images)} image files, but dataset.json names "
                f"{len(catalogue.channels)} channels ({', '.join(catalogue.channels)})",
                "one file per channel",
            )  # fmt: skip
        else:
            sound[case.name] = case
    return tuple(sound.values())


def _no_labelled_case(root: Path, faults: Mapping[str, str]) -> DatasetError:
    first = "".join(f"; the first fault: {fault}" for fault in list(faults.values())[:1])
    return DatasetError(f"{root}: no labelled case; expected training images with a label file each{first}")


def _with_labels(catalogue: Catalogue, complaints: FindingCollector) -> Catalogue:
    """The data set without the training images that have no labels, which are its faults then."""
    missing = [case for case in catalogue.labelled if case.labels is None]
    if len(missing) == len(catalogue.labelled):
        if not missing:
            raise _no_labelled_case(catalogue.root, {**catalogue.faults, **complaints.faults})
        raise DatasetError(
            f"{catalogue.root}: no labelled case: {len(missing)} training images, none with a label file of its name"
        )
    for case in missing:
        complaints.add_fault(
            case.name, "image-without-labels",
            f"{case.images[0]}: training image without labels ({len(missing)} such cases)",
            f"labels called {case.name}",
            "add them, or move the image to imagesUn/ (unlabelled)",
        )  # fmt: skip
    left = tuple(case for case in catalogue.cases if case not in missing)
    held_out = tuple(name for name in catalogue.validation_names if any(case.name == name for case in left))
    return replace(catalogue, cases=left, validation_names=held_out, faults={**catalogue.faults, **complaints.faults})
