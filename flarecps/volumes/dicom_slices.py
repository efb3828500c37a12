"""DICOM files through pydicom: which files are DICOM, and what each slice in them says of itself.

A slice is a file, or one frame of a multi-frame file; both are described alike, so nothing is taken from another slice.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, config
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, RLELossless
from pydicom.valuerep import VR

from flarecps.errors import FlarecpsError, ScanError, cure_of
from flarecps.volumes.headers import COPY_AGAIN
from flarecps.volumes.itk import KINDS
from flarecps.volumes.links import check_reachable
from flarecps.volumes.space import nearest_orthonormal

warnings.filterwarnings("ignore", module=r"pydicom\.")  # not catch_warnings: scans are read in threads, too

SUFFIXES = {".dcm", ".ima", ".dicom"}
NEVER_DICOM = {*KINDS, ".gz", ".nii", ".json", ".csv", ".txt", ".b2nd"}  # spares opening each file of a dataset
MARK = b"DICM"  # at byte 128, in files that have a preamble
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # a data set begins with one of them; the last is big-endian
LONGEST_FIRST_ELEMENT = 256  # bytes
PIXEL_DATA = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))  # as float, as double, as integers
NO_SCAN = ("SEG", "RTDOSE")  # modalities with pixels that are not a scan's
LONGEST_TOLD = 64  # characters of an attribute that may tell stacks apart
BEYOND = 1e9  # no millimetre, slope or intercept is as large
SKEW_LIMIT = 1e-2  # cosines; headers are often rounded to three digits
FRAME_OF_REFERENCE = "FrameOfReferenceUID"
# No single stack goes from one value of these to another and back again
STACKS = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "DiffusionBValue",
    "ConvolutionKernel", "KVP", "StackID",
)  # fmt: skip
IMAGE_PIXEL = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
OF_PIXELS = [Tag(keyword) for keyword in (*IMAGE_PIXEL, "NumberOfFrames")]
TAGS: list[BaseTag | int] = [*OF_PIXELS, *(Tag(keyword) for keyword in (
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", FRAME_OF_REFERENCE,
    *STACKS,
))]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Packed:
    """What decoders need of a file, so that its header is parsed once."""

    image: Dataset  # `OF_PIXELS`
    syntax: UID
    start: int  # of the element of the pixels in the file


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice by its own header: voxel (row, column) = (0, 0) lies at ``position_mm`` (LPS).

    ``directions`` is the 3×3 matrix whose columns are the unit steps along (column, row, normal).
    """

    path: Path
    frame: int | None  # of a multi-frame file, from 0
    shape: tuple[int, int]  # rows, columns
    spacing_mm: tuple[float, float]  # between rows, between columns
    directions: np.ndarray
    position_mm: np.ndarray
    slope: float
    intercept: float
    rescaling: str  # "RescaleSlope and RescaleIntercept": what the header states
    photometric: str
    thickness_mm: float | None  # None: not stated
    stated: Mapping[str, str]  # of `FRAME_OF_REFERENCE` and `STACKS`, what the header states
    packed: Packed | None  # None: pixels as they are, or RLE

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


@contextmanager
def pydicom_errors_as_scan_error(path: Path) -> Iterator[None]:
    """Turn pydicom's errors, of whatever kind, into a ScanError; odd values that matter to nobody pass in silence."""
    with config.disable_value_validation():
        try:
            yield
        except FlarecpsError:
            raise
        except Exception as error:  # on bytes that are no data set, it raises all sorts
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            reason = " ".join(reason.split()).split(" - ")[0][:200] or type(error).__name__
            raise ScanError(
                f"{path}: can't be read ({reason}); expected DICOM: {cure_of(error, COPY_AGAIN)}"
            ) from error


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM: by its mark, by its suffix, or because it begins as a data set without preamble does."""
    start = b""
    if path.is_file():  # to open a pipe is to wait
        with suppress(OSError), open(path, "rb") as file:  # reading it will say why
            start = file.read(132)
    return start[128:] == MARK or path.suffix.lower() in SUFFIXES or _begins_as_data_set(start)


def _begins_as_data_set(start: bytes) -> bool:
    if len(start) < 16 or start[:2] not in FIRST_GROUPS:
        return False
    order = "big" if start[:2] == FIRST_GROUPS[-1] else "little"
    element, length = int.from_bytes(start[2:4], order), int.from_bytes(start[4:8], order)  # type: ignore[arg-type]
    explicit = start[4:6].decode("latin-1") in set(VR)
    return element <= 0xFF and (explicit or length <= LONGEST_FIRST_ELEMENT)


def dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM files in a folder itself, sorted; hidden ones and DICOMDIR are left out."""
    with os.scandir(folder) as entries:
        paths = sorted(Path(entry.path) for entry in entries)
    yield from (path for path in paths if _may_be_slice(path) and is_dicom_file(path))


def scans_in(folder: Path) -> list[Path]:
    """The DICOM scans of a folder itself, without what lies below it.

    The folder, where it holds slices, parts of one series, or only damaged files; otherwise each multi-frame file, with
    the damaged ones beside them, which are to be reported.
    """
    series: dict[Path, str] = {}
    damaged: list[Path] = []
    for path in dicom_files(folder):
        try:
            header = dicom_header(path)
            if header is not None and frame_count(path, header) == 1:
                return [folder]
        except ScanError:
            damaged.append(path)
            continue
        if header is not None:
            series[path] = str(header.get("SeriesInstanceUID"))
    if len(set(series.values())) < len(series) or (damaged and not series):
        return [folder]
    return sorted([*series, *damaged]) if series else []


def _may_be_slice(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or path.suffix.lower() in NEVER_DICOM:
        return False
    # Links that lead nowhere and pipes are reported where they are called as slices are
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def dicom_header(path: Path, tags: list[BaseTag | int] | None = TAGS) -> Dataset | None:
    """The elements ``tags`` (None: all) before the pixels; None for an object that holds no scan (RTSTRUCT, SEG, …).

    Raises ScanError when the file is truncated or damaged.
    """
    reached = []
    check_reachable(path)

    def at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
        reached.extend([tag] if tag in PIXEL_DATA else [])
        return bool(reached)

    with pydicom_errors_as_scan_error(path), open(path, "rb") as file:
        header = read_partial(file, at_pixels, force=True, specific_tags=tags)
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
        modality, header.start_of_pixels = header.get("Modality"), file.tell()
    if modality in NO_SCAN or (not reached and kind and "Image Storage" not in UID(str(kind)).name):
        return None
    if not reached:
        raise ScanError(f"{path}: ends before its pixels; expected a slice of a series: {COPY_AGAIN}")
    return header


def slices_of(path: Path, header: Dataset) -> list[Slice]:
    """Every slice in a file, in its order, as its own header or its frame's describes it.

    Raises ScanError for colour, and for a position, orientation, spacing or rescaling that is missing or no number.
    """
    count = frame_count(path, header)
    with pydicom_errors_as_scan_error(path):
        stated = max(1, len(header.get("PerFrameFunctionalGroupsSequence") or []))
        frames = range(min(count, stated)) if count > 1 else [None]
        packed = _packed(header)
        slices = [_slice_of(path, frame, _places(header, frame or 0), packed) for frame in frames]
    if count > len(slices):
        raise ScanError(
            f"{path}: NumberOfFrames is {count}, and the places of {len(slices)} are stated; expected that of each "
            "frame: export the series again"
        )
    return slices


def frame_count(path: Path, header: Dataset) -> int:
    """How many slices a file holds: more than one in a multi-frame file. ScanError for what is no such number."""
    with pydicom_errors_as_scan_error(path):
        stated = _Attributes(str(path), [header]).numbers("NumberOfFrames", 1, "a whole number", (1.0,), positive=True)
    return max(1, int(stated[0]))


def attributes(slices: Sequence[Slice]) -> dict[Slice, dict[str, str]]:
    """All short attributes of each slice by keyword, or tag where it is private, as text; read from the files again."""
    said: dict[Slice, dict[str, str]] = {}
    headers: dict[Path, Dataset] = {}
    for one in slices:
        if one.path not in headers:
            headers[one.path] = dicom_header(one.path, None) or Dataset()
        with pydicom_errors_as_scan_error(one.path):
            own = {
                element.keyword or str(element.tag): _in_a_line(str(element.value))
                for place in reversed(_places(headers[one.path], one.frame or 0))
                for element in place
                if element.VR != "SQ" and len(str(element.value)) <= LONGEST_TOLD
            }
        said[one] = own
    return said


def _places(header: Dataset, frame: int) -> list[Dataset]:
    """Where a frame's attributes are looked up: in its own groups, in those of all frames, in the file's header."""
    return [
        *_groups(header, "PerFrameFunctionalGroupsSequence", frame),
        *_groups(header, "SharedFunctionalGroupsSequence", 0),
        header,
    ]


def _groups(header: Dataset, keyword: str, item: int) -> list[Dataset]:
    """The functional groups in an item of a sequence; none in files that have no such groups."""
    items = header.get(keyword) or []
    return [one.value[0] for one in items[item] if one.VR == "SQ" and one.value] if item < len(items) else []


def _in_a_line(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:LONGEST_TOLD]


def _states(place: Dataset, keyword: str) -> bool:
    return keyword in place and place.get_item(keyword).value not in (None, b"", "")


@dataclass(frozen=True)
class _Attributes:
    """What a header says; the first of ``places`` that has an attribute counts."""

    where: str
    places: Sequence[Dataset]

    def text(self, keyword: str) -> str:
        values = (place.get(keyword) for place in self.places)
        return next((_in_a_line(str(value)) for value in values if value or value == 0), "")

    def numbers(
        self, keyword: str, count: int, expected: str, absent: tuple[float, ...] | None = None, positive: bool = False
    ) -> tuple[float, ...]:
        """``count`` numbers below `BEYOND`; ``absent`` where no place has them. ScanError for anything else."""
        for place in self.places:
            if not _states(place, keyword):
                continue
            try:
                found = tuple(map(float, np.array(place[keyword].value, float).ravel()))
            except (TypeError, ValueError, ArithmeticError, struct.error):
                found = ()
            if len(found) == count and all(abs(one) < BEYOND for one in found) and not (positive and min(found) <= 0):
                return found
            raw = place.get_item(keyword).value
            said = raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)
            raise self.refused(f"{keyword} is {_in_a_line(said)}; expected {expected}")
        if absent is None:
            raise self.refused(f"states no {keyword}; expected {expected}")
        return absent

    def length(self, keyword: str) -> float | None:
        """A positive number, or None: nothing is refused for its sake."""
        with suppress(ValueError):
            return float(self.text(keyword)) or None
        return None

    def states(self, keyword: str) -> bool:
        return any(_states(place, keyword) for place in self.places)

    def refused(self, why: str) -> ScanError:
        return ScanError(f"{self.where}: {why}: export the series again, or move this file out of its folder")


def is_packed(syntax: UID | None) -> bool:
    """Whether a decoder in a process of its own is needed."""
    return syntax is not None and syntax.is_encapsulated and syntax != RLELossless


def _packed(header: Dataset) -> Packed | None:
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not is_packed(syntax):
        return None
    return Packed(
        Dataset({tag: header.get_item(tag) for tag in OF_PIXELS if tag in header}), syntax, header.start_of_pixels
    )


def _slice_of(path: Path, frame: int | None, places: Sequence[Dataset], packed: Packed | None) -> Slice:
    header = _Attributes(str(path) if frame is None else f"{path} frame {frame + 1}", places)
    photometric = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if header.text("SamplesPerPixel") not in ("", "1") or not photometric.startswith("MONOCHROME"):
        raise header.refused(f"a picture in colour ({photometric}); expected one number per voxel")
    if header.text("ModalityLUTSequence"):
        raise header.refused("its values are looked up in a table; expected a rescale slope and intercept")
    rows, columns = (int(header.numbers(edge, 1, "a size", positive=True)[0]) for edge in ("Rows", "Columns"))
    between_rows, between_columns = header.numbers("PixelSpacing", 2, "two positive numbers in mm", positive=True)
    stated = header.numbers("ImageOrientationPatient", 6, "six direction cosines")
    along_row, along_column = np.reshape(stated, (2, 3))
    cosines = np.column_stack([along_row, along_column, np.cross(along_row, along_column)])
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SKEW_LIMIT:
        raise header.refused(f"ImageOrientationPatient is {stated}; expected two unit vectors at right angles")
    slope = header.numbers("RescaleSlope", 1, "a number", (1.0,))[0]
    intercept = header.numbers("RescaleIntercept", 1, "a number", (0.0,))[0]
    if slope == 0:
        raise header.refused("RescaleSlope is 0; expected another number")
    return Slice(
        path=path,
        frame=frame,
        shape=(rows, columns),
        spacing_mm=(between_rows, between_columns),
        directions=nearest_orthonormal(cosines),
        position_mm=np.array(header.numbers("ImagePositionPatient", 3, "three numbers in mm")),
        slope=slope,
        intercept=intercept,
        rescaling=" and ".join(filter(header.states, ("RescaleSlope", "RescaleIntercept"))) or "none",
        photometric=photometric,
        thickness_mm=header.length("SliceThickness"),
        stated={keyword: said for keyword in (FRAME_OF_REFERENCE, *STACKS) if (said := header.text(keyword))},
        packed=packed,
    )
