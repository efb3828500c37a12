"""NIfTI files, read and written with nibabel and nothing lost: every header field of a source is carried over.

SimpleITK is not used here because it refuses sheared sforms, says nothing where a header has no orientation, and
rewrites the codes. Voxels come in the stored type; a truncated or damaged file is noticed, also within its last bytes.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from flarecps.atomic import atomic_path
from flarecps.errors import ScanError
from flarecps.typing import triple
from flarecps.volumes.space import (
    SAME_GRID_VOXELS,
    Space,
    as_direction,
    canonical_reorientation,
    misplacement,
    nearest_orthonormal,
)

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
TO_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's spatial units: metre, millimetre, micrometre
SHEAR_LIMIT = 1e-4  # direction cosines; float32 headers are orthonormal within 1e-6
DEFLATE_LIMIT = 1040  # gzip packs 1032 bytes into one at best
DAMAGED = (OSError, EOFError, ValueError, OverflowError, zlib.error, WrapStructError, HeaderDataError, ImageFileError)
COPY_AGAIN = "the file is probably truncated or damaged: copy or download it again"


@dataclass(frozen=True)
class StoredScan:
    """What a file holds, in its own voxel order: voxels (slice, row, column), their grid, and remarks on it."""

    array: np.ndarray
    space: Space
    warnings: tuple[str, ...] = ()


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path) -> StoredScan:
    """Voxels, grid and warnings of a NIfTI-1 or -2 file; integers stay integers where the scaling allows.

    The array is a view in stored order on memory in canonical order, so bringing it there copies nothing. Raises
    ScanError when the file is not NIfTI, truncated, damaged, or holds several frames or components.
    """
    with _opened(path) as (image, stream):
        space, warnings = _grid(path, image.header)
        proxy = cast(Any, image.dataobj)
        stream.seek(int(proxy.offset))
        voxels = _read_voxels(stream, space, proxy.dtype, float(proxy.slope), float(proxy.inter))
        while stream.read(1 << 20):  # to the end: gzip's check sum is compared there
            pass
        return StoredScan(voxels, space, warnings)


def read_nifti_space(path: Path) -> Space:
    """The stored grid, from the header alone; errors as for `read_nifti`."""
    with _opened(path) as (image, _):
        return _grid(path, image.header)[0]


def header_spacing_mm(path: Path) -> tuple[float, float, float] | None:
    """(slice, row, column) of the header's pixdim, whatever sform and qform say, as other programs read it by nibabel.

    None for a file that nibabel can't open by its name: packed, but not called .gz.
    """
    try:
        zooms = cast(nibabel.Nifti1Image, nibabel.load(path)).header.get_zooms()
    except ImageFileError:
        return None
    return triple(map(float, zooms[2::-1]))


def write_nifti(path: Path, array: np.ndarray, space: Space) -> None:
    """Write voxels (slice, row, column) on any grid, atomically; sform and qform are set alike (scanner, in mm)."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(array.shape[::-1])
    affine = np.eye(4)
    affine[:3, :3] = LPS_FROM_RAS @ space.axes_mm[:, ::-1]
    affine[:3, 3] = LPS_FROM_RAS @ np.asarray(space.origin_mm)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["pixdim"][4:] = 0
    _write(path, header, array)


def write_nifti_like(path: Path, array: np.ndarray, source: Path) -> None:
    """Write voxels (slice, row, column) with ``source``'s header: sform, qform, pixdim, codes and units as they are.

    Only what describes the voxel values changes (type, scaling, display window, intent), and header extensions stay
    behind: they may name the patient. Raises ScanError when the source's size is not the array's.
    """
    with _opened(source) as (image, _):
        header = image.header.copy()
    edges = tuple(map(int, header.get_data_shape()))
    if (*edges, 1, 1, 1)[:3] != array.shape[::-1]:
        raise ScanError(
            f"{source}: {edges} voxels now, {array.shape[::-1]} when it was read: keep scans while they are in use"
        )
    pixdim = header["pixdim"].copy()
    header.set_data_shape(array.shape[::-1])
    header["pixdim"] = pixdim
    header.extensions.clear()
    for field in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    header["intent_name"] = b""
    _write(path, header, array)


def _write(path: Path, header: nibabel.Nifti1Header, array: np.ndarray) -> None:
    header.set_data_dtype(array.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    voxels = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(header.endianness))
    is_packed = path.name.lower().endswith(".gz")
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) if is_packed else nullcontext(file) as stream,
    ):
        _write_parts(stream, header, voxels)


def _write_parts(file: Any, header: nibabel.Nifti1Header, voxels: np.ndarray) -> None:
    file.write(header.binaryblock)
    file.write(b"\0" * (int(header["vox_offset"]) - len(header.binaryblock)))  # no extensions follow
    for section in voxels:
        file.write(section.tobytes())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[nibabel.Nifti1Image, Any]]:
    """The NIfTI image over an open stream of its bytes; whatever goes wrong in the block becomes a ScanError."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # by content: names lie
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            mark = stream.read(4)
            kind = HEADER_BYTES.get(int.from_bytes(mark, "little")) or HEADER_BYTES.get(int.from_bytes(mark, "big"))
            if kind is None:
                raise ScanError(f"{path}: not a NIfTI file (its header has no NIfTI size mark): {COPY_AGAIN}")
            stream.seek(0)
            image = kind.from_file_map({"image": FileHolder(fileobj=stream)}, mmap=False)
            needed = math.prod(map(int, image.header.get_data_shape())) * image.header.get_data_dtype().itemsize
            if int(image.header["vox_offset"]) + needed > os.path.getsize(path) * (DEFLATE_LIMIT if packed else 1):
                raise ScanError(
                    f"{path}: {os.path.getsize(path)} bytes can't hold the voxels it announces: {COPY_AGAIN}"
                )
            yield image, stream
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ScanError(f"{path}: can't be opened ({error.strerror}): check the path") from error
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(f"{path}: can't be read as NIfTI ({reason}): {COPY_AGAIN}") from error


def _grid(path: Path, header: nibabel.Nifti1Header) -> tuple[Space, tuple[str, ...]]:
    edges = tuple(int(edge) for edge in header.get_data_shape())
    if any(edge != 1 for edge in edges[3:]):
        raise ScanError(
            f"{path}: {'×'.join(map(str, edges))} voxels, several frames or components in one file; "
            "expected one 3D image: split it into one file per frame or channel"
        )
    if header.get_data_dtype().fields is not None or header.get_data_dtype().kind == "c":
        raise ScanError(f"{path}: colour or complex voxels; expected one number per voxel: export it as grey values")
    warnings: list[str] = []
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], float))
    to_mm = TO_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    if to_mm != 1.0:
        warnings.append(f"header lengths are in units of {to_mm:g} mm and were converted")
    affine = _affine(path, header, pixdim, warnings)
    affine[:3] *= to_mm
    if not np.isfinite(affine).all() or not np.linalg.norm(affine[:3, :3], axis=0).all():
        raise ScanError(f"{path}: the header's orientation matrix has zero or infinite axes: convert the scan again")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = LPS_FROM_RAS @ (affine[:3, :3] / spacing)
    try:
        direction = nearest_orthonormal(cosines)
    except np.linalg.LinAlgError as error:
        raise ScanError(f"{path}: the header's axes lie in one plane: convert the scan from DICOM again") from error
    if (shear := float(np.abs(direction - cosines).max())) > SHEAR_LIMIT:
        warnings.append(
            f"the sform is sheared (direction cosines up to {shear:.2g} from orthonormal, as after a gantry tilt): "
            "read with the nearest orthonormal frame"
        )
    shape = triple((*edges, 1, 1, 1)[2::-1])
    gaps = np.abs(spacing / to_mm - pixdim)
    if (gaps * np.subtract(shape[::-1], 1) > SAME_GRID_VOXELS * spacing / to_mm).any():
        warnings.append(
            f"pixdim and the orientation matrix differ by {gaps.max():.3g} mm in spacing: the matrix was used"
        )
    space = Space(
        shape,
        triple(spacing[::-1].tolist()),
        as_direction(direction),
        triple((LPS_FROM_RAS @ affine[:3, 3]).tolist()),
    )
    return space, tuple(warnings)


def _affine(path: Path, header: nibabel.Nifti1Header, pixdim: np.ndarray, warnings: list[str]) -> np.ndarray:
    """The RAS matrix in the header's own units: the sform if it has a code, else the qform, else pixdim alone."""
    sform, sform_code = header.get_sform(coded=True)
    try:
        qform, qform_code = header.get_qform(coded=True)
    except (ValueError, HeaderDataError) as error:
        if not sform_code:
            raise ScanError(f"{path}: the header's qform is not a rotation: convert the scan again") from error
        qform, qform_code = None, 0
    if sform_code and qform_code:
        apart = misplacement(sform, qform, triple((*map(int, header.get_data_shape()), 1, 1, 1)[:3]))
        if not apart.is_small:
            warnings.append(f"sform and qform place voxels up to {apart.mm:.3g} mm apart: the sform was used")
    if sform_code:
        return np.asarray(sform, float)
    if qform_code:
        return np.asarray(qform, float)
    if not (np.isfinite(pixdim).all() and pixdim.all()):
        raise ScanError(f"{path}: the header has neither an orientation nor a voxel size: convert the scan again")
    warnings.append(
        "the header has no orientation (sform and qform codes 0): assumed, as ITK does, columns to the patient's "
        "left, rows to posterior, slices to superior; left and right may be exchanged"
    )
    return np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0])


def _read_voxels(stream: Any, space: Space, dtype: np.dtype, slope: float, inter: float) -> np.ndarray:
    """Intensities (slice, row, column): integers where slope and intercept are whole numbers, else float32.

    One stored slice at a time, so that memory holds little more than the result.
    """
    whole = dtype.kind in "iu" and slope.is_integer() and inter.is_integer()
    voxels = _in_canonical_memory(space, dtype.newbyteorder("=") if whole else np.dtype(np.float32))
    needed = math.prod(voxels.shape[1:]) * dtype.itemsize
    for number, section in enumerate(voxels):
        data = stream.read(needed)
        if len(data) < needed:
            raise EOFError(f"its voxels end in slice {number + 1} of {len(voxels)}")
        numbers = np.frombuffer(data, dtype).reshape(section.shape)
        section[...] = numbers if whole or (slope, inter) == (1.0, 0.0) else numbers.astype(np.float64) * slope + inter
    return _scaled(voxels, space, int(slope), int(inter)) if whole and (slope, inter) != (1.0, 0.0) else voxels


def _scaled(stored: np.ndarray, space: Space, slope: int, inter: int) -> np.ndarray:
    """Stored integers as intensities, in the smallest of int16, int32 and float32 that holds them all."""
    ends = [int(stored.min()) * slope + inter, int(stored.max()) * slope + inter]
    limits = (np.iinfo(np.int16), np.iinfo(np.int32))
    fitting = [one.dtype for one in limits if one.min <= min(ends) and max(ends) <= one.max]
    kind = fitting[0] if fitting else np.dtype(np.float32)
    scaled = stored if stored.dtype == kind else _in_canonical_memory(space, kind)
    for section, result in zip(stored, scaled, strict=True):
        result[...] = section.astype(np.int64 if fitting else np.float64) * slope + inter
    return scaled


def _in_canonical_memory(space: Space, dtype: np.dtype) -> np.ndarray:
    """An empty array in the stored order of ``space`` whose memory is in canonical order."""
    reorientation = canonical_reorientation(space.direction)
    return reorientation.undo(np.empty(reorientation.apply_to_space(space).shape, dtype))
