"""What a scan's header says, read by ourselves and checked before a voxel is: no library sees a file that lies.

Readers of NIfTI, NRRD and MHA (`nifti`, `nrrd`, `mha`) give a `ScanHeader`; `read_voxels` reads by it and by nothing
else, slice by slice, so that time and memory are bounded by what was checked.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import psutil

from flarecps.errors import ScanError, cure_of
from flarecps.volumes.space import Direction, Space, as_direction, canonical_reorientation, nearest_orthonormal

Packing: TypeAlias = Literal["none", "gzip", "zlib"]

COPY_AGAIN = "the file is probably truncated or damaged: copy or download it again"
NO_ORIENTATION = (
    "the header has no orientation ({}): assumed, as ITK does, columns to the patient's left, rows to posterior, "
    "slices to superior; left and right may be exchanged"
)
NIFTI = (".nii", ".nii.gz")
SHEAR_LIMIT = 1e-4  # direction cosines; float32 headers are orthonormal within 1e-6
DEFLATE_LIMIT = 1040  # deflate packs 1032 bytes into one at best
MOST_HEADER_BYTES = 1 << 22  # of text before the voxels, and of what a NIfTI header leaves free for extensions
MOST_AXES = 16  # as NRRD allows
CHUNK = 1 << 20
# A scan of a patient is within these by far; what is beyond is a header in other units, or a damaged one.
LEAST_VOXEL_MM, MOST_VOXEL_MM = 1e-3, 100.0
MOST_EXTENT_MM = 5000.0
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
WHOLE = re.compile(r"\d{1,18}")


@dataclass(frozen=True)
class StoredScan:
    """What a file holds, in its own voxel order: voxels (slice, row, column), their grid, and remarks on it."""

    array: np.ndarray
    space: Space
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanHeader:
    """All that is needed to read the voxels of one file.

    Voxels of ``dtype``, (slice, row, column), begin ``skip`` bytes into the stream that is packed by ``packing`` and
    begins at byte ``offset`` of ``data``; intensities are ``slope`` × voxel + ``inter``.
    """

    path: Path
    space: Space
    dtype: np.dtype
    data: Path
    offset: int = 0
    skip: int = 0
    packing: Packing = "none"
    slope: float = 1.0
    inter: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def voxel_bytes(self) -> int:
        """Of all voxels as stored, unpacked."""
        return math.prod(self.space.shape) * self.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether intensities are integers."""
        return self.dtype.kind in "iu" and self.slope.is_integer() and self.inter.is_integer()

    @property
    def array_bytes(self) -> int:
        """Of the intensities in memory, at most: as stored, or as int32 or float32 where they are scaled."""
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        itemsize = self.dtype.itemsize if self.is_whole and not scaled else 4
        return math.prod(self.space.shape) * itemsize

    @property
    def reading_bytes(self) -> int:
        """Of memory, at most, while the file is read: scaled integers are there twice."""
        twice = self.is_whole and (self.slope, self.inter) != (1.0, 0.0)
        finite = 0 if self.is_whole else math.prod(self.space.shape)  # whether each is a number
        return self.array_bytes + (self.voxel_bytes if twice else finite)


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(NIFTI)


def check_plausible(path: Path, space: Space) -> None:
    """Nothing, or ScanError when a grid's voxels or extent are no patient's."""
    sizes = "×".join(f"{edge:g}" for edge in space.spacing_mm)
    if not all(LEAST_VOXEL_MM <= edge <= MOST_VOXEL_MM for edge in space.spacing_mm):
        raise ScanError(
            f"{path}: voxels of {sizes} mm (slice, row, column); expected {LEAST_VOXEL_MM:g} to {MOST_VOXEL_MM:g} mm: "
            "the header is damaged or in another unit; correct it, or convert the scan from DICOM again"
        )
    if max(space.extent_mm) > MOST_EXTENT_MM:
        extent = "×".join(f"{edge:.0f}" for edge in space.extent_mm)
        raise ScanError(
            f"{path}: a field of view of {extent} mm ({_times(space.shape)} voxels of {sizes} mm); "
            f"expected at most {MOST_EXTENT_MM:g} mm along each axis: correct the header's voxel sizes"
        )


def check_length(header: ScanHeader) -> None:
    """Nothing, or ScanError when a header's file can't hold the voxels it announces, or this machine can't."""
    size = header.data.stat().st_size
    here = size - header.offset
    needed = header.skip + header.voxel_bytes
    if needed > here * (1 if header.packing == "none" else DEFLATE_LIMIT):
        raise ScanError(
            f"{header.path}: {size} bytes{_of(header)} can't hold the voxels it announces "
            f"({_times(header.space.shape)} of {header.dtype.itemsize} bytes): {COPY_AGAIN}"
        )
    if header.packing == "none" and here - needed >= _row_bytes(header):
        raise _too_long(header)
    memory = psutil.virtual_memory().total
    if header.reading_bytes > memory:
        raise ScanError(
            f"{header.path}: {_times(header.space.shape)} voxels take {header.reading_bytes / 2**30:.1f} GB of memory, "
            f"this machine has {memory / 2**30:.1f} GB: use one with more, or cut or resample the scan"
        )


def data_file(path: Path, name: str) -> Path:
    """The file beside header ``path`` that holds its voxels. ScanError for any but a plain name in the same folder."""
    plain = name == Path(name).name and name not in ("", ".", "..") and name.isprintable() and "%" not in name
    if not plain or name.split()[0] in ("LIST", "LOCAL"):
        raise ScanError(
            f"{path}: its voxels are in {name[:80]!r}; expected the plain name of one file in the same folder: "
            "convert the scan to .nrrd, .mha or .nii.gz, which are one file"
        )
    data = path.parent / name
    if Path(realpath(data)).parent != Path(realpath(path.parent)):
        raise ScanError(f"{path}: its voxels are in {name}, a link out of the folder: copy that file there instead")
    if not data.is_file():
        what = "not a regular file" if data.exists() else "not there"
        raise ScanError(f"{path}: its voxels are in {name}, which is {what}: copy both files of the scan")
    return data


def header_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The lines of a text header, one by one, without their ends; ScanError when it does not end."""
    read = 0
    while line := file.readline(MOST_HEADER_BYTES):
        read += len(line)
        if read >= MOST_HEADER_BYTES:
            raise ScanError(f"{path}: its header does not end within {MOST_HEADER_BYTES >> 20} MB: {COPY_AGAIN}")
        yield line.decode("latin-1").rstrip("\r\n")


def numbers(path: Path, field: str, words: Sequence[str], count: int) -> list[float]:
    """``count`` finite numbers from a header's words; ScanError says which field they are missing in."""
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        found = " ".join(words)[:60]
        raise ScanError(f"{path}: its header's {field} is '{found}'; expected {count} finite numbers: correct it")
    values = [float(word) for word in words]
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: its header's {field} holds numbers beyond all measure: correct it")
    return values


def whole(path: Path, field: str, words: Sequence[str], count: int, least: int = 1) -> list[int]:
    """``count`` whole numbers from ``least``, as `numbers`."""
    if len(words) != count or not all(WHOLE.fullmatch(word) and int(word) >= least for word in words):
        found = " ".join(words)[:60]
        raise ScanError(
            f"{path}: its header's {field} is '{found}'; expected {count} whole number{'s' * (count > 1)} "
            f"from {least}: {COPY_AGAIN}"
        )
    return [int(word) for word in words]


def three_axes(path: Path, sizes: Sequence[int]) -> tuple[int, int, int]:
    """Sizes (column, row, slice) of one image; ScanError where more axes hold something, 1 where there are fewer."""
    if any(size != 1 for size in sizes[3:]):
        raise ScanError(
            f"{path}: {_times(sizes)} voxels, several frames or several numbers per voxel in one file; expected one 3D "
            "image: split it into one file per frame or channel"
        )
    first, second, third = (*sizes, 1, 1)[:3]
    return first, second, third


def orthonormal(path: Path, matrix: np.ndarray, sheared: str) -> tuple[Direction, tuple[str, ...]]:
    """ITK's direction matrix, made orthonormal where it is ``sheared`` beyond rounding, which is remarked on."""
    try:
        direction = nearest_orthonormal(matrix)
    except np.linalg.LinAlgError as error:
        raise ScanError(f"{path}: the header's axes lie in one plane: convert the scan from DICOM again") from error
    if (shear := float(np.abs(direction - matrix).max())) > SHEAR_LIMIT:
        return as_direction(direction), (
            f"{sheared} (direction cosines up to {shear:.2g} from orthonormal): "
            "read with the nearest orthonormal frame",
        )
    return as_direction(matrix), ()


def read_voxels(header: ScanHeader) -> np.ndarray:
    """Intensities (slice, row, column): integers where slope and intercept are whole numbers, else float32.

    A view in stored order on memory in canonical order, filled one stored slice at a time, so that memory holds little
    more than the result. Raises ScanError when the file is damaged, or holds fewer or more voxels than announced.
    """
    try:
        with open(header.data, "rb") as file:
            file.seek(header.offset)
            stream: Any = {"none": lambda: file, "gzip": lambda: gzip.GzipFile(fileobj=file)}.get(
                header.packing, lambda: _Inflated(file)
            )()
            _pass_over(stream, header.skip)
            voxels = _filled(stream, header)
            left = 0  # to the end: gzip's and zlib's check sums are compared there
            while left < _row_bytes(header) and (more := stream.read(CHUNK)):
                left += len(more)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(f"{header.path}: can't be read ({reason}): {cure_of(error, COPY_AGAIN)}") from error
    if left >= _row_bytes(header):
        raise _too_long(header)
    return voxels


class _Inflated:
    """A zlib stream as a file that is read from; never more is unpacked than is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._inflate = file, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            if not packed:
                raise EOFError("its packed voxels end early")
            parts.append(self._inflate.decompress(packed, size))
            size -= len(parts[-1])
        return b"".join(parts)


def _pass_over(stream: Any, size: int) -> None:
    while size > 0 and (passed := stream.read(min(size, CHUNK))):
        size -= len(passed)


def _filled(stream: Any, header: ScanHeader) -> np.ndarray:
    space, dtype, slope, inter = header.space, header.dtype, header.slope, header.inter
    voxels = in_canonical_memory(space, dtype.newbyteorder("=") if header.is_whole else np.dtype(np.float32))
    needed = math.prod(voxels.shape[1:]) * dtype.itemsize
    as_stored = (slope, inter) == (1.0, 0.0)
    for number, section in enumerate(voxels):
        data = stream.read(needed)
        if len(data) < needed:
            raise EOFError(f"its voxels end in slice {number + 1} of {len(voxels)}")
        stored = np.frombuffer(data, dtype).reshape(section.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite voxels are told by whoever reads a volume
            section[...] = stored if header.is_whole or as_stored else stored.astype(np.float64) * slope + inter
    return _scaled(voxels, space, int(slope), int(inter)) if header.is_whole and not as_stored else voxels


def _scaled(stored: np.ndarray, space: Space, slope: int, inter: int) -> np.ndarray:
    """Stored integers as intensities, in the smallest of int16, int32 and float32 that holds them all."""
    ends = [int(stored.min()) * slope + inter, int(stored.max()) * slope + inter]
    limits = (np.iinfo(np.int16), np.iinfo(np.int32))
    fitting = [one.dtype for one in limits if one.min <= min(ends) and max(ends) <= one.max]
    kind = fitting[0] if fitting else np.dtype(np.float32)
    scaled = stored if stored.dtype == kind else in_canonical_memory(space, kind)
    for section, result in zip(stored, scaled, strict=True):
        result[...] = section.astype(np.int64 if fitting else np.float64) * slope + inter
    return scaled


def in_canonical_memory(space: Space, dtype: np.dtype) -> np.ndarray:
    """An empty array in the stored order of ``space`` whose memory is in canonical order."""
    reorientation = canonical_reorientation(space.direction)
    return reorientation.undo(np.empty(reorientation.apply_to_space(space).shape, dtype))


def _row_bytes(header: ScanHeader) -> int:
    """Fewer bytes after the last voxel than a row's are padding; more are voxels that the header does not know of."""
    return header.space.shape[2] * header.dtype.itemsize


def _too_long(header: ScanHeader) -> ScanError:
    return ScanError(
        f"{header.path}: holds more voxels{_of(header)} than the {_times(header.space.shape)} (slice, row, column) it "
        "announces: its header is damaged, or it holds several images; convert the scan again"
    )


def _of(header: ScanHeader) -> str:
    return "" if header.data == header.path else f" in {header.data.name}"


def _times(edges: Sequence[int]) -> str:
    return "×".join(map(str, edges))
