"""The text headers of MetaImage files (.mha, .mhd), read strictly; MetaIO's own reader crashes on some of them.

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation. What is not read (ASCII voxels, lists and patterns of files) is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from flarecps.errors import ScanError
from flarecps.typing import triple
from flarecps.volumes.headers import (
    COPY_AGAIN,
    MOST_AXES,
    NO_ORIENTATION,
    ScanHeader,
    data_file,
    header_lines,
    numbers,
    orthonormal,
    three_axes,
    whole,
)
from flarecps.volumes.space import Space

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
# Names that mean one thing: of each, one may be there.
SYNONYMS = {
    "BinaryDataByteOrderMSB": "ElementByteOrderMSB",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Origin": "Offset",
    "Position": "Offset",
}
LAST = "ElementDataFile"
LOCAL = ("LOCAL", "Local", "local")


def read_mha_header(path: Path) -> ScanHeader:
    """What the header of a MetaImage file says. ScanError for one that is malformed, or not of one 3D image."""
    with open(path, "rb") as file:
        fields = _fields(path, file)
        offset = file.tell()
    axes = whole(path, "NDims", [fields.get("NDims", "")], 1)[0]
    if axes > MOST_AXES:
        raise ScanError(f"{path}: its header's NDims is {axes}; expected 3: {COPY_AGAIN}")
    size = three_axes(path, whole(path, "DimSize", fields.get("DimSize", "").split(), axes))
    if fields.get("ElementNumberOfChannels", "1").strip() != "1":
        raise ScanError(f"{path}: several numbers per voxel; expected one: write one file per channel")
    if fields.get("ElementType") not in TYPES:
        raise ScanError(
            f"{path}: voxels of type {fields.get('ElementType', 'none')[:40]!r}; expected one number per voxel "
            "(MET_SHORT, MET_UCHAR, MET_FLOAT, …): convert the scan to one of these"
        )
    if fields.get("BinaryData", "True")[:1] not in "Tt1":
        raise ScanError(f"{path}: voxels written as text; expected binary ones: convert it to .nii.gz or a binary .mha")
    scaling = (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0))
    if any(numbers(path, name, fields.get(name, str(plain)).split(), 1) != [plain] for name, plain in scaling):
        raise ScanError(f"{path}: its header rescales intensities, which most readers ignore: store them as they are")
    order = ">" if fields.get("ElementByteOrderMSB", "False")[:1] in "Tt1" else "<"
    space, warnings = _grid(path, fields, axes, size)
    dtype = np.dtype(order + TYPES[fields["ElementType"]])
    local = fields[LAST] in LOCAL
    data = path if local else data_file(path, fields[LAST])
    start = fields.get("HeaderSize", "0")
    packed = fields.get("CompressedData", "False")[:1] in "Tt1"
    if start == "-1" and not packed:
        offset = max(0, data.stat().st_size - int(np.prod(size, dtype=object)) * dtype.itemsize)
    elif not local or start != "0":
        offset = whole(path, "HeaderSize", [start], 1, least=0)[0]
    return ScanHeader(path, space, dtype, data, offset, packing="zlib" if packed else "none", warnings=warnings)


def _fields(path: Path, file: IO[bytes]) -> dict[str, str]:
    """Name and value of every line, under one name where several mean the same; ElementDataFile is the last."""
    fields: dict[str, str] = {}
    for line in header_lines(path, file):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name.isidentifier():
            if line.strip():
                raise ScanError(f"{path}: its header holds {line[:40]!r}; expected 'Name = value': {COPY_AGAIN}")
            continue
        name = SYNONYMS.get(name, name)
        if name in fields:
            raise ScanError(f"{path}: its header says {name} twice: {COPY_AGAIN}")
        fields[name] = value
        if name == LAST:
            break
    if LAST not in fields or fields.get("ObjectType", "Image") != "Image":
        raise ScanError(f"{path}: not a MetaImage file (no ElementDataFile, or another ObjectType): {COPY_AGAIN}")
    return fields


def _grid(path: Path, fields: dict[str, str], axes: int, size: tuple[int, int, int]) -> tuple[Space, tuple[str, ...]]:
    if "ElementSpacing" not in fields:
        raise ScanError(f"{path}: the header has no voxel size (ElementSpacing): convert the scan again")
    spacing = numbers(path, "ElementSpacing", fields["ElementSpacing"].split(), axes)
    if not all(edge > 0 for edge in spacing):
        raise ScanError(f"{path}: its header's ElementSpacing is '{fields['ElementSpacing']}'; expected sizes above 0")
    origin = numbers(path, "Offset", fields["Offset"].split(), axes) if "Offset" in fields else [0.0] * axes
    warnings: tuple[str, ...] = () if "TransformMatrix" in fields else (NO_ORIENTATION.format("no TransformMatrix"),)
    if "Offset" not in fields:
        warnings += ("the header has no position (Offset): the first voxel was taken to lie at 0",)
    matrix, kept = np.eye(3), min(axes, 3)
    if "TransformMatrix" in fields:  # each axis of the image has three numbers in turn: the columns of ITK's matrix
        stated = numbers(path, "TransformMatrix", fields["TransformMatrix"].split(), axes * axes)
        matrix[:kept, :kept] = np.asarray(stated).reshape(axes, axes)[:kept, :kept].T
    direction, sheared = orthonormal(path, matrix, "axes are sheared")
    space = Space(triple(size[::-1]), triple((*spacing, 1.0, 1.0)[2::-1]), direction, triple((*origin, 0.0, 0.0)[:3]))
    return space, warnings + sheared
