"""DICOM series through SimpleITK and GDCM: which slices belong together, in what order, how far apart."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flarecps.errors import ScanError
from flarecps.volumes.itk import KINDS, itk_errors_as_scan_error, read_file_space, stored_scan
from flarecps.volumes.nifti import StoredScan
from flarecps.volumes.space import Space, as_direction

DICOM_SUFFIXES = {".dcm", ".ima", ".dicom"}
NEVER_DICOM = {*KINDS, ".gz", ".nii", ".json", ".csv", ".txt", ".b2nd"}  # spares opening each file of a dataset
DICOM_MARK = b"DICM"  # at byte 128
POSITION_TAG = "0020|0032"  # Image Position (Patient)
UNEVEN_MM = 0.01  # slice distances differ by this much through rounding in headers
UNEVEN_SHARE = 0.01  # or by this share of the spacing
SIDEWAYS_MM = 1.0  # from first to last slice


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM, by its mark or, where the mark is missing, by its suffix."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == DICOM_MARK or path.suffix.lower() in DICOM_SUFFIXES
    except OSError:
        return False


def contains_dicom(folder: Path) -> bool:
    """Whether a folder itself holds DICOM files (with or without extension)."""
    with os.scandir(folder) as entries:
        return any(_is_slice_file(Path(entry.path)) for entry in entries)


def _is_slice_file(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or path.suffix.lower() in NEVER_DICOM:
        return False
    return path.is_file() and is_dicom_file(path)


def read_series(folder: Path) -> StoredScan:
    """Voxels, grid and warnings of the one DICOM series in a folder, slices ordered by their positions.

    Raises ScanError for no series, several series, damaged slices, or slices that do not belong together.
    """
    files = _series_files(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    with itk_errors_as_scan_error(folder, "one DICOM series of equally sized slices"):
        image = reader.Execute()
    scan = stored_scan(folder, image)
    space = _series_grid(folder, files)
    array = scan.array.reshape(space.shape)
    if array.dtype == np.int32 and np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo(np.int16).max:
        array = array.astype(np.int16)  # GDCM's type after rescaling to HU is wider than the HU
    located = (index for index in range(len(files)) if reader.HasMetaDataKey(index, POSITION_TAG))
    stated = [reader.GetMetaData(index, POSITION_TAG) for index in located]
    return StoredScan(array, space, scan.warnings + _slice_warnings(stated, len(files), space))


def read_series_space(folder: Path) -> Space:
    """The stored grid of the one DICOM series in a folder, from the headers of its slices."""
    return _series_grid(folder, _series_files(folder))


def _series_files(folder: Path) -> tuple[str, ...]:
    """The slice files of the one series in a folder, in the order of their positions."""
    reader = sitk.ImageSeriesReader()
    with itk_errors_as_scan_error(folder, "a folder of DICOM slices"):
        series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) > 1:
        raise ScanError(
            f"{folder}: {len(series)} DICOM series in one folder ({', '.join(series)}); expected one: "
            "move each series into a folder of its own"
        )
    files = tuple(reader.GetGDCMSeriesFileNames(str(folder), series[0])) if series else ()
    known = {Path(file).name for file in files}
    passed_over = [path for path in sorted(folder.iterdir()) if _is_slice_file(path) and path.name not in known]
    if passed_over:  # GDCM drops slices it can't parse without a word
        raise ScanError(
            f"{folder}: {len(passed_over)} of {len(passed_over) + len(files)} DICOM files can't be read "
            f"(first {passed_over[0].name}): they are probably truncated or damaged: copy or download them again"
        )
    if not files:
        raise ScanError(f"{folder}: no DICOM series in this folder: name the folder that holds the slice files itself")
    return files


def _series_grid(folder: Path, files: tuple[str, ...]) -> Space:
    """The grid of ordered slices: the first one's plane, and the mean distance along its normal."""
    first = read_file_space(Path(files[0]))
    if len(files) == 1:  # one slice, or an enhanced file of many frames
        return first
    last = read_file_space(Path(files[-1]))
    if first.shape != last.shape or first.shape[0] != 1:
        raise ScanError(
            f"{folder}: slices of {first.shape} and {last.shape} voxels; expected one series of equal slices"
        )
    normal = np.asarray(first.direction).reshape(3, 3)[:, 2]
    along = float(np.subtract(last.origin_mm, first.origin_mm) @ normal)
    if not along:
        raise ScanError(f"{folder}: first and last slice lie in the same place: move other series out of this folder")
    direction = np.asarray(first.direction).reshape(3, 3) * [1.0, 1.0, np.sign(along)]
    return replace(
        first,
        shape=(len(files), *first.shape[1:]),
        spacing_mm=(abs(along) / (len(files) - 1), *first.spacing_mm[1:]),
        direction=as_direction(direction),
    )


def _slice_warnings(stated: list[str], slices: int, space: Space) -> tuple[str, ...]:
    """Remarks on slices whose stated positions are not those of the grid."""
    if slices < 2:
        return ()
    if len(stated) != slices:
        return ("some slices state no position: their order and distance are a guess",)
    positions = np.asarray([[float(number) for number in position.split("\\")] for position in stated])
    normal = np.asarray(space.direction).reshape(3, 3)[:, 2]
    distances = np.diff(positions @ normal)
    warnings = []
    if distances.max() - distances.min() > max(UNEVEN_MM, UNEVEN_SHARE * space.spacing_mm[0]):
        warnings.append(
            f"slice distances are uneven ({distances.min():.3g} to {distances.max():.3g} mm; "
            f"read as {space.spacing_mm[0]:.3g} mm throughout): slices may be missing or doubled"
        )
    whole = positions[-1] - positions[0]
    sideways = float(np.linalg.norm(whole - (whole @ normal) * normal))
    if sideways > SIDEWAYS_MM:
        warnings.append(
            f"slices are shifted sideways by {sideways:.3g} mm from first to last (gantry tilt): "
            "read as a straight stack"
        )
    return tuple(warnings)
