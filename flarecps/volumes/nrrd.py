"""The text headers of NRRD files (.nrrd, .nhdr), read strictly.

Source: https://teem.sourceforge.net/nrrd/format.html. What is not read (text, hex and bzip2 voxels, lists and patterns
of files) is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

import numpy as np

from flarecps.errors import ScanError
from flarecps.typing import triple
from flarecps.volumes.headers import (
    COPY_AGAIN,
    MOST_AXES,
    NO_ORIENTATION,
    Packing,
    ScanHeader,
    data_file,
    header_lines,
    numbers,
    orthonormal,
    three_axes,
    whole,
)
from flarecps.volumes.space import Space

MAGIC = re.compile(r"NRRD000[1-5]")
TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1",
    "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "uint8_t": "u1",
    "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2", "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4",
    "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4",
    "longlong": "i8", "long long": "i8", "long long int": "i8", "signed long long": "i8", "signed long long int": "i8",
    "int64": "i8", "int64_t": "i8",
    "ulonglong": "u8", "unsigned long long": "u8", "unsigned long long int": "u8", "uint64": "u8", "uint64_t": "u8",
    "float": "f4", "double": "f8",
}  # fmt: skip
ENCODINGS: dict[str, Packing] = {"raw": "none", "gzip": "gzip", "gz": "gzip"}
# From the file's frame to LPS; of other frames nothing is known but their axes.
TO_LPS = {
    "right-anterior-superior": (-1.0, -1.0, 1.0), "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0), "las": (1.0, -1.0, 1.0),
    "left-posterior-superior": (1.0, 1.0, 1.0), "lps": (1.0, 1.0, 1.0),
}  # fmt: skip
SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "centerings": "centers"}
READ = (
    "dimension", "type", "sizes", "encoding", "endian", "data file", "line skip", "byte skip", "space",
    "space dimension", "space directions", "space origin", "spacings", "kinds", "units", "space units",
)  # fmt: skip
PASSED_OVER = (
    "content", "number", "block size", "blocksize", "min", "max", "old min", "oldmin", "old max", "oldmax",
    "sample units", "sampleunits", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "labels",
    "measurement frame",
)  # fmt: skip
OF_SPACE = ("domain", "space", "???", "none")  # kinds of axes along which the patient lies
MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???", "none"}
VECTOR = re.compile(r"none|\([^()]*\)")


def read_nrrd_header(path: Path) -> ScanHeader:
    """What the header of a NRRD file says. ScanError for one that is malformed, or not of one 3D image."""
    with open(path, "rb") as file:
        fields = _fields(path, file)
        offset = file.tell()
    axes = whole(path, "dimension", [fields.get("dimension", "")], 1)[0]
    if axes > MOST_AXES:
        raise ScanError(f"{path}: its header's dimension is {axes}; expected 3: {COPY_AGAIN}")
    sizes = whole(path, "sizes", fields.get("sizes", "").split(), axes)
    kind, encoding = fields.get("type", "none").lower(), fields.get("encoding", "none").lower()
    if kind not in TYPES:
        raise ScanError(f"{path}: voxels of type {kind[:40]!r}; expected one number per voxel (short, uchar, float, …)")
    if encoding not in ENCODINGS:
        raise ScanError(f"{path}: encoding {encoding[:40]!r}; expected raw or gzip: convert the scan, to .nii.gz say")
    dtype = np.dtype(TYPES[kind])
    if dtype.itemsize > 1:
        if fields.get("endian", "").lower() not in ("little", "big"):
            raise ScanError(f"{path}: its header has no order of bytes (endian: little or big): {COPY_AGAIN}")
        dtype = dtype.newbyteorder("<" if fields["endian"].lower() == "little" else ">")
    if fields.get("line skip", "0") != "0":
        raise ScanError(f"{path}: its header asks to skip lines of text; expected binary voxels only: convert the scan")
    data, skip, start = path, 0, fields.get("byte skip", "0")
    if "data file" in fields:
        data, offset = data_file(path, fields["data file"]), 0
    if start == "-1" and encoding == "raw":
        offset = max(offset, data.stat().st_size - int(np.prod(sizes, dtype=object)) * dtype.itemsize)
    else:
        skip = whole(path, "byte skip", [start], 1, least=0)[0]
    space, warnings = _grid(path, fields, sizes)
    return ScanHeader(path, space, dtype, data, offset, skip, ENCODINGS[encoding], warnings=warnings)


def _fields(path: Path, file: IO[bytes]) -> dict[str, str]:
    """Name (in lower case) and value of every field up to the empty line; keys of other programs are passed over."""
    lines = header_lines(path, file)
    if not MAGIC.fullmatch(next(lines, "")):
        raise ScanError(f"{path}: not a NRRD file (it does not begin with NRRD0001 to 5): {COPY_AGAIN}")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            return fields
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        name, value = name.strip().lower(), value.strip()
        name = SYNONYMS.get(name, name)
        if not colon or name not in (*READ, *PASSED_OVER):
            raise ScanError(f"{path}: its header holds {line[:40]!r}, which is no field of NRRD: {COPY_AGAIN}")
        if name in fields:
            raise ScanError(f"{path}: its header says '{name}' twice: {COPY_AGAIN}")
        fields[name] = value
    if "data file" not in fields:
        raise ScanError(f"{path}: ends within its header: {COPY_AGAIN}")
    return fields


def _grid(path: Path, fields: dict[str, str], sizes: list[int]) -> tuple[Space, tuple[str, ...]]:
    """The grid in ITK's frame, LPS: columns of the directions divided by their lengths, which are the spacing."""
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or ["domain"] * len(sizes)
    vectors = VECTOR.findall(fields["space directions"]) if "space directions" in fields else None
    for field, found in (("kinds", kinds), ("space directions", vectors)):
        if found is not None and len(found) != len(sizes):
            raise ScanError(f"{path}: its header's {field} are of {len(found)} axes, its sizes of {len(sizes)}")
    units = re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))
    if strange := [unit for unit in units if unit.lower() not in MILLIMETRES]:
        raise ScanError(f"{path}: its header's lengths are in {strange[0][:20]!r}; expected mm: convert the scan")
    directed = vectors if vectors is not None else ["()"] * len(sizes)
    of_space = [axis for axis, kind in enumerate(kinds) if kind in OF_SPACE and directed[axis] != "none"]
    apart = [axis for axis in range(len(sizes)) if axis not in of_space]
    kept = of_space[:3]
    if len(sizes) >= 3 and len(kept) < 3:
        raise ScanError(
            f"{path}: its header gives a direction in space to {len(kept)} of {len(sizes)} axes; expected three, one "
            "number per voxel: convert the scan again"
        )
    absent = (1,) * (3 - len(of_space))
    size = three_axes(path, [*(sizes[axis] for axis in of_space), *absent, *(sizes[axis] for axis in apart)])
    if vectors is None:
        spacings = fields.get("spacings", "").split()
        if len(spacings) != len(sizes):
            raise ScanError(f"{path}: the header has neither an orientation nor a voxel size: convert the scan again")
        spacing = numbers(path, "spacings", [spacings[axis] for axis in kept], len(kept))
        matrix, origin = np.eye(3), np.zeros(3)
        warnings: tuple[str, ...] = (NO_ORIENTATION.format("no space directions"),)
    else:
        steps, origin, warnings = _in_lps(path, fields, [vectors[axis] for axis in kept])
        spacing = np.linalg.norm(steps, axis=0).tolist()
        matrix = np.eye(3)
        if all(spacing):
            matrix[:, : len(kept)] = steps / spacing
    if not all(edge > 0 for edge in spacing):
        raise ScanError(f"{path}: its header has voxels of {spacing} mm (column, row, slice); expected sizes above 0")
    direction, sheared = orthonormal(path, matrix, "axes are sheared")
    space = Space(triple(size[::-1]), triple((*spacing, 1.0, 1.0)[2::-1]), direction, triple(map(float, origin)))
    return space, warnings + sheared


def _in_lps(path: Path, fields: dict[str, str], vectors: list[str]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Steps (3, axis) along the kept axes and the origin (3), in LPS, and remarks."""
    frame = fields.get("space", "").lower()
    wide = fields.get("space dimension", "3")
    if ("space" in fields) == ("space dimension" in fields) or wide not in ("2", "3", "4"):
        raise ScanError(f"{path}: its header names no frame for its directions (space): convert the scan again")
    to_lps = TO_LPS.get(frame, (1.0, 1.0, 1.0))
    remarks: tuple[str, ...] = ()
    if frame not in TO_LPS:
        called = f"'{frame[:40]}'" if frame else "of no name"
        remarks = (f"the frame of its directions is {called}: taken for the patient's left, posterior, superior",)
    wide_axes, kept = int(wide), min(int(wide), 3)
    steps, origin = np.zeros((3, len(vectors))), np.zeros(3)

    def vector(field: str, words: str) -> list[float]:
        return numbers(path, field, words.strip("() ").replace(",", " ").split(), wide_axes)[:kept]

    for axis, words in enumerate(vectors):
        steps[:kept, axis] = vector("space directions", words)
    if "space origin" in fields:
        origin[:kept] = vector("space origin", fields["space origin"])
    else:
        remarks += ("the header has no position (space origin): the first voxel was taken to lie at 0",)
    return steps * np.asarray(to_lps)[:, None], origin * to_lps, remarks
