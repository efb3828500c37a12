"""DICOM SEG and RTSTRUCT, read back by pydicom alone: geometry, names, colours and what they refer to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_series import AXIAL, SPACING_MM, STEP_MM, a_slice, enhanced, hounsfield, series, written
from matplotlib.path import Path as Outline
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from scipy import ndimage
from skimage.color import lab2rgb

from flarecps.anatomy import FLARE22_ORGANS, organs_of
from flarecps.errors import ConfigError, ScanError
from flarecps.volumes.dicom_results import read_source_series
from flarecps.volumes.dicom_seg import coded, write_dicom_seg
from flarecps.volumes.io import read_volume, stored_labels
from flarecps.volumes.rtstruct import outlines, write_rtstruct

ORGANS = organs_of({"background": 0, "liver": 1, "left kidney": 2, "größte Zyste": 3})
PATIENT = {
    "FrameOfReferenceUID": "1.2.3.77", "PatientName": "Müller^Jürgen", "PatientID": "P1", "StudyDate": "20200102",
    "SpecificCharacterSet": "ISO_IR 100", "AccessionNumber": "A7", "PatientBirthDate": "19500304",
}  # fmt: skip
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, -0.6)


def scene(folder: Path, orientation: tuple[float, ...] = AXIAL, places: str = "up") -> Path:
    """A series whose slices lie along the normal of ``orientation``, under names in any order."""
    normal = np.cross(orientation[:3], orientation[3:])
    for number, plane in enumerate(hounsfield(slices=6, rows=9, columns=8)):
        position = (np.array([-40.0, 30, 7]) + STEP_MM * number * normal).round(6).tolist()
        others = PATIENT | {"ImagePositionPatient": position, "ImageOrientationPatient": list(orientation)}
        name = f"{number * 5 % 6}.dcm" if places == "shuffled" else f"{number}.dcm"
        written(folder / name, a_slice(plane, number, others=others))
    return folder


def labels_for(scan: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blobs with holes, canonical and as stored; the last organ is in no voxel."""
    volume = read_volume(scan)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=volume.space.shape), 0.8)
    labels = ((noise > 0.1).astype(np.uint8) + (noise > 0.3)).astype(np.uint8)
    return labels, stored_labels(labels, volume.source)


def at_positions(scan: Path, labels: np.ndarray) -> dict[tuple[float, ...], int]:
    """The label at each voxel's position, by the program's own grid (which other tests compare with pydicom's)."""
    space = read_volume(scan).space
    return {
        tuple(np.round(space.position_mm(index), 2) + 0.0): int(labels[index]) for index in np.ndindex(*space.shape)
    }


@pytest.mark.parametrize(("orientation", "places"), [(AXIAL, "up"), (AXIAL, "shuffled"), (OBLIQUE, "up")])
def test_segments_lie_where_the_labels_do(tmp_path: Path, orientation, places) -> None:
    scan = scene(tmp_path / "scan", orientation, places)
    labels, stored = labels_for(scan)
    write_dicom_seg(tmp_path / "seg.dcm", stored, read_source_series(scan), ORGANS)
    content = dcmread(tmp_path / "seg.dcm")
    frames = pixel_array(content)
    expected = at_positions(scan, labels)
    found = dict.fromkeys(expected, 0)
    shared = content.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(STEP_MM, abs=1e-4)
    by_uid = {dcmread(file).SOPInstanceUID: dcmread(file) for file in scan.iterdir()}
    for frame, group in zip(frames, content.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        np.testing.assert_allclose(corner, by_uid[source.ReferencedSOPInstanceUID].ImagePositionPatient, atol=1e-3)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for row, column in np.argwhere(frame):
            place = corner + column * spacing[1] * cosines[:3] + row * spacing[0] * cosines[3:]
            found[tuple(np.round(place, 2) + 0.0)] += int(number)
    assert found == expected
    assert sorted(set(found.values())) == [0, 1, 2]


def test_a_segmentation_repeats_what_it_belongs_to_and_nothing_else(tmp_path: Path) -> None:
    scan = scene(tmp_path / "scan")
    _, stored = labels_for(scan)
    series_of = read_source_series(scan)
    write_dicom_seg(tmp_path / "seg.dcm", stored, series_of, ORGANS)
    write_rtstruct(tmp_path / "rt.dcm", stored, series_of, ORGANS)
    given = dcmread(scan / "0.dcm")
    for name, kind in (("seg.dcm", "SEG"), ("rt.dcm", "RTSTRUCT")):
        content = dcmread(tmp_path / name)
        assert content.Modality == kind
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate",
                        "AccessionNumber", "FrameOfReferenceUID"):  # fmt: skip
            assert str(content[keyword].value) == str(given[keyword].value), keyword
        for absent in ("PatientSex", "StudyTime", "StudyID", "ReferringPhysicianName"):
            assert not content[absent].value
        assert content.SeriesInstanceUID != given.SeriesInstanceUID
        assert content.SOPInstanceUID == content.file_meta.MediaStorageSOPInstanceUID
    seg, rt = dcmread(tmp_path / "seg.dcm"), dcmread(tmp_path / "rt.dcm")
    uids = {str(dcmread(file).SOPInstanceUID) for file in scan.iterdir()}
    (in_series,) = seg.ReferencedSeriesSequence
    assert in_series.SeriesInstanceUID == given.SeriesInstanceUID
    assert {str(one.ReferencedSOPInstanceUID) for one in in_series.ReferencedInstanceSequence} <= uids
    (study,) = rt.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == given.StudyInstanceUID
    (in_series,) = study.RTReferencedSeriesSequence
    assert in_series.SeriesInstanceUID == given.SeriesInstanceUID
    assert {str(one.ReferencedSOPInstanceUID) for one in in_series.ContourImageSequence} == uids


def test_names_colours_and_codes(tmp_path: Path) -> None:
    scan = scene(tmp_path / "scan")
    _, stored = labels_for(scan)
    write_dicom_seg(tmp_path / "seg.dcm", stored, read_source_series(scan), ORGANS)
    write_rtstruct(tmp_path / "rt.dcm", stored, read_source_series(scan), ORGANS)
    segments = dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [(one.SegmentNumber, one.SegmentLabel) for one in segments] == [(o.id, o.name) for o in ORGANS]
    for one, organ in zip(segments, ORGANS, strict=True):
        np.testing.assert_allclose(rgb(one.RecommendedDisplayCIELabValue), organ.colour, atol=0.5)
    kidney = segments[1].SegmentedPropertyTypeCodeSequence[0]
    assert kidney.CodeValue == "64033007"
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    rt = dcmread(tmp_path / "rt.dcm")
    drawn = ORGANS[:2]  # the third has no voxel
    assert [(one.ROINumber, one.ROIName) for one in rt.StructureSetROISequence] == [(o.id, o.name) for o in drawn]
    assert [tuple(one.ROIDisplayColor) for one in rt.ROIContourSequence] == [organ.colour for organ in drawn]
    assert [one.ReferencedROINumber for one in rt.RTROIObservationsSequence] == [1, 2]


def rgb(stored: list[int]) -> np.ndarray:
    """sRGB, 0 to 255, of DICOM's CIELab, with the white (D65) that DCMTK and 3D Slicer read it by."""
    return 255 * lab2rgb([stored[0] / 655.35, stored[1] / 257 - 128, stored[2] / 257 - 128])


def test_every_flare22_organ_has_a_code() -> None:
    codes = [coded(organ.name) for organ in FLARE22_ORGANS]
    assert all(kind.meaning != "Anatomical Structure" for kind, _ in codes)
    assert [side and side.meaning for _, side in codes].count("Left") == 2
    assert len({(kind.value, side and side.value) for kind, side in codes}) == len(FLARE22_ORGANS)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_outlines_hold_the_voxels_centres_and_their_area(tmp_path: Path, orientation) -> None:
    scan = scene(tmp_path / "scan", orientation)
    labels, stored = labels_for(scan)
    write_rtstruct(tmp_path / "rt.dcm", stored, read_source_series(scan), ORGANS)
    by_uid = {dcmread(file).SOPInstanceUID: dcmread(file) for file in scan.iterdir()}
    expected, found = at_positions(scan, labels), dict.fromkeys(at_positions(scan, labels), 0)
    areas: dict[int, float] = {}
    for one in dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in one.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            slice_ = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            assert len(points) == contour.NumberOfContourPoints
            inside, area = filled(points, slice_, orientation)
            areas[one.ReferencedROINumber] = areas.get(one.ReferencedROINumber, 0) + area
            for place in inside:
                found[tuple(np.round(place, 2) + 0.0)] += int(one.ReferencedROINumber)
    assert found == expected
    for number, area in areas.items():
        assert area == pytest.approx((labels == number).sum() * np.prod(SPACING_MM), rel=3e-3)


def filled(points: np.ndarray, slice_: Dataset, orientation: tuple[float, ...]) -> tuple[np.ndarray, float]:
    """Positions of the slice's voxels within an outline, and its area; the outline lies in the slice."""
    corner, cosines = np.array(slice_.ImagePositionPatient, float), np.reshape(orientation, (2, 3))
    assert np.abs((points - corner) @ np.cross(*cosines)).max() < 1e-3
    flat = (points - corner) @ cosines.T  # mm along columns, along rows
    rows, columns = np.mgrid[: slice_.Rows, : slice_.Columns]
    centres = np.stack([columns.ravel() * SPACING_MM[1], rows.ravel() * SPACING_MM[0]], axis=1)
    within = Outline(np.vstack([flat, flat[:1]])).contains_points(centres)
    x, y = flat.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return corner + centres[within] @ cosines, area


@pytest.mark.parametrize("seed", range(30))
def test_outlines_fill_to_the_mask(seed: int) -> None:
    """Noise of any density: pieces that touch by corners, holes in holes, single voxels, borders."""
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 14, 2)) < random.random()
    count, area = np.zeros(mask.shape, int), 0.0
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    centres = np.stack([rows.ravel() + 0.5, columns.ravel() + 0.5], axis=1)
    for outline in outlines(mask):
        count += Outline(np.vstack([outline, outline[:1]])).contains_points(centres).reshape(mask.shape)
        x, y = outline.T.astype(float)
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    assert np.array_equal(count, mask)
    assert area == mask.sum()


def test_a_multi_frame_file_is_referred_to_by_frames(tmp_path: Path) -> None:
    scan = enhanced(tmp_path / "scan.dcm", hounsfield(), [4, 2, 3, 0, 1])
    content = dcmread(scan)
    content.FrameOfReferenceUID = "1.2.3.77"
    content.save_as(scan)
    volume = read_volume(scan)
    labels = np.zeros(volume.space.shape, np.uint8)
    labels[1, 2:4, 3] = 2  # at 2.5 mm: the file's last frame
    stored, series_of = stored_labels(labels, volume.source), read_source_series(scan)
    write_dicom_seg(tmp_path / "seg.dcm", stored, series_of, ORGANS)
    write_rtstruct(tmp_path / "rt.dcm", stored, series_of, ORGANS)
    (group,) = dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    assert group.PlanePositionSequence[0].ImagePositionPatient[2] == STEP_MM
    assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 5
    (contour,) = dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 5
    assert contour.ContourData[2] == STEP_MM


def test_nothing_found_is_written_all_the_same(tmp_path: Path) -> None:
    scan = series(tmp_path / "scan", **PATIENT)
    empty = np.zeros(hounsfield().shape, np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", empty, read_source_series(scan), ORGANS)
    write_rtstruct(tmp_path / "rt.dcm", empty, read_source_series(scan), ORGANS)
    assert not pixel_array(dcmread(tmp_path / "seg.dcm")).any()
    assert not dcmread(tmp_path / "rt.dcm").ROIContourSequence


def test_what_can_not_be_referred_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        bare = series(tmp_path / keyword, **PATIENT | {keyword: ""})
        with pytest.raises(ScanError, match=f"states no {keyword}"):
            read_source_series(bare)
    with pytest.raises(ScanError, match="states no FrameOfReferenceUID"):
        read_source_series(series(tmp_path / "frameless"))
    (tmp_path / "scan.nii").touch()
    with pytest.raises(ScanError, match="not DICOM"):
        read_source_series(tmp_path / "scan.nii")
    scan = series(tmp_path / "scan", **PATIENT)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install highdicom"):
        write_dicom_seg(tmp_path / "seg.dcm", np.zeros((5, 7, 6), np.uint8), read_source_series(scan), ORGANS)


def test_uids_that_an_anonymiser_left_in_the_file_alone_are_found(tmp_path: Path) -> None:
    """A blank SOPClassUID and SOPInstanceUID in the data set; the file's own meta information has them."""
    scan = series(tmp_path / "scan", **PATIENT)
    uids = []
    for file in sorted(scan.iterdir()):
        content = dcmread(file)
        uids.append(content.SOPInstanceUID)
        content.SOPInstanceUID = content.SOPClassUID = ""
        content.save_as(file, enforce_file_format=False)
    assert [header.SOPInstanceUID for header in read_source_series(scan).headers] == uids


def test_an_outline_of_more_than_64_kilobytes_is_read_back_whole(tmp_path: Path) -> None:
    """A comb: more corners than a value of explicit type could hold."""
    scan = series(tmp_path / "scan", hounsfield(2, 120, 60), **PATIENT)
    stored = np.zeros((2, 120, 60), np.uint8)
    stored[0, ::2] = 1
    stored[0, :, ::59] = 1
    stored[0, 1::2, 1] = 1
    write_rtstruct(tmp_path / "rt.dcm", stored, read_source_series(scan), ORGANS)
    (contour,) = dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    stored[0, :, 30] = 1
    assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
