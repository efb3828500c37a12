"""What results in DICOM refer to: the series that a scan came from, by the headers of its slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmwrite

from flarecps.atomic import atomic_path
from flarecps.errors import ScanError
from flarecps.volumes.dicom import read_stack
from flarecps.volumes.dicom_slices import Slice, dicom_header, is_dicom_file, pydicom_errors_as_scan_error
from flarecps.volumes.links import place_of

PROGRAM = "flarecps"
UTF_8 = "ISO_IR 192"  # the standard's name of it: structures may be called in any language
# What every result must repeat, and what it repeats where the scan has it and leaves empty otherwise.
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
OF_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class SourceSeries:
    """The slices of one stack in the order of their grid, each with the header of its file, ``step_mm`` apart."""

    path: Path
    slices: Sequence[Slice]
    headers: Sequence[Dataset]
    step_mm: float


def read_source_series(path: Path) -> SourceSeries:
    """The series at ``path``, a folder or a multi-frame file, as results refer to it.

    Raises ScanError for a scan that is not DICOM, and for a series without the identifiers that results must repeat:
    none is made up.
    """
    if not place_of(path).is_dir() and not is_dicom_file(place_of(path)):
        raise ScanError(f"{path}: not DICOM, so no DICOM result can refer to it: leave out --dicom-seg and --rtstruct")
    slices, space = read_stack(path)
    by_file = {file: _header(file) for file in dict.fromkeys(one.path for one in slices)}
    uids = [str(header.SOPInstanceUID) for header in by_file.values()]
    if len(set(uids)) < len(uids):
        raise ScanError(
            f"{path}: two files have one SOPInstanceUID, by which results tell slices apart: export it again"
        )
    return SourceSeries(path, slices, [by_file[one.path] for one in slices], space.spacing_mm[0])


def _header(file: Path) -> Dataset:
    with pydicom_errors_as_scan_error(file):
        header = dicom_header(file, None)
        assert header is not None
        for keyword, of_file in (
            ("SOPClassUID", "MediaStorageSOPClassUID"),
            ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        ):
            if not header.get(keyword) and header.file_meta.get(of_file):
                setattr(header, keyword, header.file_meta[of_file].value)
        for keyword in OF_PATIENT_AND_STUDY:
            if keyword not in header:
                setattr(header, keyword, "")
    for keyword in IDENTIFIERS:
        if not header.get(keyword):
            raise ScanError(
                f"{file}: states no {keyword}, which a result in DICOM must repeat: export the series with its "
                "identifiers, or leave out --dicom-seg and --rtstruct"
            )
    return header


def write_dicom(path: Path, content: Dataset) -> None:
    """Write a data set as a DICOM file, atomically."""
    with atomic_path(path) as partial:
        dcmwrite(partial, content, enforce_file_format=True)
