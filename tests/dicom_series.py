"""Small DICOM series for tests, written with pydicom: slices, enhanced multi-frame files, objects without pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage

from flarecps.volumes.io import read_volume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SPACING_MM = (0.9, 0.8)  # between rows, between columns
CORNER_MM = (-40.0, -30.0)
STEP_MM = 2.5
SERIES_UID = "1.2.826.0.1.3680043.10.43.1"


def hounsfield(slices: int = 5, rows: int = 7, columns: int = 6) -> np.ndarray:
    """Whole HU (slice, row, column) from air to bone, every slice another."""
    return np.random.default_rng(7).integers(-1000, 900, (slices, rows, columns)).astype(np.int16)


def written(path: Path, content: Dataset, syntax: UID = ExplicitVRLittleEndian, bare: bool = False) -> Path:
    """``content`` as a file; a ``bare`` one has neither preamble nor file meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if bare:
        content.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        return path
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = syntax
    content.save_as(path, enforce_file_format=True)
    return path


def image(shape: tuple[int, int], pixels: bytes, signed: bool, bits: int = 16, stored: int | None = None) -> Dataset:
    """The attributes that a CT image has whatever its geometry."""
    content = Dataset()
    content.SOPClassUID, content.Modality, content.PatientName = CTImageStorage, "CT", "Test^Nobody"
    content.StudyInstanceUID, content.SeriesInstanceUID, content.SOPInstanceUID = "1.2.3", SERIES_UID, "1.2.3.4"
    content.Rows, content.Columns = shape
    content.SamplesPerPixel, content.PhotometricInterpretation = 1, "MONOCHROME2"
    content.BitsAllocated, content.BitsStored = bits, stored or bits
    content.HighBit, content.PixelRepresentation = (stored or bits) - 1, int(signed)
    content.PixelData = pixels
    content["PixelData"].VR = "OW"
    return content


def a_slice(
    values: np.ndarray,
    number: int,
    slope: float = 1.0,
    intercept: float = -1024.0,
    kind: type = np.uint16,
    others: Mapping[str, Any] | None = None,
) -> Dataset:
    """A CT slice that holds ``values``; ``others`` replaces attributes, or takes away those that are None."""
    stored = np.rint((np.asarray(values, float) - intercept) / slope)
    kinds = np.iinfo(kind)
    assert kinds.min <= stored.min() <= stored.max() <= kinds.max
    content = image(stored.shape, stored.astype(kind).tobytes(), kinds.min < 0, kinds.bits)
    content.SOPInstanceUID, content.InstanceNumber = f"{SERIES_UID}.{number + 1}", number + 1
    content.ImagePositionPatient = [*CORNER_MM, STEP_MM * number]
    content.ImageOrientationPatient, content.PixelSpacing = list(AXIAL), list(SPACING_MM)
    content.RescaleSlope, content.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
    for name, value in (others or {}).items():
        if value is None:
            delattr(content, name)
        else:
            setattr(content, name, value)
    return content


def series(folder: Path, hu: np.ndarray | None = None, names: str = "slice{:03d}.dcm", **others: Any) -> Path:
    """A sound CT series, a file per slice."""
    for number, plane in enumerate(hounsfield() if hu is None else hu):
        written(folder / names.format(number), a_slice(plane, number, others=others))
    return folder


def enhanced(
    path: Path,
    frames: np.ndarray,
    places: Sequence[int],
    rescale: Sequence[tuple[float, float]] | None = None,
    **own: Sequence[Mapping[str, Any]],
) -> Path:
    """An enhanced CT file whose frames lie at ``places``, counted in steps; ``own``: more groups, an item a frame.

    ``rescale``: slope and intercept frame by frame; otherwise all share 1 and -1024.
    """
    slopes = list(rescale or [(1.0, -1024.0)] * len(places))
    stored = [np.rint((plane - inter) / slope) for plane, (slope, inter) in zip(frames, slopes, strict=True)]
    content = image(frames.shape[1:], np.stack(stored).astype(np.uint16).tobytes(), False)
    content.SOPClassUID, content.SOPInstanceUID = EnhancedCTImageStorage, f"{SERIES_UID}.0"
    content.NumberOfFrames = len(places)
    shared = {
        "PixelMeasuresSequence": {"PixelSpacing": list(SPACING_MM), "SliceThickness": 9.0},
        "PlaneOrientationSequence": {"ImageOrientationPatient": list(AXIAL)},
    }
    items = []
    for frame, place in enumerate(places):
        groups = {"PlanePositionSequence": {"ImagePositionPatient": [*CORNER_MM, STEP_MM * place]}}
        groups |= {name: groups_of[frame] for name, groups_of in own.items()}
        slope, intercept = slopes[frame]
        values = {"RescaleSlope": f"{slope:g}", "RescaleIntercept": f"{intercept:g}", "RescaleType": "HU"}
        (shared if rescale is None else groups)["PixelValueTransformationSequence"] = values
        items.append(_groups(groups))
    content.SharedFunctionalGroupsSequence = [_groups(shared)]
    content.PerFrameFunctionalGroupsSequence = items
    return written(path, content)


def _groups(groups: Mapping[str, Mapping[str, Any]]) -> Dataset:
    content = Dataset()
    for name, values in groups.items():
        only = Dataset()
        for keyword, value in values.items():
            setattr(only, keyword, value)
        setattr(content, name, [only])
    return content


def no_image(path: Path, kind: UID = RTStructureSetStorage, modality: str = "RTSTRUCT") -> Path:
    """An object without pixels."""
    content = Dataset()
    content.SOPClassUID, content.SOPInstanceUID, content.Modality = kind, "1.2.3.9", modality
    content.StudyInstanceUID, content.SeriesInstanceUID = "1.2.3", "1.2.3.8"
    return written(path, content)


def as_series(folder: Path, scan: Path, lost: Sequence[int] = (), again: Sequence[int] = (), **others: Any) -> Path:
    """An axial scan as a series of files: without the slices ``lost``, with those of ``again`` sent a second time."""
    volume = read_volume(scan)
    rows, columns = volume.space.shape[1:]
    whole = np.rint(volume.array[0, :, ::-1, ::-1])
    for number, plane in enumerate(whole):
        corner = volume.space.position_mm((number, rows - 1, columns - 1))
        place = {
            "ImagePositionPatient": [f"{edge:.6f}" for edge in corner],
            "PixelSpacing": [f"{edge:.6f}" for edge in volume.space.spacing_mm[1:]],
        }
        names = [f"{number:03d}.dcm"] * (number not in lost) + [f"{number:03d}_again.dcm"] * (number in again)
        for name in names:
            written(folder / name, a_slice(plane, number, others=place | others))
    return folder
