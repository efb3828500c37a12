"""Which files a segmented scan gets, which of them are missing, and how they come to be whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flarecps.atomic import PARTIAL_PREFIX
from flarecps.case_names import file_name
from flarecps.errors import ConfigError
from flarecps.inference.case_records import (
    AGREEMENT,
    STATISTICS,
    agreement_rows,
    lowest_first,
    record_path,
    statistics_rows,
    write_tables,
)
from flarecps.inference.postprocessing import Rules
from flarecps.locks import remove_abandoned
from flarecps.typing import LabelArray, SpacingMm

LABELS, PROBABILITIES, PREVIEW = "labels", "probabilities", "preview"
DICOM_SEG, RTSTRUCT = "dicom_seg", "rtstruct"
RESULT_ENDING = ".nii.gz"
LEAST_FREE_BYTES = 2**20  # less than this is a full disk: a scan's labels would not fit, however well they compress
FULL = (errno.ENOSPC, errno.EDQUOT)

# (path, name, image (slice, row, column), labels, spacing, label set, whether the image is in HU)
Draw: TypeAlias = Callable[[Path, str, np.ndarray, LabelArray, SpacingMm, Mapping[str, int], bool], None]


@dataclass(frozen=True)
class SegmentationRequest:
    """One scan to be segmented: a file per channel (or one DICOM folder), and where its labels go."""

    name: str
    scans: tuple[Path, ...]
    result: Path
    fault: str = ""  # why it can't be segmented, known before anything is read


@dataclass(frozen=True)
class OutputOptions:
    """What is wanted of every scan beside its labels, and what is done to them.

    Each lies in a folder of its own beside the results: ``probabilities/X.npz``, ``statistics/X.json``,
    ``agreement/X.json``, ``previews/X.png``, ``dicom_seg/X.dcm``, ``rtstruct/X.dcm``; of statistics and agreement there
    are tables, too. ``draw`` writes the picture; the labels of a folder's scans end in ``ending``.
    """

    rules: Rules | None = None
    probabilities: bool = False
    statistics: bool = False
    agreement: bool = False
    draw: Draw | None = None
    dicom_seg: bool = False
    rtstruct: bool = False
    ending: str = RESULT_ENDING

    def paths(self, request: SegmentationRequest) -> dict[str, Path]:
        """Every file that the scan is to have."""
        output, name = request.result.parent, request.name
        found = {}
        if self.probabilities:
            found[PROBABILITIES] = output / "probabilities" / file_name(name, ".npz")
        if self.statistics:
            found[STATISTICS] = record_path(output, STATISTICS, name)
        if self.agreement:
            found[AGREEMENT] = record_path(output, AGREEMENT, name)
        if self.draw is not None:
            found[PREVIEW] = output / "previews" / file_name(name, ".png")
        for kind in (DICOM_SEG, RTSTRUCT):
            if getattr(self, kind):
                found[kind] = output / kind / file_name(name, ".dcm")
        return found | {LABELS: request.result}

    def missing(self, request: SegmentationRequest, overwrite: bool = False) -> dict[str, Path]:
        """The files of a scan that are still to be made; with ``overwrite`` all."""
        paths = self.paths(request)
        return paths if overwrite else {kind: path for kind, path in paths.items() if not path.exists()}

    def write_tables(self, requests: Sequence[SegmentationRequest]) -> None:
        """Make the tables anew from what is known of every scan in the results' folder."""
        for output in dict.fromkeys(request.result.parent for request in requests):
            if self.statistics:
                with disk_errors_as_config_error(output / f"{STATISTICS}.csv"):
                    write_tables(output, STATISTICS, statistics_rows)
            if self.agreement:
                with disk_errors_as_config_error(output / f"{AGREEMENT}.csv"):
                    write_tables(output, AGREEMENT, agreement_rows, lowest_first)


def check_free_space(folder: Path) -> None:
    """Nothing, or ConfigError when nothing can be written in ``folder``: asked before hours are spent on a scan."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{there}: can't write there; check its permissions, or name another output folder")
    if shutil.disk_usage(there).free < LEAST_FREE_BYTES:
        raise ConfigError(f"{there}: {_cure_of_full('less than 1 MB is free')}")


@contextmanager
def disk_errors_as_config_error(path: Path) -> Iterator[None]:
    """A failed write in the block becomes a ConfigError that names ``path``, the reason and the cure."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise ConfigError(f"{path}: {_cure_of_full(reason)}") from error
        raise ConfigError(f"{path}: can't write it ({reason}); name another output folder") from error


def remove_partial_file(path: Path) -> None:
    """Remove what a killed run left of this very file; not what another process is writing."""
    pattern = f"{PARTIAL_PREFIX}????????-{glob.escape(path.name)}"
    for partial in path.parent.glob(pattern):
        remove_abandoned(partial)


def _cure_of_full(reason: str) -> str:
    return f"the disk is full ({reason}); free some and run the same command again: finished scans are kept"
