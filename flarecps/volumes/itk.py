"""SimpleITK, which writes NRRD and MHA and reads DICOM: its images as our grids, its errors as ours."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from flarecps.atomic import atomic_path
from flarecps.errors import ScanError
from flarecps.typing import triple
from flarecps.volumes.headers import COPY_AGAIN, SHEAR_LIMIT
from flarecps.volumes.nifti import StoredScan
from flarecps.volumes.space import Space, as_direction, nearest_orthonormal

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's C++ warnings would break into the progress display

WRITABLE = (".nrrd", ".mha")  # in one file; .nhdr and .mhd would come in two
KINDS = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha"}
STDERR = 2  # the file descriptor C libraries print to


def read_file_space(path: Path) -> Space:
    """The stored grid of a single DICOM file, from its header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with itk_errors_as_scan_error(path, "a complete image file"):
        reader.ReadImageInformation()
    return _grid(path, reader)[0]


def write_file(path: Path, array: np.ndarray, space: Space, fields: Mapping[str, str] | None = None) -> None:
    """Write voxels (slice, row, column) as NRRD or MHA, by the path's suffix, compressed, atomically.

    ``fields`` become keys and values of the header.
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in space.spacing_mm[::-1]])
    image.SetOrigin([float(value) for value in space.origin_mm])
    image.SetDirection([float(value) for value in space.direction])
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    with atomic_path(path) as partial:
        sitk.WriteImage(image, str(partial), useCompression=True)


def stored_scan(path: Path, image: sitk.Image) -> StoredScan:
    """Voxels and grid of a SimpleITK image read from ``path``; integers as they are, else float32."""
    space, warnings = _grid(path, image)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "iu":
        array = array.astype(np.float32, copy=False)
    return StoredScan(array.reshape(space.shape), space, warnings)


def _grid(path: Path, image: Any) -> tuple[Space, tuple[str, ...]]:
    """Grid of a SimpleITK image, or of a reader that has read the header."""
    size = image.GetSize()
    dimension = len(size)
    is_header = isinstance(image, sitk.ImageFileReader)
    components = image.GetNumberOfComponents() if is_header else image.GetNumberOfComponentsPerPixel()
    if components != 1:
        raise ScanError(f"{path}: several numbers per voxel; expected one: write one file per channel")
    if any(edge != 1 for edge in size[3:]):
        raise ScanError(f"{path}: {dimension} dimensions with several frames; expected one 3D image: split the frames")
    matrix, kept = np.eye(3), min(dimension, 3)
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
        triple((*size, 1, 1)[2::-1]),
        triple(map(float, (*image.GetSpacing(), 1, 1)[2::-1])),
        as_direction(direction),
        triple(map(float, (*image.GetOrigin(), 0, 0)[:3])),
    )
    return space, warnings


@contextmanager
def itk_errors_as_scan_error(path: Path, expected: str) -> Iterator[None]:
    """Turn SimpleITK's errors into a ScanError of one line; what the C libraries print meanwhile becomes its reason."""
    with tempfile.TemporaryFile() as printed:
        sys.stderr.flush()
        terminal = os.dup(STDERR)
        os.dup2(printed.fileno(), STDERR)
        try:
            yield
        except RuntimeError as error:
            printed.seek(0)
            said = printed.read().decode("utf-8", "replace").strip().splitlines()[:1]
            reason = (said or str(error).strip().splitlines()[-1:] or ["no reason given"])[0].split("ERROR:")[-1]
            reason = " ".join(reason.split())[:200]
            raise ScanError(f"{path}: can't be read ({reason}); expected {expected}: {COPY_AGAIN}") from error
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)
