"""The voxels of DICOM slices: every slice's own stored values by its own slope and intercept.

Pixels stored as they are, and RLE, come from pydicom. JPEG, JPEG-LS and JPEG 2000 are decoded by GDCM, which SimpleITK
brings along, in a process of its own. It is given the code stream alone, because its rescaling depends on the kind of
object.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from flarecps.errors import ScanError
from flarecps.volumes.dicom_slices import Slice, pydicom_errors_as_scan_error
from flarecps.volumes.gdcm import decoded
from flarecps.volumes.nifti import COPY_AGAIN

IMAGE_PIXEL = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
# By (implicit types, little-endian): files without preamble state no transfer syntax
WITHOUT_PREAMBLE: dict[tuple[bool | None, bool | None], UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
WHOLE = 1 << 31  # slopes and intercepts beyond can't be multiplied in int64


def pixels_of(slices: Sequence[Slice]) -> np.ndarray:
    """The values of ``slices``, which are of one size, as one array (slice, row, column).

    Integers stay as they are stored where no slice is rescaled; whole slopes and intercepts give int16, or int32 where
    that is too small; others float32. Raises ScanError when a file is damaged or its compression unknown.
    """
    as_stored = all((one.slope, one.intercept) == (1, 0) for one in slices)
    whole = all(number.is_integer() and abs(number) < WHOLE for one in slices for number in (one.slope, one.intercept))
    array: np.ndarray | None = None
    for place, values in _planes(slices):
        if not as_stored:
            exact = np.int64 if whole and values.dtype.kind in "iu" else np.float64
            values = values.astype(exact) * exact(slices[place].slope) + exact(slices[place].intercept)
        if array is None:
            kept = values.dtype if as_stored else np.dtype(np.int16 if whole else np.float32)
            array = np.empty((len(slices), *values.shape), kept)
        if not _fits(values, array.dtype):
            array = array.astype(np.int32 if _fits(values, np.dtype(np.int32)) else np.float32)
        array[place] = values
    assert array is not None
    if array.dtype == np.int32 and _fits(array, np.dtype(np.int16)):
        return array.astype(np.int16)
    return array if array.dtype.kind in "iu" else array.astype(np.float32, copy=False)


def same_voxels(one: Slice, other: Slice) -> bool:
    """Whether two slices have the same values, place by place."""
    return np.array_equal(pixels_of([one]), pixels_of([other]))


def _fits(values: np.ndarray, kind: np.dtype) -> bool:
    if kind.kind == "f" or values.dtype == kind:
        return True
    bounds = np.iinfo(kind)
    return values.dtype.kind in "iu" and bounds.min <= values.min() and values.max() <= bounds.max


def _planes(slices: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """(place in ``slices``, stored values (row, column)) of each slice; a file is opened once."""
    by_file: dict[Path, list[int]] = defaultdict(list)
    for place, one in enumerate(slices):
        by_file[one.path].append(place)
    for path, places in by_file.items():
        with pydicom_errors_as_scan_error(path):
            content = dcmread(path, force=True)
            if "TransferSyntaxUID" not in content.file_meta:  # a file without preamble
                content.file_meta.TransferSyntaxUID = WITHOUT_PREAMBLE[content.original_encoding]
            syntax = content.file_meta.TransferSyntaxUID
            decode = _by_gdcm if syntax.is_encapsulated and syntax != RLELossless else _by_pydicom
        for place in places:
            plane = decode(path, content, slices[place].frame or 0)
            if plane.shape != slices[place].shape:
                raise ScanError(f"{path}: pixels of {plane.shape}; expected {slices[place].shape}: {COPY_AGAIN}")
            yield place, plane


def _by_pydicom(path: Path, content: Dataset, frame: int) -> np.ndarray:
    with pydicom_errors_as_scan_error(path):
        return pixel_array(content, index=frame, raw=True, decoding_plugin="pydicom")


def _by_gdcm(path: Path, content: Dataset, frame: int) -> np.ndarray:
    """One frame's code stream through GDCM, as a file of its own that holds nothing of the patient."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frame.dcm"
        with pydicom_errors_as_scan_error(path):
            alone = Dataset()
            for keyword in IMAGE_PIXEL:
                alone[keyword] = content[keyword]
            frames = int(content.get("NumberOfFrames") or 1)
            alone.PixelData = encapsulate([get_frame(content.PixelData, frame, number_of_frames=frames)])
            alone["PixelData"].VR = "OB"
            alone.SOPClassUID, alone.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
            alone.file_meta = FileMetaDataset()
            alone.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
            dcmwrite(file, alone, enforce_file_format=True)
        try:
            return decoded(file)
        except ScanError as error:
            packed = f"pixels packed as {content.file_meta.TransferSyntaxUID.name}"
            raise ScanError(f"{path}: can't be read ({error}); expected {packed}: {COPY_AGAIN}") from error
