"""A subset of a data set as a folder of links in nnU-Net v2's raw layout: nothing is copied, the source untouched."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flarecps.atomic import PARTIAL_PREFIX, write_json
from flarecps.datasets.layouts import Case
from flarecps.errors import DatasetError


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
            _link(images / f"{case.name}_{channel:04d}{_suffix(image)}", image)
        if labels is not None and case.labels is not None:
            _link(labels / f"{case.name}{_suffix(case.labels)}", case.labels)


def link_subset(
    out: Path, labelled: Sequence[Case], unlabelled: Sequence[Case], description: Mapping[str, Any]
) -> None:
    """A data set folder ``out`` of links to these cases; its ``dataset.json`` comes last, holding ``description``."""
    (out / "dataset.json").unlink(missing_ok=True)
    link_cases(labelled, out / "imagesTr", out / "labelsTr")
    link_cases(unlabelled, out / "imagesUn")
    write_json(out / "dataset.json", {**description, "numTraining": len(labelled), "file_ending": ".nii.gz"})


def _link(link: Path, target: Path) -> None:
    """``link`` leads to ``target`` (made absolute), whatever was there before."""
    partial = link.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}")
    try:
        partial.symlink_to(target.resolve())
        os.replace(partial, link)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(
            f"{link}: no link can be made there ({error.strerror}); choose an --out on a file system with links"
        ) from error


def _suffix(path: Path) -> str:
    """``.nii.gz`` or the like; nothing for a DICOM folder."""
    if path.is_dir():
        return ""
    return "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
