"""How data sets lie on disk: nnU-Net v2's raw folders, FLARE22's own, MSD, and plain images/labels/unlabelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flarecps.anatomy import FLARE22_LABELS, FLARE22_PAIRS
from flarecps.datasets.findings import FindingCollector
from flarecps.datasets.splits import read_json
from flarecps.errors import DatasetError
from flarecps.volumes.io import is_scan_file, scan_name

Role: TypeAlias = Literal["labelled", "unlabelled", "test"]

_CHANNEL_ENDING = re.compile(r"^(?P<name>.+)_(?P<channel>\d{4})$")  # nnU-Net: CASE_0000.nii.gz


@dataclass(frozen=True)
class Case:
    """One patient's scan: one image file (or DICOM folder) per channel, and where its labels are, if anywhere.

    ``annotated`` lists the label ids drawn in this case; None means all of the data set's.
    """

    name: str
    role: Role
    images: tuple[Path, ...]
    labels: Path | None = None
    annotated: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """What a layout found: its name, the cases, and the content of ``dataset.json`` (FLARE22's preset without one)."""

    layout: str
    cases: tuple[Case, ...]
    description: Mapping[str, Any]


def list_folder(root: Path, complaints: FindingCollector | None = None) -> Listing:
    """The cases of a data set folder, in the first layout that fits: FLARE22, MSD, nnU-Net v2, plain.

    Cases come sorted by name within labelled, unlabelled, test. A training image without labels is listed as labelled
    with ``labels=None``: ``catalogue`` decides whether that is a mistake. Raises DatasetError when the folder is
    missing or fits no layout; labels without an image, odd channels and missing files go to ``complaints`` (which
    raises by default), and the files concerned are left out.
    """
    complaints = complaints or FindingCollector()
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a data set folder (see `flarecps inspect --help`)")
    file = root / "dataset.json"
    description: Mapping[str, Any] | None = None
    if file.is_file():
        description = read_json(file)
        if not isinstance(description, dict):
            raise DatasetError(f"{file}: expected a JSON object")
    flare_labelled = _flare22_labelled(root)
    if flare_labelled is not None:
        return _list_flare22(root, flare_labelled, description, complaints)
    if description is not None and isinstance(description.get("training"), list):
        return Listing("MSD", _list_msd(root, description, complaints), description)
    if description is not None and isinstance(description.get("dataset"), Mapping):
        return Listing("nnU-Net", _list_named(root, description["dataset"], complaints), description)
    if (root / "imagesTr").is_dir():
        cases = _list_roles(
            [(root / "imagesTr", root / "labelsTr", "labelled"), (root / "imagesUn", None, "unlabelled"),
             (root / "imagesTs", root / "labelsTs", "test")],
            complaints,
        )  # fmt: skip
        return Listing("nnU-Net", cases, _required(description, root))
    if (root / "images").is_dir():
        unlabelled = root / "unlabelled" if (root / "unlabelled").is_dir() else root / "unlabeled"
        test = root / "test"
        cases = _list_roles(
            [(root / "images", root / "labels", "labelled"), (_images_of(unlabelled), None, "unlabelled"),
             (_images_of(test), test / "labels", "test")],
            complaints,
        )  # fmt: skip
        return Listing("plain", cases, _required(description, root))
    raise DatasetError(
        f"{root}: no images found; expected imagesTr/ (nnU-Net v2), FLARE22_LabeledCase50/, an MSD dataset.json, "
        f"or images/ labels/ unlabelled/"
    )


def _images_of(folder: Path) -> Path:
    """``folder/images`` where that exists, else the folder itself."""
    return folder / "images" if (folder / "images").is_dir() else folder


def _scans_in(folder: Path | None) -> list[Path]:
    """Scan files and sub-folders (DICOM series) in a folder, sorted; hidden ones and other files are passed over."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if is_scan_file(path) or (path.is_dir() and path.name != "labels" and not path.name.startswith("."))
    )


def _list_roles(places: list[tuple[Path, Path | None, Role]], complaints: FindingCollector) -> tuple[Case, ...]:
    """The cases of several (images folder, labels folder, role); one rule on channel endings for all of them.

    ``_0000`` at the end of a file name is a channel unless label files carry the very same names (MSD's habit).
    """
    found = [(_scans_in(images), _labels_in(labels), role, labels) for images, labels, role in places]
    label_names = {name for _, labels, _, _ in found for name in labels}
    stems = {scan_name(path) for paths, _, _, _ in found for path in paths}
    coded = not (label_names & stems)
    cases: list[Case] = []
    for paths, labels, role, labels_folder in found:
        channels: dict[str, list[tuple[int, Path]]] = {}
        for path in paths:
            match = _CHANNEL_ENDING.match(scan_name(path)) if coded else None
            name, channel = (match["name"], int(match["channel"])) if match else (scan_name(path), 0)
            channels.setdefault(name, []).append((channel, path))
        orphans = sorted(set(labels) - set(channels))
        for orphan in orphans if role == "labelled" else []:
            complaints.add(
                orphan, "labels-without-image",
                f"{labels[orphan]}: labels without an image ({len(orphans)} such files in {labels_folder})",
                f"an image called {orphan}_0000 beside the others",
            )  # fmt: skip
        for name, images in sorted(channels.items()):
            numbers = [channel for channel, _ in sorted(images)]
            if numbers != list(range(len(numbers))):
                complaints.add(
                    name, "channel-count",
                    f"{images[0][1]}: case {name!r} has the channels {numbers}",
                    "0, 1, ... once each (file names ending in _0000, _0001, ...)",
                )  # fmt: skip
                continue
            cases.append(Case(name, role, tuple(path for _, path in sorted(images)), labels.get(name)))
    return tuple(cases)


def _labels_in(folder: Path | None) -> dict[str, Path]:
    """Label files by case name."""
    return {scan_name(path): path for path in _scans_in(folder)}


def _flare22_labelled(root: Path) -> Path | None:
    """The folder of FLARE22's 50 labelled cases, in ``root`` or one folder below it (``Training``); None without."""
    candidates = [*sorted(root.glob("*LabeledCase*")), *sorted(root.glob("*/*LabeledCase*"))]
    for folder in candidates:
        if "unlabeled" not in folder.name.lower() and (folder / "images").is_dir():
            return folder
    return None


def _list_flare22(
    root: Path, labelled: Path, description: Mapping[str, Any] | None, complaints: FindingCollector
) -> Listing:
    """FLARE22 as its organisers ship it; validation and tuning folders count as test."""
    places: list[tuple[Path, Path | None, Role]] = [(labelled / "images", labelled / "labels", "labelled")]
    for parent in dict.fromkeys([root, labelled.parent]):
        places += [(_images_of(folder), None, "unlabelled") for folder in sorted(parent.glob("*UnlabeledCase*"))]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if any(word in folder.name.lower() for word in ("validation", "tuning", "test")):
            places.append((_images_of(folder), folder / "labels", "test"))
    preset = {
        "name": "FLARE22",
        "labels": FLARE22_LABELS,
        "channel_names": {"0": "CT"},
        "left_right_pairs": FLARE22_PAIRS,
    }
    return Listing("FLARE22", _list_roles(places, complaints), description if description is not None else preset)


def _list_msd(root: Path, description: Mapping[str, Any], complaints: FindingCollector) -> tuple[Case, ...]:
    """Medical Segmentation Decathlon: image and label paths are listed in dataset.json; ``imagesUn/`` is ours."""
    cases: list[Case] = []
    for entry in description["training"]:
        if not isinstance(entry, Mapping) or "image" not in entry:
            raise DatasetError(f'{root / "dataset.json"}: "training" must list {{"image": path, "label": path}}')
        image = root / entry["image"]
        labels = root / entry["label"] if entry.get("label") else None
        cases += _if_complete(Case(scan_name(image), "labelled", (image,), labels), complaints)
    unlabelled = [Case(scan_name(path), "unlabelled", (path,)) for path in _scans_in(root / "imagesUn")]
    listed = description.get("test", [])
    tests = [root / (entry["image"] if isinstance(entry, Mapping) else entry) for entry in listed]
    labels_of = _labels_in(root / "labelsTs")
    test = [Case(scan_name(path), "test", (path,), labels_of.get(scan_name(path))) for path in tests if path.exists()]
    by_name = attrgetter("name")
    return (*sorted(cases, key=by_name), *unlabelled, *sorted(test, key=by_name))


def _if_complete(case: Case, complaints: FindingCollector) -> list[Case]:
    """The case, if all files that dataset.json gives for it are there."""
    absent = [path for path in (*case.images, case.labels) if path is not None and not path.exists()]
    for path in absent:
        complaints.add(case.name, "missing-file", f"{path}: listed in dataset.json but not there", "the file")
    return [] if absent else [case]


def _list_named(root: Path, named: Mapping[str, Any], complaints: FindingCollector) -> tuple[Case, ...]:
    """nnU-Net v2's other way: dataset.json's "dataset" gives every training case's files; the rest lies in folders."""
    cases: list[Case] = []
    for name, entry in sorted(named.items()):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), list) or "label" not in entry:
            raise DatasetError(
                f'{root / "dataset.json"}: "dataset" must give {{"images": [paths], "label": path}} of case {name!r}'
            )
        images, labels = tuple(root / str(path) for path in entry["images"]), root / str(entry["label"])
        cases += _if_complete(Case(name, "labelled", images, labels), complaints)
    rest = _list_roles(
        [(root / "imagesUn", None, "unlabelled"), (root / "imagesTs", root / "labelsTs", "test")], complaints
    )
    return tuple(cases) + rest


def _required(description: Mapping[str, Any] | None, root: Path) -> Mapping[str, Any]:
    if description is None:
        raise DatasetError(
            f"{root / 'dataset.json'}: missing; it names the labels, for example "
            '{"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}'
        )
    return description
