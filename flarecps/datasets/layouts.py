"""How data sets lie on disk: nnU-Net v2's raw folders, FLARE22's own, MSD, and plain images/labels/unlabelled.

A subset of a data set is a folder of links in nnU-Net v2's layout: nothing is copied, the source untouched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flarecps.anatomy import FLARE22_LABELS, FLARE22_PAIRS
from flarecps.atomic import PARTIAL_PREFIX, write_json
from flarecps.case_names import composed, file_name, why_not_plain
from flarecps.datasets.findings import FindingCollector
from flarecps.errors import DatasetError, first_few
from flarecps.json_fields import shown
from flarecps.text_files import read_json
from flarecps.volumes.dicom import read_stack
from flarecps.volumes.dicom_slices import SUFFIXES
from flarecps.volumes.discovery import FoundCase, find_cases, find_scans, label_name, labels_of
from flarecps.volumes.io import is_scan_file, scan_name
from flarecps.volumes.links import place_of, stack_of

Role: TypeAlias = Literal["labelled", "unlabelled", "test"]
_Place: TypeAlias = tuple[Path, Path | None, Role]  # folder of images, folder of labels, whose they are

FLARE22_DESCRIPTION = {
    "name": "FLARE22",
    "labels": FLARE22_LABELS,
    "channel_names": {"0": "CT"},
    "left_right_pairs": FLARE22_PAIRS,
}
DATASET_JSON = "dataset.json"
SEVERAL = "stacks of slices"  # in the fault of a folder of which labels do not say the stack
EXPECTED = (
    "expected a dataset.json; it names the labels, for example "
    '{"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}'
)


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


def list_folder(
    root: Path, complaints: FindingCollector, description: Mapping[str, Any] | None = None
) -> tuple[str, tuple[Case, ...], Mapping[str, Any]]:
    """The layout, cases and description of a data set folder, in the first layout that fits: FLARE22, MSD, nnU-Net v2,
    plain. The description is the content of ``dataset.json`` (FLARE22's preset without one), or the one given.

    Cases come sorted by name within labelled, unlabelled, test. A training image without labels is listed as labelled
    with ``labels=None``: ``catalogue`` decides whether that is a mistake. Raises DatasetError when the folder is
    missing or fits no layout; labels without an image, odd channels and missing files go to ``complaints``, and the
    files concerned are left out.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a data set folder (see `flarecps inspect --help`)")
    file = root / DATASET_JSON
    if description is None and file.exists():
        description = read_json(file, DatasetError, EXPECTED)
        if not isinstance(description, dict):
            raise DatasetError(f"{file}: holds {shown(description)}; {EXPECTED}")
    files = _files_of(description)
    if files.ending and not is_scan_file(Path(f"x.{files.ending.lstrip('.')}")):
        raise DatasetError(
            f'{file}: "file_ending" is {shown(files.ending)}; expected that of 3D images (.nii.gz, .nii, .nrrd, .mha): '
            "convert the scans, single pictures into one volume a patient"
        )
    for flare22 in [*sorted(root.glob("*LabeledCase*")), *sorted(root.glob("*/*LabeledCase*"))]:  # as in ``Training``
        if "unlabeled" not in flare22.name.lower() and (flare22 / "images").is_dir():
            cases = _list_roles(_flare22_places(root, flare22), complaints, files)
            return "FLARE22", cases, FLARE22_DESCRIPTION if description is None else description
    if description is not None and isinstance(listed := description.get("training"), list):
        entries = [_listed_files(root, entry, "image", f'"training" entry {n}') for n, entry in enumerate(listed)]
        if _list_counts(root, "training", [images[0] for images, _ in entries], complaints):
            return "MSD", _list_msd(root, entries, description, complaints), description
    elif description is not None and isinstance(listed := description.get("dataset"), Mapping):
        named = {
            composed(name): _listed_files(root, entry, "images", f'"dataset" of case {name!r}')
            for name, entry in listed.items()
        }
        if _list_counts(root, "dataset", [images[0] for images, _ in named.values()], complaints):
            return "nnU-Net", _list_named(root, named, complaints, files), description
    places: list[_Place]
    images, labels = training_folders(root)
    if (root / "imagesTr").is_dir():
        layout = "nnU-Net"
        places = [(images, labels, "labelled"), *_nnunet_rest(root)]
    elif images.is_dir():
        layout, test = "plain", root / "test"
        unlabelled = root / "unlabelled" if (root / "unlabelled").is_dir() else root / "unlabeled"
        places = [
            (images, labels, "labelled"),
            (_images_of(unlabelled), None, "unlabelled"),
            (_images_of(test), test / "labels", "test"),
        ]
    else:
        raise DatasetError(
            f"{root}: no images found; expected imagesTr/ (nnU-Net v2), FLARE22_LabeledCase50/, an MSD dataset.json, "
            f"or images/ labels/ unlabelled/"
        )
    cases = _list_roles(places, complaints, files)
    if description is None:
        command = shlex.join(["flarecps", "convert", str(root)])
        raise DatasetError(
            f"{file}: missing; '{command}' drafts one; {EXPECTED.removeprefix('expected a dataset.json; ')}"
        )
    return layout, cases, description


def training_folders(root: Path) -> tuple[Path, Path]:
    """Where images and label maps lie in nnU-Net's layout, and in the plain one where that is not there."""
    tr = "Tr" if (root / "imagesTr").is_dir() else ""
    return root / f"images{tr}", root / f"labels{tr}"


def _nnunet_rest(root: Path) -> list[_Place]:
    return [(root / "imagesUn", None, "unlabelled"), (root / "imagesTs", root / "labelsTs", "test")]


def _images_of(folder: Path) -> Path:
    """``folder/images`` where that exists, else the folder itself."""
    return folder / "images" if (folder / "images").is_dir() else folder


@dataclass(frozen=True)
class _Files:
    """What dataset.json says of the files: how many channels a case has, and how files end (None: any ending)."""

    channels: int = 1
    ending: str | None = None


def _files_of(description: Mapping[str, Any] | None) -> _Files:
    description = description or {}
    channels = description.get("channel_names", description.get("modality"))
    ending = description.get("file_ending")
    if str(ending).lower() in SUFFIXES:  # of scans; labels are no DICOM
        ending = None
    return _Files(len(channels) if isinstance(channels, Mapping) else 1, ending if isinstance(ending, str) else None)


def _labels_in(folder: Path | None, ending: str | None = None) -> dict[str, Path]:
    """Label files by case name."""
    if folder is None or not folder.is_dir():
        return {}
    found = [path for path in find_scans(folder) if ending is None or path.name.lower().endswith(ending.lower())]
    return {label_name(path, folder): path for path in found}


def _list_roles(places: list[_Place], complaints: FindingCollector, files: _Files) -> tuple[Case, ...]:
    """The cases of several places, by the rule for all commands (docs/case-names.md)."""
    cases: list[Case] = []
    for images, labels_folder, role in places:
        if not images.is_dir():
            continue
        labels = _labels_in(labels_folder, files.ending)
        ending = None if role == "unlabelled" else files.ending  # nnU-Net, whose word it is, has no unlabelled scans
        found = find_cases(images, files.channels, labels, ending, leave_out=(images / "labels",))
        found = _stacks_with_labels(found, images, labels, role)
        named = {case.name for case in found}
        # A folder in which no slice was recognised is a case all the same where it has labels: reading it says why.
        unread = [name for name in labels if name not in named and (images / name).is_dir()]
        found += [FoundCase(name, (images / name,)) for name in unread]
        own = {case.name: labels_of(case.name, labels) for case in found}
        orphans = sorted(name for name, path in labels.items() if path not in own.values())
        for orphan in orphans if role == "labelled" else []:
            complaints.add_fault(
                orphan, "labels-without-image",
                f"{labels[orphan]}: labels without an image ({len(orphans)} such files in {labels_folder})",
                f"an image called {orphan}_0000 beside the others",
            )  # fmt: skip
        for case in sorted(found, key=attrgetter("name")):
            if case.fault:
                stray = len(case.images) > 1 and any(scan_name(path) == case.name for path in case.images)
                if SEVERAL in case.fault:
                    complaints.add_fault(case.name, "several-stacks", case.fault, "labels called by their stack")
                    continue
                code = "odd-name" if why_not_plain(case.name) else "stray-file" if stray else "channel-count"
                complaints.add_fault(case.name, code, case.fault, "a file per channel, of a plain name")
            else:
                cases.append(Case(case.name, role, case.images, own[case.name]))
    return tuple(cases)


def _stacks_with_labels(
    found: Sequence[FoundCase], images: Path, labels: Mapping[str, Path], role: Role
) -> list[FoundCase]:
    """The cases, of a DICOM folder with several stacks those that labels are called by.

    Where none is, and the folder is to be trained on or labels are called by the folder alone, that is its fault.
    """
    stacks: dict[str, list[FoundCase]] = defaultdict(list)
    for case in found:
        if stack_of(case.images[0]):
            stacks[label_name(place_of(case.images[0]), images).removesuffix("_0000")].append(case)
    left = [case for case in found if not stack_of(case.images[0])]
    for folder, cases in stacks.items():
        named = [case for case in cases if labels_of(case.name, labels)]
        if not named and (role == "labelled" or labels_of(folder, labels)):
            place, names = place_of(cases[0].images[0]), first_few([stack_of(case.images[0]) for case in cases])
            fault = f"{place}: {len(cases)} {SEVERAL} ({names}), and no label map is called {cases[0].name} or the like"
            left.append(FoundCase(folder, (place,), fault))
        else:
            left += named if role == "labelled" else cases
    return left


def _flare22_places(root: Path, labelled: Path) -> list[_Place]:
    """FLARE22 as its organisers ship it; validation and tuning folders count as test."""
    places: list[_Place] = [(labelled / "images", labelled / "labels", "labelled")]
    for parent in dict.fromkeys([root, labelled.parent]):
        places += [(_images_of(folder), None, "unlabelled") for folder in sorted(parent.glob("*UnlabeledCase*"))]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if any(word in folder.name.lower() for word in ("validation", "tuning", "test")):
            places.append((_images_of(folder), folder / "labels", "test"))
    return places


_Listed: TypeAlias = tuple[tuple[Path, ...], Path | None]  # images of a case, one per channel, and its labels


def _listed_files(root: Path, entry: Any, key: str, what: str) -> _Listed:
    """The files that dataset.json gives for a case, whose scan is under ``key`` ("image", or "images": a list)."""
    images = entry.get(key) if isinstance(entry, Mapping) else None
    labels = entry.get("label") if isinstance(entry, Mapping) else None
    paths = [images] if key == "image" else images
    if not (isinstance(paths, list) and paths and all(map(_is_path, paths)) and (not labels or _is_path(labels))):
        form = '{"image": path, "label": path}' if key == "image" else '{"images": [paths], "label": path}'
        raise DatasetError(f"{root / DATASET_JSON}: {what} is {shown(entry)}; expected {form}")
    return tuple(root / path for path in paths), root / labels if labels else None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _list_counts(root: Path, key: str, images: Sequence[Path], complaints: FindingCollector) -> bool:
    """Whether dataset.json's list of cases is what the folder holds, rather than what another program left in it.

    nnU-Net v1 listed CASE.nii.gz where the file is CASE_0000.nii.gz; then the folders decide.
    """
    if any(place_of(image).exists() for image in images) or not (root / "imagesTr").is_dir():
        return True
    if images:
        complaints.add(
            "", "stale-list",
            f'{root / DATASET_JSON}: none of the {len(images)} images under "{key}" is there, first {images[0]}',
            "the files of the folder, which were taken instead",
        )  # fmt: skip
    return False


def _list_msd(
    root: Path, entries: Sequence[_Listed], description: Mapping[str, Any], complaints: FindingCollector
) -> tuple[Case, ...]:
    """Medical Segmentation Decathlon: image and label paths are listed in dataset.json; ``imagesUn/`` is ours."""
    cases: list[Case] = []
    for images, labels in entries:
        name = label_name(images[0]).removesuffix("_0000")
        cases += _if_complete(Case(name, "labelled", images, labels), complaints)
    unlabelled = _list_roles([(root / "imagesUn", None, "unlabelled")], complaints, _Files())
    listed = description.get("test", [])
    if not isinstance(listed, list):
        raise DatasetError(f'{root / DATASET_JSON}: "test" is {shown(listed)}; expected a list of paths')
    tests: list[Path] = []
    for n, entry in enumerate(listed):
        entry = entry if isinstance(entry, Mapping) else {"image": entry}
        tests.append(_listed_files(root, entry, "image", f'"test" entry {n}')[0][0])
    if absent := [path for path in tests if not place_of(path).exists()]:
        complaints.add(
            "", "stale-list",
            f'{root / DATASET_JSON}: {len(absent)} of {len(tests)} scans under "test" are not there, first {absent[0]}',
            "the files that are listed",
        )  # fmt: skip
    known = _labels_in(root / "labelsTs")
    named = [(label_name(path).removesuffix("_0000"), path) for path in tests if place_of(path).exists()]
    test = [Case(name, "test", (path,), labels_of(name, known)) for name, path in named]
    by_name = attrgetter("name")
    return (*sorted(cases, key=by_name), *unlabelled, *sorted(test, key=by_name))


def _if_complete(case: Case, complaints: FindingCollector) -> list[Case]:
    """The case, if it has a plain name and all files that dataset.json gives for it are there."""
    if reason := why_not_plain(case.name):
        complaints.add_fault(
            case.name, "odd-name", f"dataset.json: the case name {ascii(case.name)[:80]} {reason}", "a plain one"
        )
        return []
    absent = [path for path in (*case.images, case.labels) if path is not None and not place_of(path).exists()]
    for path in absent:
        complaints.add_fault(case.name, "missing-file", f"{path}: listed in dataset.json but not there", "the file")
    return [] if absent else [case]


def _list_named(
    root: Path, named: Mapping[str, _Listed], complaints: FindingCollector, files: _Files
) -> tuple[Case, ...]:
    """nnU-Net v2's other way: dataset.json's "dataset" gives every training case's files; the rest lies in folders."""
    cases: list[Case] = []
    for name, (images, labels) in sorted(named.items()):
        cases += _if_complete(Case(name, "labelled", images, labels), complaints)
    return (*cases, *_list_roles(_nnunet_rest(root), complaints, files))


def link_cases(cases: Sequence[Case], images: Path, labels: Path | None = None) -> None:
    """Links to the cases' scans as ``images/NAME_0000.…`` and, given ``labels``, to their label maps as ``NAME.…``.

    Links that are there already and lead elsewhere are replaced; others in the folders stay. Raises DatasetError where
    the file system has no links.
    """
    for folder in (images, labels):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for channel, image in enumerate(case.images):
            _link(images / file_name(case.name, f"_{channel:04d}{file_suffix(image)}"), image)
        if labels is not None and case.labels is not None:
            _link(labels / file_name(case.name, file_suffix(case.labels)), case.labels)


def link_subset(
    out: Path, labelled: Sequence[Case], unlabelled: Sequence[Case], description: Mapping[str, Any]
) -> None:
    """A data set folder ``out`` of links to these cases; its ``dataset.json`` comes last, holding ``description``."""
    (out / "dataset.json").unlink(missing_ok=True)
    link_cases(labelled, out / "imagesTr", out / "labelsTr")
    link_cases(unlabelled, out / "imagesUn")
    files = [image for case in (*labelled, *unlabelled) for image in case.images]
    files += [case.labels for case in labelled if case.labels is not None]  # the one ending is theirs, too
    endings = {file_suffix(path) for path in files}
    ending = {"file_ending": endings.pop()} if len(endings) == 1 else {}
    others = {key: value for key, value in description.items() if key != "file_ending"}
    write_json(out / "dataset.json", {**others, "numTraining": len(labelled), **ending})


def _link(link: Path, target: Path) -> None:
    """``link`` leads to ``target`` (made absolute), whatever was there before; of a stack, a folder of such links."""
    if stack_of(target):
        slices, _ = read_stack(target)
        if any(one.frame is not None for one in slices):
            raise DatasetError(
                f"{target}: one of several stacks in a file, to which no link can lead: convert it first"
            )
        shutil.rmtree(link, ignore_errors=True)
        link.mkdir()
        for one in slices:
            _link(link / one.path.name, one.path)
        return
    partial = link.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}")
    try:
        partial.symlink_to(os.path.realpath(target))
        os.replace(partial, link)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(
            f"{link}: no link can be made there ({error.strerror}); choose an --out on a file system with links"
        ) from error


def file_suffix(path: Path) -> str:
    """``.nii.gz`` or the like; nothing for a DICOM folder."""
    if path.is_dir() or stack_of(path):
        return ""
    return "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
