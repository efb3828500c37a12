"""NIfTI files, read and written with nibabel and nothing lost: every header field of a source is carried over.

SimpleITK is not used here because it refuses sheared sforms, says nothing where a header has no orientation, and
rewrites the codes. Voxels come in the stored type; a truncated or damaged file is noticed, also within its last bytes.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import data_type_codes, xform_codes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from flarecps.anatomy import Organ
from flarecps.atomic import atomic_path
from flarecps.errors import ScanError, cure_of
from flarecps.typing import triple
from flarecps.volumes.headers import (
    COPY_AGAIN,
    MOST_HEADER_BYTES,
    NO_ORIENTATION,
    SHEAR_LIMIT,
    Packing,
    ScanHeader,
    three_axes,
)
from flarecps.volumes.label_tables import label_table_xml
from flarecps.volumes.space import SAME_GRID_VOXELS, Space, as_direction, misplacement, nearest_orthonormal

TABLE_EXTENSION = 0  # of no registered kind: TotalSegmentator's choice, and nibabel opens no others of this content
HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}  # by their size in bytes
QUIET = logging.Logger("nibabel, whose remarks on headers are made here")
QUIET.addHandler(logging.NullHandler())
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's spatial units: none given, metre, millimetre, micrometre
DAMAGED = (OSError, EOFError, ValueError, OverflowError, zlib.error, WrapStructError, HeaderDataError, ImageFileError)


def read_nifti_header(path: Path) -> ScanHeader:
    """What the header of a NIfTI-1 or -2 file says.

    Raises ScanError when the file is not NIfTI, or its header contradicts itself or announces several frames or
    components. A slope of 0 or NaN is none, as the standard and nibabel have it.
    """
    header, packing, remarks = _header(path)
    with np.errstate(invalid="ignore", over="ignore"):  # a NaN in it is told by the grid that comes out
        space, warnings = _grid(path, header)
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(
            f"{path}: its header's scl_slope and scl_inter are no numbers: convert the scan again"
        ) from error
    offset = float(header["vox_offset"])
    return ScanHeader(
        path,
        space,
        header.get_data_dtype(),
        path,
        skip=int(offset),
        packing=packing,
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        warnings=remarks + warnings,
    )


def header_spacing_mm(path: Path) -> tuple[float, float, float] | None:
    """(slice, row, column) of the header's pixdim, whatever sform and qform say, as other programs read it by nibabel.

    None for a file that nibabel can't open by its name: packed, but not called .gz.
    """
    try:
        zooms = cast(nibabel.Nifti1Image, nibabel.load(path)).header.get_zooms()
    except ImageFileError:
        return None
    return triple(map(float, zooms[2::-1]))


def write_nifti(path: Path, array: np.ndarray, space: Space, organs: Sequence[Organ] = ()) -> None:
    """Write voxels (slice, row, column) on any grid, atomically; sform and qform are set alike (scanner, in mm).

    The header holds a table of ``organs``: ids, names, colours.
    """
    header = nibabel.Nifti1Header()
    header.set_data_shape(array.shape[::-1])
    affine = np.eye(4)
    affine[:3, :3] = LPS_FROM_RAS @ space.axes_mm[:, ::-1]
    affine[:3, 3] = LPS_FROM_RAS @ np.asarray(space.origin_mm)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["pixdim"][4:] = 0
    _write(path, header, array, organs)


def write_nifti_like(path: Path, array: np.ndarray, source: Path, organs: Sequence[Organ] = ()) -> None:
    """Write voxels (slice, row, column) with ``source``'s header: sform, qform, pixdim, codes and units as they are.

    Only what describes the voxel values changes (type, scaling, display window, intent), and header extensions stay
    behind: they may name the patient. A table of ``organs`` takes their place.
    Raises ScanError when the source's size is not the array's.
    """
    header, _, _ = _header(source)
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
    _write(path, header, array, organs)


def _write(path: Path, header: nibabel.Nifti1Header, array: np.ndarray, organs: Sequence[Organ]) -> None:
    header.set_data_dtype(array.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = header.single_magic
    table = _extension(label_table_xml(organs), header.endianness) if organs else b""
    header["vox_offset"] = header.single_vox_offset + len(table)
    voxels = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(header.endianness))
    head = (
        header.binaryblock + bytes([bool(table), 0, 0, 0]) + table
    )  # the first of the four: whether extensions follow
    is_packed = path.name.lower().endswith(".gz")
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) if is_packed else nullcontext(file) as stream,
    ):
        _write_parts(stream, head, voxels)


def _write_parts(file: Any, head: bytes, voxels: np.ndarray) -> None:
    file.write(head)
    for section in voxels:
        file.write(section.tobytes())


def _extension(content: bytes, endianness: str) -> bytes:
    """A header extension as it lies in the file: size, code and content, filled up with spaces to 16 bytes."""
    content += b" " * (-(len(content) + 8) % 16)
    return struct.pack(f"{endianness}ii", len(content) + 8, TABLE_EXTENSION) + content


def _header(path: Path) -> tuple[nibabel.Nifti1Header, Packing, tuple[str, ...]]:
    """The header, checked for what readers would stumble over or pass over, whether the file is packed, and remarks.

    Extensions are not read: what they announce is not to be trusted, and nothing here needs them.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # by content: names lie
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            block = stream.read(4)
            kind = HEADERS.get(int.from_bytes(block, "little")) or HEADERS.get(int.from_bytes(block, "big"))
            if kind is None:
                raise ScanError(f"{path}: not a NIfTI file (its header has no NIfTI size mark): {COPY_AGAIN}")
            size = kind.template_dtype.itemsize
            block += stream.read(size - 4)
        if len(block) < size:
            raise EOFError("it ends within its header")
        header = kind(block, check=False)
        if wrong := _contradiction(header):
            raise ScanError(f"{path}: its header's {wrong}: {COPY_AGAIN}")
        remarks = _remarks(header)
        header.check_fix(QUIET)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ScanError(f"{path}: can't be opened ({error.strerror}): {cure_of(error, 'check the path')}") from error
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(f"{path}: can't be read as NIfTI ({reason}): {cure_of(error, COPY_AGAIN)}") from error
    return header, "gzip" if packed else "none", remarks


def _remarks(header: nibabel.Nifti1Header) -> tuple[str, ...]:
    """What nibabel mends without a word."""
    remarks = []
    if (np.asarray(header["pixdim"][1:4]) < 0).any():
        remarks.append("the header's pixdim has sizes below 0: their signs were passed over")
    for name in ("qform_code", "sform_code"):
        if int(header[name]) not in xform_codes.code:
            remarks.append(
                f"the header's {name} is {int(header[name])}, which NIfTI does not know: taken for 0, unknown"
            )
    return tuple(remarks)


def _contradiction(header: nibabel.Nifti1Header) -> str:
    """What is impossible in a header, in words; "" when nothing is."""
    dim = [int(edge) for edge in header["dim"]]
    if not (1 <= dim[0] <= 7 and all(edge >= 1 for edge in dim[1 : dim[0] + 1])):
        return f"dim is {dim}; expected 3 and three sizes from 1"
    if int(header["datatype"]) not in data_type_codes.code:
        return f"datatype is {int(header['datatype'])}, which NIfTI does not know"
    if (bits := 8 * header.get_data_dtype().itemsize) and int(header["bitpix"]) != bits:
        return f"bitpix is {int(header['bitpix'])}; expected {bits}, of its datatype"
    if bytes(header["magic"]).rstrip(b"\0")[:3] != header.single_magic.rstrip(b"\0")[:3]:
        return f"magic is {bytes(header['magic'])[:4]!r}; expected that of a single .nii file"
    offset = float(header["vox_offset"])
    if not (header.single_vox_offset <= offset <= MOST_HEADER_BYTES and offset.is_integer()):
        return f"vox_offset is {offset:g}; expected {header.single_vox_offset} or a little more"
    if any(math.isinf(float(header[name])) for name in ("scl_slope", "scl_inter")):
        return "scl_slope or scl_inter is infinite"
    return ""


def _grid(path: Path, header: nibabel.Nifti1Header) -> tuple[Space, tuple[str, ...]]:
    edges = tuple(int(edge) for edge in header.get_data_shape())
    three_axes(path, edges)
    if header.get_data_dtype().fields is not None or header.get_data_dtype().kind == "c":
        raise ScanError(f"{path}: colour or complex voxels; expected one number per voxel: export it as grey values")
    warnings: list[str] = []
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], float))
    unit = int(header["xyzt_units"]) & 7
    if unit not in TO_MM:
        warnings.append(f"header lengths are in unit {unit}, which NIfTI does not know: taken for mm")
    to_mm = TO_MM.get(unit, 1.0)
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
        shape, triple(spacing[::-1].tolist()), as_direction(direction), triple((LPS_FROM_RAS @ affine[:3, 3]).tolist())
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
    warnings.append(NO_ORIENTATION.format("sform and qform codes 0"))
    return np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0])
