"""A first dataset.json for a folder of images and label maps: what the files tell, and what is left to fill in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.atomic import write_json
from flarecps.batch_processing import process_cases
from flarecps.datasets.findings import FindingCollector
from flarecps.datasets.layouts import DATASET_JSON, Case, file_suffix, list_folder, training_folders
from flarecps.errors import DatasetError, ScanError, counted, first_few
from flarecps.volumes.discovery import find_scans, label_name
from flarecps.volumes.io import read_labels, read_volume

AIR_HU = -500  # a scan with values below is CT: nothing else is stored so


@dataclass(frozen=True)
class Draft:
    """A dataset.json that was written, what was found, and what is missing or was left out."""

    path: Path
    found: tuple[str, ...]
    missing: tuple[str, ...]
    faults: tuple[str, ...] = ()


def draft_description(root: Path | str, workers: int = 1, progress: bool = True) -> Draft:
    """Write ``root``/dataset.json from the images and label maps there, in nnU-Net v2's or the plain layout.

    Every label map is read for its ids; a structure is called structure_ID until a name is filled in. A channel is CT
    by its values, otherwise channel_N. Raises DatasetError where a dataset.json exists, no image has labels, or no
    label map can be read: then nothing is written.
    """
    root = Path(root)
    path = root / DATASET_JSON
    if os.path.lexists(path):
        raise DatasetError(f"{path}: exists already and stays as it is; name OUT to make a raw data set of nnU-Net")
    complaints = FindingCollector(collect=True)
    layout, cases, _ = list_folder(root, complaints, {"channel_names": dict.fromkeys(range(_channels(root)), "")})
    if layout == "FLARE22":
        raise DatasetError(f"{root}: FLARE22's own folders need no dataset.json; name OUT to convert them for nnU-Net")
    labelled = {case.name: case for case in cases if case.role == "labelled" and case.labels is not None}
    if not labelled:
        raise DatasetError(
            f"{root}: no image with a label map of its name; expected imagesTr/ and labelsTr/, or images/ and labels/, "
            "with files of the same names"
        )
    label_files = [(name, case.labels) for name, case in labelled.items() if case.labels is not None]
    outcomes = process_cases(_ml_by_id, label_files, workers, "Reading labels", progress)
    volumes = [one.value for one in outcomes if one.value is not None]
    unread = [f"{one.name}: {one.error}" for one in outcomes if one.failed]
    if not volumes:
        raise DatasetError(f"{root}: none of {counted(len(outcomes), 'label map')} can be read; first {unread[0]}")
    names = {label: f"structure_{label}" for label in sorted({label for one in volumes for label in one} - {0})}
    if not names:
        raise DatasetError(f"{root}: all {counted(len(volumes), 'label map')} hold nothing but background (0)")
    channels, strange = _channel_names(next(iter(labelled.values())))
    content: dict[str, Any] = {
        "name": root.resolve().name,
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0} | {name: label for label, name in names.items()},
        "numTraining": len(labelled),
    }
    files = [file for case in cases for file in (*case.images, case.labels) if file is not None]
    endings = {file_suffix(file) for file in files} - {""}
    if len(endings) == 1:
        content["file_ending"] = endings.pop()
    if os.path.lexists(path):
        raise DatasetError(f"{path}: was written by another program meanwhile, and stays as it is")
    write_json(path, content)
    missing = [f"names of structures: {', '.join(names.values())}", *strange, *_absent(cases)]
    missing += [one.message for one in complaints.findings if one.case not in complaints.faults]
    return Draft(
        path,
        tuple(_described(label, name, volumes) for label, name in names.items()),
        tuple(missing),
        (*unread, *(f"{name}: {fault}" for name, fault in complaints.faults.items())),
    )


def _channels(root: Path) -> int:
    """How many channels most cases with labels have, by their files' names."""
    images, labels = training_folders(root)
    if not (images.is_dir() and labels.is_dir()):
        return 1
    there = {label_name(path, images) for path in find_scans(images)}
    counts: Counter[int] = Counter()
    for path in find_scans(labels):
        case = label_name(path, labels)
        number = 0
        while f"{case}_{number:04d}" in there:
            number += 1
        counts[number] += case not in there and number > 0
    return max(counts, key=lambda number: (counts[number], number), default=0) or 1


def _ml_by_id(path: Path) -> dict[int, float]:
    """Millilitres of each id in a label map."""
    volume = read_labels(path)
    counts = np.bincount(volume.array.reshape(-1), minlength=256)
    voxel_ml = volume.space.voxel_volume_mm3 / 1000
    return {label: float(counts[label] * voxel_ml) for label in np.flatnonzero(counts).tolist()}


def _described(label: int, name: str, volumes: Sequence[Mapping[int, float]]) -> str:
    there = [one[label] for one in volumes if label in one]
    return f"{name}: id {label}, in {len(there)} of {counted(len(volumes), 'case')}, {np.mean(there):.3g} ml on average"


def _channel_names(case: Case) -> tuple[list[str], list[str]]:
    """Of each channel CT or a number, by the first case's values, and what is to be filled in."""
    names, strange = [], []
    for number, image in enumerate(case.images):
        try:
            is_ct = float(read_volume(image).array.min()) < AIR_HU
        except ScanError as error:
            is_ct = False
            strange.append(str(error))
        names.append("CT" if is_ct else f"channel_{number}")
        if not is_ct:
            strange.append(
                f"name of channel {number} (no CT by the values of {image.name}): CT where values are HU, otherwise "
                "T1, PET or the like"
            )
    return names, strange


def _absent(cases: tuple[Case, ...]) -> list[str]:
    bare = [case.name for case in cases if case.role == "labelled" and case.labels is None]
    absent = []
    if bare:
        absent.append(
            f"label maps of {counted(len(bare), 'training image')} ({first_few(bare)}): add them, or move the images "
            "to imagesUn/ or unlabelled/"
        )
    if not any(case.role == "unlabelled" for case in cases):
        absent.append("unlabelled scans, in imagesUn/ or unlabelled/: without them training is supervised")
    return absent
