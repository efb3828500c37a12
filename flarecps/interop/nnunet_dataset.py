"""Any data set this program knows as a raw data set of nnU-Net v2, made of links to its files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flarecps.atomic import PARTIAL_PREFIX, write_json
from flarecps.case_names import file_name
from flarecps.datasets.catalogue import Case, Catalogue, read_catalogue
from flarecps.datasets.splits import DEFAULT_SPLIT, split_to_json
from flarecps.errors import DatasetError, ScanError
from flarecps.volumes.io import read_space, scan_name
from flarecps.volumes.links import check_reachable, stack_of

FOLDERS = {"labelled": ("imagesTr", "labelsTr"), "unlabelled": ("imagesUn", ""), "test": ("imagesTs", "labelsTs")}
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")  # that nnU-Net's readers take
NAME = re.compile(r"Dataset\d{3}_\w+")  # of a raw data set's folder, or nnU-Net does not find it
SPLITS = "splits.json"


@dataclass(frozen=True)
class ConvertedDataset:
    """How many cases were written in each role, and what is worth a remark."""

    cases: dict[str, int]
    remarks: tuple[str, ...]
    faults: tuple[str, ...] = ()  # of cases that were left out


def convert_dataset(source: Path | str, out: Path | str, copy: bool = False) -> ConvertedDataset:
    """Write ``out`` as nnU-Net v2's raw layout, with ``imagesUn/`` for unlabelled scans.

    Files are linked, or copied with ``copy``; none is rewritten, so all must have one ending that nnU-Net reads. The
    folder appears whole or not at all. Raises DatasetError when ``out`` exists, the source is such a data set already,
    its endings differ, or a case is a DICOM folder; ScanError when the first scan can't be read.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise DatasetError(f"{out}: exists already; name a new folder, such as nnUNet_raw/Dataset022_FLARE22")
    catalogue = read_catalogue(source)
    if catalogue.layout == "nnU-Net":
        raise DatasetError(f"{source}: has nnU-Net's raw layout already; 'flarecps plan' and nnU-Net take it as it is")
    catalogue = _reachable(catalogue)
    ending = _one_ending(catalogue)
    read_space(catalogue.labelled[0].images[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=out.parent))
    partial.chmod(0o755)  # mkdtemp's folders are their owner's alone
    try:
        for case in catalogue.cases:
            _place(case, partial, ending, copy)
        write_json(partial / "dataset.json", _description(catalogue, ending))
        if (source / SPLITS).is_file():
            shutil.copyfile(source / SPLITS, partial / SPLITS)
        elif any(case.annotated is not None for case in catalogue.cases):
            write_json(partial / SPLITS, {DEFAULT_SPLIT: split_to_json(catalogue.split)})
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ConvertedDataset(
        {role: sum(case.role == role for case in catalogue.cases) for role in FOLDERS},
        _remarks(out),
        tuple(f"{name}: {fault}" for name, fault in catalogue.faults.items()),
    )


def _reachable(catalogue: Catalogue) -> Catalogue:
    """The data set without the cases whose files are links to nowhere or pipes, which are its faults then."""
    faults = {}
    for case in catalogue.cases:
        try:
            for path in filter(None, (*case.images, case.labels)):
                check_reachable(path)
        except ScanError as error:
            faults[case.name] = str(error)
    left = replace(catalogue, cases=tuple(case for case in catalogue.cases if case.name not in faults))
    left = replace(left, faults={**catalogue.faults, **faults})
    if not left.labelled:
        first = next(iter(left.faults.values()))
        raise DatasetError(f"{left.root}: no labelled case is left; the first fault: {first}")
    return left


def _place(case: Case, out: Path, ending: str, copy: bool) -> None:
    images, labels = FOLDERS[case.role]
    names = [file_name(case.name, f"_{channel:04d}{ending}") for channel in range(len(case.images))]
    pairs = [(path, out / images / name) for path, name in zip(case.images, names, strict=True)]
    if case.labels is not None and labels:
        pairs.append((case.labels, out / labels / file_name(case.name, ending)))
    for given, made in pairs:
        made.parent.mkdir(exist_ok=True)
        if copy:
            shutil.copyfile(given, made)
        else:
            try:
                made.symlink_to(given.absolute())
            except OSError as error:  # Windows lets only some users make links
                raise DatasetError(f"{made}: no link can be made there ({error.strerror}); use --copy") from error


def _one_ending(catalogue: Catalogue) -> str:
    """The ending that all files share."""
    files = [path for case in catalogue.cases for path in case.images]
    files += [case.labels for case in catalogue.cases if case.labels is not None and case.role != "unlabelled"]
    found: dict[str, Path] = {}
    for path in files:
        if path.is_dir() or stack_of(path):
            raise DatasetError(f"{path}: a DICOM series; nnU-Net reads single files: write it as NIfTI first")
        found.setdefault(path.name[len(scan_name(path)) :], path)
    if len(found) > 1:
        examples = ", ".join(f"{ending} ({path})" for ending, path in found.items())
        raise DatasetError(f"{catalogue.root}: files end in {examples}; nnU-Net expects one ending for all")
    ending = next(iter(found))
    if ending not in ENDINGS:
        raise DatasetError(f"{catalogue.root}: files end in {ending}; nnU-Net reads {', '.join(ENDINGS)}")
    return ending


def _description(catalogue: Catalogue, ending: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": catalogue.name,
        "channel_names": {str(number): channel for number, channel in enumerate(catalogue.channels)},
        "labels": catalogue.labels,
        "numTraining": len(catalogue.labelled),
        "file_ending": ending,
    }
    if catalogue.left_right_pairs:
        content["left_right_pairs"] = [list(pair) for pair in catalogue.left_right_pairs]
    return content


def _remarks(out: Path) -> tuple[str, ...]:
    if NAME.fullmatch(out.name):
        return ()
    return (f"nnU-Net finds only folders called DatasetNNN_Name, such as Dataset022_{out.name}: rename it for nnU-Net",)
