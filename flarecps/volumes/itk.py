"""Everything SimpleITK reads and writes for this program: NRRD and MHA files, and DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from flarecps.atomic import atomic_path
from flarecps.errors import ScanError
from flarecps.volumes.nifti import COPY_AGAIN, SHEAR_LIMIT, StoredScan
from flarecps.volumes.space import Space, as_direction, nearest_orthonormal

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's C++ warnings would break into the progress display

KINDS = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha"}
DICOM_SUFFIXES = {".dcm", ".ima", ".dicom"}
NEVER_DICOM = {*KINDS, ".gz", ".nii", ".json", ".csv", ".txt", ".b2nd"}  # spares opening each file of a dataset
DICOM_MARK = b"DICM"  # at byte 128
POSITION_TAG = "0020|0032"  # Image Position (Patient)
UNEVEN_MM = 0.01  # slice distances that differ more than rounding in a DICOM header explains


def read_file(path: Path) -> StoredScan:
    """Voxels and grid of a NRRD or MHA file; ScanError when it is unreadable, truncated or not one 3D image."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return _stored(path, image)


def read_file_space(path: Path) -> Space:
    """The stored grid of a NRRD or MHA file, from its header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return _grid(path, reader)[0]


def write_file(path: Path, array: np.ndarray, space: Space) -> None:
    """Write voxels (slice, row, column) as NRRD or MHA, by the path's suffix, compressed, atomically."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in space.spacing_mm[::-1]])
    image.SetOrigin([float(value) for value in space.origin_mm])
    image.SetDirection([float(value) for value in space.direction])
    with atomic_path(path) as partial:
        sitk.WriteImage(image, str(partial), useCompression=True)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM, by its mark or, where the mark is missing, by its suffix."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == DICOM_MARK or path.suffix.lower() in DICOM_SUFFIXES
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Whether a folder itself holds DICOM files (with or without extension)."""
    with os.scandir(folder) as entries:
        return any(
            not entry.name.startswith(".")
            and entry.is_file()
            and Path(entry.name).suffix.lower() not in NEVER_DICOM
            and is_dicom_file(Path(entry.path))
            for entry in entries
        )


def read_series(folder: Path) -> StoredScan:
    """Voxels, grid and warnings of the one DICOM series in a folder, slices ordered by their positions.

    Raises ScanError for no series, several series, or slices that do not belong together.
    """
    files = _series_files(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(folder, error, "one DICOM series of equally sized slices") from error
    stored = _stored(folder, image)
    positions = [reader.GetMetaData(index, POSITION_TAG) for index in range(len(files))
                 if reader.HasMetaDataKey(index, POSITION_TAG)]
    remarks = _slice_warnings(positions, len(files), stored.space)
    return StoredScan(stored.array, stored.space, stored.warnings + remarks)


def read_series_space(folder: Path) -> Space:
    """The stored grid of a DICOM series; its slices are read too, as their positions decide the spacing."""
    return read_series(folder).space


def _series_files(folder: Path) -> tuple[str, ...]:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise ScanError(f"{folder}: no DICOM series in this folder: name the folder that holds the slice files itself")
    if len(series) > 1:
        raise ScanError(
            f"{folder}: {len(series)} DICOM series in one folder ({', '.join(series)}); expected one: "
            "move each series into a folder of its own"
        )
    return tuple(reader.GetGDCMSeriesFileNames(str(folder), series[0]))


def _slice_warnings(positions: list[str], slices: int, space: Space) -> tuple[str, ...]:
    """Remarks on slices whose stated positions do not follow the grid ITK made of them."""
    if len(positions) != slices or slices < 2:
        return () if slices < 2 else ("some slices state no position: their order and distance are a guess",)
    stated = np.asarray([[float(number) for number in position.split("\\")] for position in positions])
    steps = np.diff(stated, axis=0)
    normal = np.asarray(space.direction).reshape(3, 3)[:, 2]
    distances = np.abs(steps @ normal)
    warnings = []
    if distances.max() - distances.min() > UNEVEN_MM:
        warnings.append(
            f"slice distances are uneven ({distances.min():.3g} to {distances.max():.3g} mm; "
            f"read as {space.spacing_mm[0]:.3g} mm throughout): slices may be missing"
        )
    sideways = float(np.linalg.norm(steps.sum(axis=0) - (steps.sum(axis=0) @ normal) * normal))
    if sideways > 1.0:
        warnings.append(f"slices are shifted sideways by {sideways:.3g} mm (gantry tilt): positions ignore the shift")
    return tuple(warnings)


def _stored(path: Path, image: sitk.Image) -> StoredScan:
    space, warnings = _grid(path, image)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "iu":
        array = array.astype(np.float32, copy=False)
    return StoredScan(array.reshape(space.shape), space, warnings)


def _grid(path: Path, image: Any) -> tuple[Space, tuple[str, ...]]:
    """Grid of a SimpleITK image, or of a reader that has read the header."""
    size, dimension = image.GetSize(), len(image.GetSize())
    if image.GetNumberOfComponents() != 1 if hasattr(image, "GetNumberOfComponents") else (
        image.GetNumberOfComponentsPerPixel() != 1
    ):
        raise ScanError(f"{path}: several numbers per voxel; expected one: write one file per channel")
    if any(edge != 1 for edge in size[3:]):
        raise ScanError(f"{path}: {dimension} dimensions with several frames; expected one 3D image: split the frames")
    edges = (*size, 1, 1)[:3]
    steps = (*image.GetSpacing(), 1.0, 1.0)[:3]
    origin = (*image.GetOrigin(), 0.0, 0.0)[:3]
    matrix = np.eye(3)
    kept = min(dimension, 3)
    matrix[:kept, :kept] = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:kept, :kept]
    try:
        direction = nearest_orthonormal(matrix)
    except np.linalg.LinAlgError as error:
        raise ScanError(f"{path}: the header's axes lie in one plane: export the scan again") from error
    warnings: tuple[str, ...] = ()
    if (shear := float(np.abs(direction - matrix).max())) > SHEAR_LIMIT:
        warnings = (f"axes are sheared (cosines up to {shear:.2g} off): read with the nearest orthonormal frame",)
    else:
        direction = matrix
    space = Space(
        (edges[2], edges[1], edges[0]),
        (float(steps[2]), float(steps[1]), float(steps[0])),
        as_direction(direction),
        (float(origin[0]), float(origin[1]), float(origin[2])),
    )
    return space, warnings


def _unreadable(path: Path, error: RuntimeError, expected: str = "a complete NRRD or MHA file") -> ScanError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception thrown" not in line]
    reason = lines[-1].split("ITK ERROR:")[-1].strip() if lines else "no reason given"
    return ScanError(f"{path}: can't be read ({reason[:200]}); expected {expected}: {COPY_AGAIN}")
