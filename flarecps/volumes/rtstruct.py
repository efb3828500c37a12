"""Labels as a DICOM RT Structure Set: on each slice the outlines of every structure, along the edges of its voxels.

A voxel's centre lies within an outline where the voxel has the label, and an outline's area is that of its voxels.
Holes are cut open by a channel (DICOM PS3.3, C.8.8.6.3), so all readers fill outlines alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy import ndimage

import flarecps
from flarecps.anatomy import Organ
from flarecps.errors import visible
from flarecps.typing import LabelArray
from flarecps.volumes.dicom_results import OF_PATIENT_AND_STUDY, PROGRAM, UTF_8, SourceSeries, write_dicom
from flarecps.volumes.dicom_slices import Slice

Corner: TypeAlias = tuple[int, int]  # (row, column) of a voxel's corner towards voxel (0, 0)
INSET_MM = 5e-4  # so that readers which round to whole voxels (rt-utils) round to those within
LONGEST_NAME = 64  # characters of a structure's name
SERIES_NUMBER = 902
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # the class of a referenced study


def write_rtstruct(path: Path, labels: LabelArray, series: SourceSeries, organs: Sequence[Organ]) -> None:
    """Write labels (slice, row, column), in the order of ``series``, as an RT Structure Set, atomically.

    Structure numbers are the organs' ids; organs that have no voxel are left out.
    """
    header, now = series.headers[0], datetime.now()
    content = Dataset()
    content.SOPClassUID, content.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    content.Modality, content.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    content.SeriesNumber, content.InstanceNumber = SERIES_NUMBER, 1
    content.SeriesDescription = content.StructureSetLabel = "Segmentation"
    content.Manufacturer = content.ManufacturerModelName = PROGRAM
    content.SoftwareVersions, content.OperatorsName, content.ApprovalStatus = flarecps.__version__, "", "UNAPPROVED"
    content.StructureSetDate = content.InstanceCreationDate = now.strftime("%Y%m%d")
    content.StructureSetTime = content.InstanceCreationTime = now.strftime("%H%M%S")
    content.SpecificCharacterSet = UTF_8
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", *OF_PATIENT_AND_STUDY):
        setattr(content, keyword, header[keyword].value)
    content.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")
    content.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    boxes = ndimage.find_objects(labels, max(organ.id for organ in organs))
    drawn = [organ for organ in organs if boxes[organ.id - 1] is not None]
    content.StructureSetROISequence = [_structure(organ, content.FrameOfReferenceUID) for organ in drawn]
    content.ROIContourSequence = [_outlined(labels == organ.id, organ, series) for organ in drawn]
    content.RTROIObservationsSequence = [_observation(organ) for organ in drawn]
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # whose values may be longer than 64 KB
    write_dicom(path, content)


def _reference(header: Dataset, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _frame_of_reference(series: SourceSeries) -> Dataset:
    """The series that outlines lie on: its frame, its study, itself, its files."""
    header = series.headers[0]
    in_series, study, frame = Dataset(), Dataset(), Dataset()
    in_series.SeriesInstanceUID = header.SeriesInstanceUID
    in_series.ContourImageSequence = [
        _reference(one) for one in {id(header): header for header in series.headers}.values()
    ]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_COMPONENT, header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [in_series]
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _structure(organ: Organ, frame_of_reference: str) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = organ.id, visible(organ.name)[:LONGEST_NAME]
    item.ReferencedFrameOfReferenceUID, item.ROIGenerationAlgorithm = frame_of_reference, "AUTOMATIC"
    return item


def _observation(organ: Organ) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = organ.id
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item


def _outlined(mask: np.ndarray, organ: Organ, series: SourceSeries) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = organ.id, list(organ.colour)
    contours = []
    for plane, one, header in zip(mask, series.slices, series.headers, strict=True):
        for corners in outlines(plane):
            points = _positions_mm(corners, one)
            contour = Dataset()
            contour.ContourImageSequence = [_reference(header, one.frame)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.add_new("ContourData", "OB", _decimals(points))  # implicit files hold no such types
            contours.append(contour)
    item.ContourSequence = contours
    return item


def _decimals(numbers: np.ndarray) -> bytes:
    """Numbers as they lie in a file; pydicom's own conversion, one by one, would take most of the time."""
    text = "\\".join(f"{number:.4f}" for number in numbers.ravel().tolist()).encode()
    return text + b" " * (len(text) % 2)


def _positions_mm(corners: np.ndarray, one: Slice) -> np.ndarray:
    """LPS positions (n, 3) of an outline's corners (n, 2), `INSET_MM` within the edges of its voxels."""
    before = np.sign(corners - np.roll(corners, 1, axis=0))
    inwards = (before + np.roll(before, -1, axis=0))[:, ::-1] * (1, -1)  # to the right of both steps at a corner
    in_plane_mm = (corners - 0.5) * one.spacing_mm + INSET_MM * inwards
    return one.position_mm + in_plane_mm @ one.directions[:, [1, 0]].T  # along rows, along columns


def outlines(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The outlines of a mask (row, column): for each piece connected by edges its corners (n, 2), not closed.

    Corner (r, c) is the one that voxel (r, c) shares with voxel (r - 1, c - 1). Holes are joined to their outline.
    """
    pieces, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        loops = _loops(pieces[box] == number)
        loops.sort(key=min)  # the outer one has the topmost corner, and a hole's channel leads up to an earlier one
        ring = loops[0]
        for hole in loops[1:]:
            ring = _joined(ring, hole)
        yield np.add(_straightened(ring), (box[0].start, box[1].start))


def _loops(piece: np.ndarray) -> list[list[Corner]]:
    """The closed paths along the edges of a piece, which lies to the right of every step: all corners on the way."""
    padded = np.pad(piece, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]
    ahead: dict[Corner, list[Corner]] = defaultdict(list)  # the steps from each corner
    for edges, step, row, column in (
        (below & ~above, (0, 1), 0, 0),
        (above & ~below, (0, -1), 0, 1),
        (right & ~left, (-1, 0), 1, 0),
        (left & ~right, (1, 0), 0, 0),
    ):
        for start in np.add(np.argwhere(edges), (row, column)).tolist():
            ahead[start[0], start[1]].append(step)
    loops = []
    while ahead:
        corner = next(start for start, steps in ahead.items() if len(steps) == 1)
        step, loop = ahead[corner][0], []
        while corner in ahead:
            steps = ahead[corner]
            to_the_right = (step[1], -step[0])  # where two voxels touch by a corner, the path stays with its own
            step = to_the_right if to_the_right in steps else steps[0]
            steps.remove(step)
            if not steps:
                del ahead[corner]
            loop.append(corner)
            corner = corner[0] + step[0], corner[1] + step[1]
        loops.append(loop)
    return loops


def _joined(ring: list[Corner], hole: list[Corner]) -> list[Corner]:
    """One path of two: straight up from the hole's topmost corner to the ring, and the same way back."""
    start = hole.index(min(hole))
    (row, column), known = hole[start], set(ring)
    meets = next((up, column) for up in range(row, -1, -1) if (up, column) in known)
    place = ring.index(meets)
    return [*ring[: place + 1], *hole[start:], *hole[: start + 1], *ring[place:]]


def _straightened(ring: list[Corner]) -> list[Corner]:
    """The corners at which a closed path turns, either way or back."""
    path = np.array(ring)
    before, after = np.sign(path - np.roll(path, 1, axis=0)), np.sign(np.roll(path, -1, axis=0) - path)
    return path[(before != after).any(axis=1)].tolist()
