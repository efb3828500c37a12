"""The voxels of DICOM slices: every slice's own stored values by its own slope and intercept.

Pixels stored as they are, and RLE, come from pydicom. JPEG, JPEG-LS and JPEG 2000 are decoded in a process of their
own, which is given the code stream alone: GDCM's rescaling depends on the kind of object.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    SecondaryCaptureImageStorage,
)

from flarecps.errors import ScanError
from flarecps.volumes.decoders import AHEAD, Decoding, begin, decoding
from flarecps.volumes.dicom_slices import (
    IMAGE_PIXEL,
    Packed,
    Slice,
    dicom_files,
    is_packed,
    pydicom_errors_as_scan_error,
)
from flarecps.volumes.headers import COPY_AGAIN, in_canonical_memory, read_voxels
from flarecps.volumes.mha import read_mha_header
from flarecps.volumes.space import Space

# By (implicit types, little-endian): files without preamble state no transfer syntax
WITHOUT_PREAMBLE: dict[tuple[bool | None, bool | None], UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
CODE_STREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: its start and its first segment (ISO 15444-1, A.5.1), of which the
SIGN_AND_BITS = 42  # th byte is the sign and one less than the bits of a value
WHOLE = 1 << 31  # slopes and intercepts beyond can't be multiplied in int64


def begin_decoder(path: Path) -> None:
    """Begin the decoder that the slices at ``path``, a folder or a file, will need, while their headers are read.

    By the first regular file alone. Whatever is wrong there is told by who reads it.
    """
    with suppress(Exception):
        first = next(one for one in (dicom_files(path) if path.is_dir() else [path]) if one.is_file())
        syntax = read_file_meta_info(first).TransferSyntaxUID
        if is_packed(syntax):
            begin("OpenJPEG" if syntax in JPEG2000TransferSyntaxes else "GDCM")


def pixels_of(slices: Sequence[Slice], space: Space | None = None) -> np.ndarray:
    """The values of ``slices``, which are of one size, as one array (slice, row, column).

    It is a view on memory in canonical order where the grid of the slices, ``space``, is known.

    Integers stay as they are stored where no slice is rescaled; whole slopes and intercepts give int16, or int32 where
    that is too small; others float32. Raises ScanError when a file is damaged or its compression unknown.
    """
    as_stored = all((one.slope, one.intercept) == (1, 0) for one in slices)
    whole = all(number.is_integer() and abs(number) < WHOLE for one in slices for number in (one.slope, one.intercept))
    array: np.ndarray | None = None
    with closing(_planes(slices)) as planes:  # the decoder is free again, whatever happens
        for place, values in planes:
            if not as_stored and whole and values.dtype.kind in "iu":
                values = _rescaled(values, int(slices[place].slope), int(slices[place].intercept))
            elif not as_stored:
                values = values.astype(np.float64) * slices[place].slope + slices[place].intercept
            if array is None:
                kept = values.dtype if as_stored else np.dtype(np.int16 if whole else np.float32)
                array = in_canonical_memory(space, kept) if space else np.empty((len(slices), *values.shape), kept)
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


def _rescaled(values: np.ndarray, slope: int, intercept: int) -> np.ndarray:
    """Exactly, as the narrowest of int16, int32 and int64 that holds the result: what wraps on the way wraps back."""
    ends = [int(end) * slope + intercept for end in (values.min(), values.max())]
    narrow = (kind for kind in (np.int16, np.int32) if all(abs(end) <= np.iinfo(kind).max for end in ends))
    kind = next(narrow, np.int64)
    exact = values.astype(kind)
    if slope != 1:
        np.multiply(exact, np.int64(slope).astype(kind), out=exact)
    return np.add(exact, np.int64(intercept).astype(kind), out=exact)


def _fits(values: np.ndarray, kind: np.dtype) -> bool:
    if kind.kind == "f" or values.dtype == kind:
        return True
    bounds = np.iinfo(kind)
    return values.dtype.kind in "iu" and bounds.min <= values.min() and values.max() <= bounds.max


def _planes(slices: Sequence[Slice]) -> Generator[tuple[int, np.ndarray], None, None]:
    """(place in ``slices``, stored values (row, column)) of each slice; a file is opened once."""
    by_file: dict[Path, list[int]] = defaultdict(list)
    for place, one in enumerate(slices):
        by_file[one.path].append(place)
    with ExitStack() as at_the_end:
        decoder: Decoding | None = None
        coming: deque[tuple[int, Callable[[], np.ndarray]]] = deque()
        for path, places in by_file.items():
            packed = slices[places[0]].packed
            with pydicom_errors_as_scan_error(path):
                content = _whole(path) if packed is None else _pixels(path, packed)
            if packed and decoder is None:
                decoder = at_the_end.enter_context(decoding())
            for place in places:
                one = slices[place]
                coming.append(
                    (place, _unpacked(one, content, decoder) if packed and decoder else _by_pydicom(one, content))
                )
                while len(coming) > (AHEAD if packed else 0):
                    yield _next_of(coming, slices)
        while coming:
            yield _next_of(coming, slices)


def _whole(path: Path) -> Dataset:
    content = dcmread(path, force=True)
    if "TransferSyntaxUID" not in content.file_meta:  # a file without preamble
        content.file_meta.TransferSyntaxUID = WITHOUT_PREAMBLE[content.original_encoding]
    return content


def _pixels(path: Path, packed: Packed) -> Dataset:
    """A compressed file's pixels and what describes them."""
    with open(path, "rb") as file:
        file.seek(packed.start)
        content = read_dataset(file, is_implicit_VR=False, is_little_endian=True)
    content.update(packed.image)
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = packed.syntax
    return content


def _next_of(coming: deque[tuple[int, Callable[[], np.ndarray]]], slices: Sequence[Slice]) -> tuple[int, np.ndarray]:
    place, values = coming.popleft()
    plane, one = values(), slices[place]
    if plane.shape != one.shape:
        raise ScanError(f"{one.path}: pixels of {plane.shape}; expected {one.shape}: {COPY_AGAIN}")
    return place, plane


def _by_pydicom(one: Slice, content: Dataset) -> Callable[[], np.ndarray]:
    def values() -> np.ndarray:
        with pydicom_errors_as_scan_error(one.path):
            return pixel_array(content, index=one.frame or 0, raw=True, decoding_plugin="pydicom")

    return values


def _unpacked(one: Slice, content: Dataset, decoder: Decoding) -> Callable[[], np.ndarray]:
    """What gives the stored values of a compressed slice, which ``decoder`` is asked for.

    It is given nothing of the patient but these.
    """
    with pydicom_errors_as_scan_error(one.path):
        frames = int(content.get("NumberOfFrames") or 1)
        stream = get_frame(content.PixelData, one.frame or 0, number_of_frames=frames)
        is_plain = _is_plain_jpeg_2000(stream, content)
        file = stream if is_plain else _alone(content, stream)
        decoder.ask("OpenJPEG" if is_plain else "GDCM", file, one.shape)

    def values() -> np.ndarray:
        try:
            pixels = decoder.answer()
            if is_plain:
                return _stored(pixels.read_bytes(), stream[SIGN_AND_BITS], content).reshape(one.shape)
            return read_voxels(read_mha_header(pixels))[0]
        except ScanError as error:
            packed = f"pixels packed as {content.file_meta.TransferSyntaxUID.name}"
            raise ScanError(f"{one.path}: can't be read ({error}); expected {packed}: {COPY_AGAIN}") from error

    return values


def _is_plain_jpeg_2000(stream: bytes, content: Dataset) -> bool:
    """Whether a frame is a JPEG 2000 code stream of the header's width, at most 16 bits. GDCM is for all else."""
    if not stream.startswith(CODE_STREAM) or len(stream) <= SIGN_AND_BITS:
        return False
    bits, allocated, used = (stream[SIGN_AND_BITS] & 127) + 1, content.BitsAllocated, content.BitsStored
    return allocated == (8 if bits <= 8 else 16) >= max(bits, used) and used >= 1 and content.HighBit == used - 1


def _stored(pixels: bytes, sign_and_bits: int, content: Dataset) -> np.ndarray:
    """The stored values of Pillow's pixels: it moves all values up to the highest bit, and negative ones above 0.

    Where stream and header contradict each other in the sign, the header is right, as GDCM has it.
    """
    width = content.BitsAllocated
    signed, unsigned = f"<i{width // 8}", f"<u{width // 8}"
    values = np.frombuffer(pixels, unsigned)
    is_signed = sign_and_bits >= 128
    if is_signed:
        values = (values ^ values.dtype.type(1 << (width - 1))).view(signed)
    values = values >> (width - 1 - (sign_and_bits & 127))
    if is_signed != (content.PixelRepresentation == 1):
        unused = width - content.BitsStored
        values = (values.view(unsigned) << unused).view(unsigned if is_signed else signed) >> unused
    return values


def _alone(content: Dataset, stream: bytes) -> bytes:
    """A code stream as a DICOM file."""
    file = BytesIO()
    alone = Dataset()
    for keyword in IMAGE_PIXEL:
        alone[keyword] = content[keyword]
    alone.PixelData = encapsulate([stream])
    alone["PixelData"].VR = "OB"
    alone.SOPClassUID, alone.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
    dcmwrite(file, alone, enforce_file_format=True)
    return file.getvalue()
