"""DICOM as it comes: every slice by its own header, one stack or a refusal that says which slices contradict how."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import (
    AXIAL,
    CORNER_MM,
    SPACING_MM,
    STEP_MM,
    a_slice,
    enhanced,
    hounsfield,
    image,
    no_image,
    series,
    written,
)
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from flarecps.errors import ScanError
from flarecps.volumes.dicom_slices import scans_in
from flarecps.volumes.discovery import find_cases, find_scans
from flarecps.volumes.io import Volume, read_space, read_volume, scan_name
from flarecps.volumes.space import Space

HU = hounsfield()
GRID = Space(HU.shape, (STEP_MM, *SPACING_MM), (1, 0, 0, 0, 1, 0, 0, 0, 1), (*CORNER_MM, 0.0))


def stored_order(volume: Volume) -> np.ndarray:
    return volume.source.reorientation.undo(volume.array[0])


def read_as(path: Path, values: np.ndarray = HU, grid: Space = GRID) -> tuple[str, ...]:
    """The remarks of a scan that has these values on this grid, by voxels and by header alone."""
    volume = read_volume(path)
    np.testing.assert_array_equal(stored_order(volume), values)
    assert volume.source.stored.shape == grid.shape
    for name in ("spacing_mm", "direction", "origin_mm"):
        np.testing.assert_allclose(getattr(volume.source.stored, name), getattr(grid, name), atol=1e-9)
    assert read_space(path) == volume.space
    return volume.warnings


def refusal(path: Path) -> str:
    """What is said of a scan that is refused, by voxels and by header alone."""
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    with pytest.raises(ScanError) as header:
        read_space(path)
    assert str(caught.value) == str(header.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# Values


@pytest.mark.parametrize("first", [(1.0, -1024.0), (0.5, -1024.0), (1.0, 0.0), (2.0, -3000.0)])
@pytest.mark.parametrize("others", [(1.0, -1024.0), (0.25, -1030.5), (3.0, -1200.0)])
def test_each_slice_has_its_own_slope_and_intercept(
    tmp_path: Path, first: tuple[float, float], others: tuple[float, float]
) -> None:
    expected = []
    for number, plane in enumerate(HU):
        slope, intercept = first if number == 0 else others
        stored = np.rint((plane.astype(float) - intercept) / slope).clip(0)
        expected.append(stored * slope + intercept)
        written(tmp_path / f"{number}.dcm", a_slice(expected[-1], number, slope, intercept))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(stored_order(volume), np.stack(expected))
    whole = first[0].is_integer() and others[0].is_integer() and others[1].is_integer()
    assert volume.array.dtype == (np.int16 if whole else np.float32)


def test_signed_unsigned_and_narrow_pixels_in_one_series(tmp_path: Path) -> None:
    dull = HU.clip(-1000, -800)
    for number, plane in enumerate(dull):
        kind = (np.uint16, np.int16, np.uint8)[number % 3]
        written(
            tmp_path / f"{number}.dcm", a_slice(plane, number, kind=kind, intercept=0 if kind is np.int16 else -1024)
        )
    assert read_as(tmp_path, dull) == ()
    assert read_volume(tmp_path).array.dtype == np.int16


def test_values_beyond_int16_are_kept(tmp_path: Path) -> None:
    strong = HU.astype(np.int32)
    strong[3, 2, 2] = 60000
    assert read_as(series(tmp_path, strong), strong) == ()
    assert read_volume(tmp_path).array.dtype == np.int32


def test_only_the_stored_bits_count(tmp_path: Path) -> None:
    for number, plane in enumerate(HU):
        content = a_slice(plane, number)
        stored = np.frombuffer(content.PixelData, np.uint16) | 0xA000  # an overlay in the bits above
        content.PixelData, content.BitsStored, content.HighBit = stored.tobytes(), 12, 11
        written(tmp_path / f"{number}.dcm", content)
    assert read_as(tmp_path) == ()


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntaxes(tmp_path: Path, syntax: Any) -> None:
    for number, plane in enumerate(HU):
        content = a_slice(plane, number)
        if syntax == ExplicitVRBigEndian:
            content.PixelData = np.frombuffer(content.PixelData, np.uint16).astype(">u2").tobytes()
        if syntax == RLELossless:
            content.file_meta = FileMetaDataset()
            content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            content.compress(syntax)
        written(tmp_path / f"{number}.dcm", content, syntax)
    assert read_as(tmp_path) == ()


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_compressed_slices_have_their_own_rescaling_too(tmp_path: Path, compressor: str, kind: type) -> None:
    values = hounsfield(4, 32, 32).astype(float)
    writer = sitk.ImageFileWriter()
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    for number, plane in enumerate(values):
        slope, intercept = 0.5 * (number + 1), -1024.0 - number
        stored = np.rint((plane - intercept) / slope).clip(0).astype(kind)
        values[number] = stored * slope + intercept
        writer.SetFileName(str(tmp_path / f"{number}.dcm"))
        writer.Execute(sitk.GetImageFromArray(stored))
        packed = dcmread(tmp_path / f"{number}.dcm")
        assert packed.file_meta.TransferSyntaxUID.is_compressed
        geometry = a_slice(plane, number, kind=np.int16, intercept=0)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID"):
            packed[name] = geometry[name]
        packed.RescaleSlope, packed.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
        packed.save_as(tmp_path / f"{number}.dcm")
    read_as(tmp_path, values, Space((4, 32, 32), GRID.spacing_mm, GRID.direction, GRID.origin_mm))


def test_jpeg_ls_is_read(tmp_path: Path) -> None:
    pytest.importorskip("jpeg_ls", reason="pyjpegls, which highdicom brings, writes it")
    for number, plane in enumerate(HU):
        content = a_slice(plane, number)
        content.ensure_file_meta()
        content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        content.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
        written(tmp_path / f"{number}.dcm", content, JPEGLSLossless)
    assert read_as(tmp_path) == ()


def jpeg_2000(values: np.ndarray, bits: int, signed: bool) -> bytes:
    """A code stream of ``bits`` a value, which Pillow's encoder lacks: its offset for 8 or 16 bits is made up for."""
    width = 8 if bits <= 8 else 16
    if not signed:
        values = values + (1 << (width - 1)) - (1 << (bits - 1))
    packed = values.astype(f"{'i' if signed else 'u'}{width // 8}").view(f"u{width // 8}")
    picture = Image.frombytes("L" if width == 8 else "I;16", packed.shape[::-1], packed.tobytes())
    file = io.BytesIO()
    picture.save(file, "JPEG2000", no_jp2=True, signed=signed)
    stream = bytearray(file.getvalue())
    assert stream[42] == (width - 1) | (128 if signed else 0)
    stream[42] -= width - bits
    return bytes(stream)


@pytest.mark.parametrize("header_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_2000_of_every_precision_and_sign_is_as_gdcm_reads_it(
    tmp_path: Path, signed: bool, header_signed: bool
) -> None:
    random = np.random.default_rng(3)
    for bits, used, allocated in (
        (1, 1, 8), (7, 7, 8), (8, 8, 8), (8, 8, 16), (9, 9, 16), (12, 12, 16), (12, 10, 16), (12, 16, 16), (16, 12, 16),
        (16, 16, 16),
    ):  # fmt: skip
        least = -(1 << (bits - 1)) if signed else 0
        values = random.integers(least, least + (1 << bits), (2, 20, 33))
        folder = tmp_path / f"{bits}_{used}_{allocated}"
        for number, plane in enumerate(values):
            content = a_slice(np.zeros(plane.shape), number)
            content.BitsAllocated, content.BitsStored, content.HighBit = allocated, used, used - 1
            content.PixelRepresentation = int(header_signed)
            content.RescaleSlope = content.RescaleIntercept = None
            content.PixelData = encapsulate([jpeg_2000(plane, bits, signed)])
            file = written(folder / f"{number}.dcm", content, JPEG2000Lossless)
            if bits >= 8:  # GDCM refuses the others
                values[number] = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO"))[0]
            elif signed != header_signed:
                values[number] = (
                    (plane & ((1 << bits) - 1)) if signed else (plane ^ (1 << (bits - 1))) - (1 << (bits - 1))
                )
        np.testing.assert_array_equal(stored_order(read_volume(folder)), values, err_msg=folder.name)


@pytest.mark.parametrize(("syntax", "decoders"), [(ExplicitVRLittleEndian, 0), (RLELossless, 0), (JPEG2000Lossless, 1)])
def test_reading_starts_no_process_and_imports_no_library_for_nothing(
    tmp_path: Path, syntax: UID, decoders: int
) -> None:
    """SimpleITK takes 90 MB; the process that decodes JPEG 2000 does without, too."""
    for number, plane in enumerate(HU):
        content = a_slice(plane, number)
        if syntax == RLELossless:
            content.ensure_file_meta()
            content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            content.compress(syntax)
        if syntax == JPEG2000Lossless:
            content.PixelData = encapsulate([jpeg_2000(plane.astype(int) + 1024, 16, False)])
        written(tmp_path / f"{number}.dcm", content, syntax)
    program = (
        "import psutil, sys; from flarecps import read_volume; print(int(read_volume(sys.argv[1]).array.sum()));"
        "print(*sorted({'SimpleITK', 'torch'} & set(sys.modules)));"
        "kids = psutil.Process().children(); print(len(kids));"
        "print('SimpleITK' in ''.join(map.path for kid in kids for map in kid.memory_maps()) if kids else False)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(int(HU.astype(int).sum())), "", str(decoders), "False"]


def test_inverted_display_changes_no_value_and_is_told(tmp_path: Path) -> None:
    (remark,) = read_as(series(tmp_path / "all", PhotometricInterpretation="MONOCHROME1"))
    assert "MONOCHROME1" in remark
    written(
        series(tmp_path / "one") / "slice002.dcm",
        a_slice(HU[2], 2, others={"PhotometricInterpretation": "MONOCHROME1"}),
    )
    assert "slice000.dcm and slice002.dcm contradict each other: interpretation MONOCHROME2" in refusal(
        tmp_path / "one"
    )


# Order and places


def test_names_and_numbers_do_not_matter(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(len(HU))
    for name, number in enumerate(order):
        written(
            tmp_path / f"{name:03d}",
            a_slice(HU[number], number, others={"InstanceNumber": name, "SliceLocation": name}),
        )
    assert read_as(tmp_path) == ()


def test_a_slice_sent_twice_counts_once_and_is_told(tmp_path: Path) -> None:
    written(series(tmp_path) / "again.dcm", a_slice(HU[2], 2))
    (remark,) = read_as(tmp_path)
    assert "1 slice there twice" in remark
    assert "slice002.dcm as again.dcm" in remark


def test_a_whole_series_sent_twice_counts_once(tmp_path: Path) -> None:
    series(tmp_path)
    series(tmp_path, names="copy{}.dcm")
    (remark,) = read_as(tmp_path)
    assert "5 slices there twice" in remark


@pytest.mark.parametrize("moved_mm", [0.0, 0.02])
def test_two_slices_at_one_place_with_other_voxels_are_refused_by_name(tmp_path: Path, moved_mm: float) -> None:
    other = HU[2].copy()
    other[0, 0] += 1
    position = [*CORNER_MM, 2 * STEP_MM + moved_mm]
    content = a_slice(other, 2, others={"ImagePositionPatient": position, "ContentTime": "101010"})
    written(series(tmp_path) / "other.dcm", content)
    said = refusal(tmp_path)
    assert "other.dcm" in said
    assert "slice002.dcm" in said
    place = "(-40, -30, 5) mm" if not moved_mm else "(-40, -30, 5) mm and (-40, -30, 5.02) mm"
    times = "None against 101010" if moved_mm else "101010 against None"  # at one place the names decide who is first
    assert f"lie at one place, {place}, with other voxels (ContentTime {times})" in said


@pytest.mark.parametrize(
    ("attribute", "first", "second"),
    [
        ("AcquisitionNumber", 1, 2),
        ("EchoTime", "2.3", "4.6"),
        ("DiffusionBValue", 0.0, 800.0),
        ("TemporalPositionIdentifier", 1, 2),
        ("ImageType", ["ORIGINAL", "PRIMARY", "IN_PHASE"], ["ORIGINAL", "PRIMARY", "OUT_PHASE"]),
        ("ImageComments", "arterial", "venous"),
    ],
)
def test_stacks_at_the_same_places_are_named_by_what_tells_them_apart(
    tmp_path: Path, attribute: str, first: Any, second: Any
) -> None:
    series(tmp_path, names="a{}.dcm", **{attribute: first})
    series(tmp_path, HU + 60, names="b{}.dcm", **{attribute: second})
    said = refusal(tmp_path)
    assert "2 stacks of slices in one series" in said
    assert said.count(f"{attribute} ") == 2
    assert said.count("(5 slices)") == 2
    assert "a0.dcm and b0.dcm lie at one place" in said


def test_two_attributes_may_tell_stacks_apart(tmp_path: Path) -> None:
    for number, (echo, phase) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        names = f"{number}_{{}}.dcm"
        series(tmp_path, HU + number, names=names, EchoNumbers=echo, AcquisitionNumber=phase)
    assert "AcquisitionNumber 1, EchoNumbers 2 (5 slices)" in refusal(tmp_path)


def test_missing_slices_are_told_and_where(tmp_path: Path) -> None:
    (series(tmp_path / "gap", hounsfield(12)) / "slice007.dcm").unlink()
    volume = read_volume(tmp_path / "gap")
    (remark,) = volume.warnings
    assert "uneven (2.5 to 5 mm, the widest between slice006.dcm and slice008.dcm; read as 2.75 mm" in remark
    (series(tmp_path / "end", hounsfield(12)) / "slice011.dcm").unlink()
    assert read_volume(tmp_path / "end").warnings == ()  # leaves no trace


@pytest.mark.parametrize("lost", range(1, 11))
def test_a_slice_missing_anywhere_between_is_told(tmp_path: Path, lost: int) -> None:
    (series(tmp_path, hounsfield(12)) / f"slice{lost:03d}.dcm").unlink()
    assert any("slices may be missing" in remark for remark in read_volume(tmp_path).warnings)


@pytest.mark.parametrize("first_above", [1, 6, 11])
def test_a_gap_that_makes_the_mean_distance_wrong_is_refused(tmp_path: Path, first_above: int) -> None:
    for number, plane in enumerate(hounsfield(12)):
        place = [*CORNER_MM, float(number + 200 * (number >= first_above))]
        written(tmp_path / f"{number}.dcm", a_slice(plane, number, others={"ImagePositionPatient": place}))
    said = refusal(tmp_path)
    assert f"{first_above - 1}.dcm and {first_above}.dcm lie 201 mm apart, slices usually 1 mm" in said


STACKS = [("AcquisitionNumber", 1, 2), ("EchoNumbers", 1, 2), ("DiffusionBValue", 0.0, 800.0), ("KVP", 80.0, 140.0)]


@pytest.mark.parametrize(("attribute", "first", "second"), STACKS)
@pytest.mark.parametrize("apart_mm", [1.1, 1.25])
def test_stacks_that_interleave_are_told_apart(
    tmp_path: Path, attribute: str, first: Any, second: Any, apart_mm: float
) -> None:
    for number, plane in enumerate(HU):
        for shift, value in ((0.0, first), (apart_mm, second)):
            others = {"ImagePositionPatient": [*CORNER_MM, STEP_MM * number + shift], attribute: value}
            others["SliceThickness"] = STEP_MM
            written(tmp_path / f"{number}_{value}.dcm", a_slice(plane, number, others=others))
    said = refusal(tmp_path)
    assert f"2 stacks of slices in one series: {attribute} {first} (5 slices), {attribute} {second} (5" in said
    assert f"they interleave, as at 0_{first}.dcm and 0_{second}.dcm" in said


def test_two_passes_that_make_one_grid_are_one_stack(tmp_path: Path) -> None:
    for number, plane in enumerate(HU):
        others = {
            "AcquisitionNumber": 1 + number % 2,
            "AcquisitionTime": f"1010{number % 2:02d}",
            "SliceThickness": 2.5,
        }
        written(tmp_path / f"{number}.dcm", a_slice(plane, number, others=others))
    assert read_as(tmp_path) == ()


def test_acquisitions_one_after_another_are_one_stack(tmp_path: Path) -> None:
    for number, plane in enumerate(HU):
        written(tmp_path / f"{number}.dcm", a_slice(plane, number, others={"AcquisitionNumber": number // 2}))
    assert read_as(tmp_path) == ()


def test_slices_of_two_frames_of_reference_are_refused(tmp_path: Path) -> None:
    for number, plane in enumerate(HU):
        frame = {"FrameOfReferenceUID": f"1.2.{1 + number // 3}"}
        written(tmp_path / f"{number}.dcm", a_slice(plane, number, others=frame))
    said = refusal(tmp_path)
    assert "FrameOfReferenceUID 1.2.1 (3 slices), FrameOfReferenceUID 1.2.2 (2 slices); 2.dcm and 3.dcm" in said


def test_positions_rounded_to_a_tenth_are_even(tmp_path: Path) -> None:
    for number, plane in enumerate(hounsfield(30)):
        content = a_slice(plane, number, others={"ImagePositionPatient": [-40.0, -30.0, round(1.2496 * number, 1)]})
        written(tmp_path / f"{number}.dcm", content)
    assert read_volume(tmp_path).warnings == ()


@pytest.mark.parametrize("reverse", [1, -1])
def test_an_oblique_stack_with_a_gantry_tilt_is_told(tmp_path: Path, reverse: int) -> None:
    cosine, sine = np.cos(0.25), np.sin(0.25)
    for number, plane in enumerate(HU):
        place = {
            "ImagePositionPatient": [-40.0, -30.0, reverse * 3.0 * number],
            "ImageOrientationPatient": ["1", "0", "0", "0", f"{cosine:.6f}", f"{sine:.6f}"],
        }
        written(tmp_path / f"{number}.dcm", a_slice(plane, number, others=place))
    volume = read_volume(tmp_path)
    (remark,) = volume.warnings
    assert f"sideways by {12 * sine:.3g} mm (gantry tilt)" in remark
    assert volume.source.stored.spacing_mm[0] == pytest.approx(3 * cosine, abs=1e-5)
    np.testing.assert_array_equal(stored_order(volume), HU[::reverse])
    matrix = np.reshape(volume.source.stored.direction, (3, 3))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)


def test_one_slice_beside_the_others_is_named(tmp_path: Path) -> None:
    written(series(tmp_path) / "slice003.dcm", a_slice(HU[3], 3, others={"ImagePositionPatient": [-38.5, -30, 7.5]}))
    assert read_volume(tmp_path).warnings == (
        "slice003.dcm lies 1.5 mm beside the line of the others: read as a straight stack",
    )
    written(tmp_path / "slice003.dcm", a_slice(HU[3], 3, others={"ImagePositionPatient": [-400, -30, 7.5]}))
    assert "slice003.dcm lies 360 mm beside the line of the others; expected one stack" in refusal(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_every_voxel_lies_where_the_standard_puts_it(tmp_path: Path, seed: int) -> None:
    """Any rigid grid, any order of files or frames: DICOM PS3.3, C.7.6.2.1.1, worked out voxel by voxel."""
    random = np.random.default_rng(seed)
    turned = np.linalg.qr(random.normal(size=(3, 3)))[0]
    along_row, along_column = turned[:, 0], turned[:, 1]
    corner, step = random.normal(size=3) * 100, random.uniform(0.5, 6) * np.cross(along_row, along_column)
    between_rows, between_columns = np.round(random.uniform(0.3, 2, 2), 6)
    expected = {}
    for name, number in enumerate(random.permutation(len(HU))):
        corner_here = corner + number * step
        place = {
            "ImagePositionPatient": [f"{edge:.9f}" for edge in corner_here],
            "ImageOrientationPatient": [f"{cosine:.12f}" for cosine in (*along_row, *along_column)],
            "PixelSpacing": [f"{between_rows:.6f}", f"{between_columns:.6f}"],
        }
        written(tmp_path / f"{name}.dcm", a_slice(HU[number], number, others=place))
        for row, column in np.ndindex(HU.shape[1:]):
            at = corner_here + column * between_columns * along_row + row * between_rows * along_column
            expected[tuple(np.round(at, 3))] = HU[number, row, column]
    volume = read_volume(tmp_path)
    assert volume.warnings == ()
    index = np.array(list(np.ndindex(volume.space.shape)))
    nearest = np.array(list(expected))
    for at, value in zip(volume.space.position_mm(index), volume.array.ravel(), strict=True):
        distance = np.abs(nearest - at).max(axis=1)
        assert distance.min() < 2e-3
        assert expected[tuple(nearest[distance.argmin()])] == value


# Slices that do not belong together


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
            "orientation (1, 0, 0, 0, 1, 0) against (1, 0, 0, 0, 0, -1)",
        ),
        ({"RescaleIntercept": None}, "stated rescaling RescaleSlope and RescaleIntercept against RescaleSlope;"),
        ({"PixelSpacing": [0.9, 0.7]}, "pixel spacing 0.9×0.8 mm against 0.9×0.7 mm"),
        (
            {"RescaleSlope": None, "RescaleIntercept": None},
            "RescaleSlope and RescaleIntercept against none",
        ),
    ],
)
def test_a_slice_of_another_kind_is_named(tmp_path: Path, others: dict[str, Any], words: str) -> None:
    written(series(tmp_path) / "slice003.dcm", a_slice(HU[3], 3, others=others))
    said = refusal(tmp_path)
    assert "slice000.dcm and slice003.dcm contradict each other" in said
    assert words in said
    assert "move slice003.dcm away" in said


def test_the_odd_one_is_named_though_it_comes_first(tmp_path: Path) -> None:
    written(series(tmp_path) / "a.dcm", a_slice(np.zeros((9, 9)), 9))
    said = refusal(tmp_path)
    assert "size 9×9 against 7×6" in said
    assert "move a.dcm away" in said


def test_a_localiser_is_passed_over_and_told(tmp_path: Path) -> None:
    scout = a_slice(np.zeros((20, 9)), 9, others={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    written(series(tmp_path) / "a_scout.dcm", scout)
    assert read_as(tmp_path) == ("1 localiser passed over (a_scout.dcm)",)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PixelSpacing", [0.0, 0.8], "expected two positive numbers"),
        ("PixelSpacing", [-0.9, 0.8], "expected two positive numbers"),
        ("PixelSpacing", [0.9], "expected two positive numbers"),
        ("PixelSpacing", None, "states no PixelSpacing"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 1, 0], "unit vectors at right angles"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "unit vectors at right angles"),
        ("ImageOrientationPatient", None, "states no ImageOrientationPatient"),
        ("ImagePositionPatient", None, "states no ImagePositionPatient"),
        ("ImagePositionPatient", [0, 0], "three numbers"),
        ("RescaleSlope", "0", "RescaleSlope is 0"),
        ("Rows", None, "states no Rows"),
    ],
)
def test_geometry_that_is_missing_or_impossible_is_refused(
    tmp_path: Path, keyword: str, value: Any, words: str
) -> None:
    content = a_slice(HU[3], 3)
    if value is None:
        delattr(content, keyword)
    else:
        setattr(content, keyword, value)
    written(series(tmp_path) / "slice003.dcm", content)
    said = refusal(tmp_path)
    assert "slice003.dcm: " in said
    assert words in said


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope"])
@pytest.mark.parametrize("text", [b"abc ", b"nan ", b"inf ", b"1,0 ", b"1e999 "])
def test_text_that_is_no_number_is_refused_and_shown(tmp_path: Path, keyword: str, text: bytes) -> None:
    content = a_slice(HU[3], 3)
    value = text if keyword == "RescaleSlope" else b"1\\0\\0\\0\\1\\" + text
    content[keyword] = RawDataElement(Tag(keyword), "DS", len(value), value, 0, False, True)
    written(series(tmp_path) / "slice003.dcm", content)
    said = refusal(tmp_path)
    assert f"slice003.dcm: {keyword} is " in said
    assert text.decode().strip() in said


def test_what_a_header_says_stays_in_one_line(tmp_path: Path) -> None:
    content = a_slice(HU[3], 3)
    content["RescaleSlope"] = RawDataElement(Tag("RescaleSlope"), "DS", 6, b"o\nn\x02e ", 0, False, True)
    written(series(tmp_path) / "slice003.dcm", content)
    assert "RescaleSlope is o n e; expected a number" in refusal(tmp_path)


def test_colour_is_refused(tmp_path: Path) -> None:
    content = image((4, 4), bytes(48), False, 8)
    content.SamplesPerPixel, content.PhotometricInterpretation, content.PlanarConfiguration = 3, "RGB", 0
    written(series(tmp_path) / "report.dcm", content)
    assert "report.dcm: a picture in colour (RGB); expected one number per voxel" in refusal(tmp_path)


# Files


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda syntax: syntax.name)
def test_no_preamble_and_no_suffix(tmp_path: Path, syntax: Any) -> None:
    for number, plane in enumerate(HU):
        written(tmp_path / "series" / f"IM{number}", a_slice(plane, number), syntax, bare=True)
    (tmp_path / "series" / "README").write_text("The scan of nobody.")
    (tmp_path / "series" / "thumbs.db").write_bytes(bytes(range(256)))
    assert read_as(tmp_path / "series") == ()
    assert find_scans(tmp_path) == [tmp_path / "series"]


def test_objects_without_pixels_are_passed_over(tmp_path: Path) -> None:
    from pydicom.uid import BasicTextSRStorage, GrayscaleSoftcopyPresentationStateStorage, SegmentationStorage

    ct = series(tmp_path / "patient" / "ct")
    alone = no_image(tmp_path / "patient" / "structures" / "rs.dcm").parent
    for folder in (ct, alone):
        no_image(folder / "sr.dcm", BasicTextSRStorage, "SR")
        no_image(folder / "pr.dcm", GrayscaleSoftcopyPresentationStateStorage, "PR")
    drawn = image((7, 6), bytes(84), False)
    drawn.SOPClassUID, drawn.Modality, drawn.SeriesInstanceUID = SegmentationStorage, "SEG", "1.2.3.7"
    written(ct / "seg.dcm", drawn)
    assert read_as(ct) == ()
    assert find_scans(tmp_path / "patient") == [ct]
    assert "no DICOM series in this folder (3 DICOM files without images)" in refusal(alone)
    assert "no DICOM series in this file" in refusal(alone / "rs.dcm")


@pytest.mark.parametrize("kept", [0, 100, 140, 300, 500, 0.999])
@pytest.mark.parametrize("name", ["slice002.dcm", "slice002"])
def test_what_is_truncated_is_reported_and_not_passed_over(tmp_path: Path, kept: float, name: str) -> None:
    damaged = series(tmp_path, hounsfield(5, 30, 30)) / "slice002.dcm"
    whole = damaged.read_bytes()
    damaged.unlink()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    if kept in (0, 100) and name == "slice002":  # nothing left that says what it was, but its place is empty
        assert "missing" in read_volume(tmp_path).warnings[0]
        return
    with pytest.raises(ScanError, match=name) as caught:
        read_volume(tmp_path)
    assert "\n" not in str(caught.value)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(tmp_path / name, alone / name)
    assert scans_in(alone) == [alone]


def test_a_link_that_leads_nowhere_is_reported(tmp_path: Path) -> None:
    (series(tmp_path / "scan") / "slice004.dcm").unlink()
    (tmp_path / "scan" / "slice004.dcm").symlink_to(tmp_path / "gone.dcm")
    assert "1 link in it can't be followed, first slice004.dcm" in refusal(tmp_path / "scan")
    assert find_scans(tmp_path) == [tmp_path / "scan"]


def test_slices_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for file in series(tmp_path / "archive").iterdir():
        (tmp_path / "links" / file.stem).symlink_to(file)
    assert read_as(tmp_path / "links") == ()


def test_one_slice_is_no_scan(tmp_path: Path) -> None:
    series(tmp_path / "one", HU[:1])
    with pytest.raises(ScanError, match=r"one-slice scan .* one along the slice axis"):
        read_volume(tmp_path / "one")
    with pytest.raises(ScanError, match="one slice of a DICOM series: name the folder"):
        read_volume(tmp_path / "one" / "slice000.dcm")


def test_what_is_no_scan_beside_a_series_is_passed_over(tmp_path: Path) -> None:
    written(series(tmp_path) / "other.dcm", a_slice(HU[0], 0, others={"SeriesInstanceUID": "1.2.9"}))
    assert read_as(tmp_path) == ("1 series of a single slice passed over (other.dcm)",)
    page = image((4, 4), bytes(3 * 16), False, 8)
    page.SamplesPerPixel, page.PhotometricInterpretation, page.PlanarConfiguration = 3, "RGB", 0
    page.SeriesInstanceUID = "1.2.10"
    written(tmp_path / "dose.dcm", page)
    assert "1 picture without a place passed over (dose.dcm)" in read_as(tmp_path)


def two_series(folder: Path, **numbers: Any) -> Path:
    """Series 3 with two echoes and series 7 with one, in one folder under shuffled names."""
    series(folder, HU, "b{}.dcm", SeriesNumber=3, EchoNumbers=1)
    series(folder, HU + 1, "c{}", SeriesNumber=3, EchoNumbers=2)
    return series(folder, HU + 2, "a{}.dcm", SeriesInstanceUID="1.2.9", SeriesNumber=7)


def test_every_stack_of_a_folder_is_a_scan(tmp_path: Path) -> None:
    folder = two_series(tmp_path / "in" / "patient_0000")
    names = ["series3_echo1", "series3_echo2", "series7"]
    for number, name in enumerate(names):
        assert read_as(folder / f"stack:{name}", HU + number) == ()
    said = refusal(folder)
    assert (
        "2 DICOM series in one folder: SeriesNumber 3 (10 files as b0.dcm), SeriesNumber 7 (5 files as a0.dcm)" in said
    )
    assert "EchoNumbers 1 (5 slices), EchoNumbers 2 (5 slices); b0.dcm and c0 lie at one place" in said
    assert f"name the one to read ({folder}/stack:series3_echo1, " in said
    assert "no such stack" in refusal(folder / "stack:echo9")
    assert find_scans(tmp_path / "in") == [folder / f"stack:{name}" for name in names]
    assert [case.name for case in find_cases(tmp_path / "in")] == [f"patient_{name}" for name in names]
    assert [case.name for case in find_cases(folder)] == [f"patient_{name}" for name in names]
    assert [case.name for case in find_cases(folder / "stack:series7")] == ["patient_series7"]
    (folder / "c0").write_bytes((folder / "c0").read_bytes()[:-9])  # the next reading sees it
    with pytest.raises(ScanError, match="c0: "):
        read_volume(folder / "stack:series3_echo2")


def test_a_series_that_is_no_stack_leaves_the_others(tmp_path: Path) -> None:
    series(tmp_path, SeriesNumber=3)
    bad = series(tmp_path, names="bad{}", SeriesNumber=4, SeriesInstanceUID="1.2.9")
    for number in range(5):
        content = dcmread(bad / f"bad{number}")
        content.PixelSpacing = [0, 0]
        content.save_as(bad / f"bad{number}")
    assert read_as(tmp_path / "stack:series3") == ()
    with pytest.raises(ScanError, match="bad0: PixelSpacing"):
        read_volume(tmp_path / "stack:series4")


# Enhanced multi-frame files


ORDERS = {"upward": range(5), "downward": range(4, -1, -1), "interleaved": (0, 2, 4, 1, 3)}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_frames_are_ordered_by_their_positions(tmp_path: Path, order: Any) -> None:
    file = enhanced(tmp_path / "scan" / "ct.dcm", HU[list(order)], list(order))
    assert read_as(file) == ()
    assert read_as(file.parent) == ()
    assert find_scans(tmp_path) == [file.parent]
    assert scan_name(file) == "ct"


def test_multi_frame_files_are_scans_of_their_own(tmp_path: Path) -> None:
    for name in ("b_0000.dcm", "a_0000.DCM", "c"):
        content = dcmread(enhanced(tmp_path / "in" / name, HU, range(5)))
        content.SeriesInstanceUID = f"1.2.{ord(name[0])}"
        content.save_as(tmp_path / "in" / name)
    (tmp_path / "in" / "d.dcm").write_bytes((tmp_path / "in" / "c").read_bytes()[:300])
    enhanced(tmp_path / "in" / "alone" / "x.dcm", HU, range(5))
    assert [case.name for case in find_cases(tmp_path / "in")] == ["a", "alone", "b", "c", "d"]
    with pytest.raises(ScanError, match=r"d\.dcm: .*truncated"):
        read_volume(tmp_path / "in" / "d.dcm")
    assert [case.name for case in find_cases(tmp_path / "in" / "alone")] == ["x"]
    assert [case.name for case in find_cases(tmp_path / "in" / "b_0000.dcm")] == ["b"]


def test_parts_of_one_series_are_one_scan(tmp_path: Path) -> None:
    enhanced(tmp_path / "scan" / "1.dcm", HU[:3], range(3))
    enhanced(tmp_path / "scan" / "2.dcm", HU[3:], range(3, 5))
    assert find_scans(tmp_path) == [tmp_path / "scan"]
    assert read_as(tmp_path / "scan") == ()


def test_a_pipe_among_slices_is_reported(tmp_path: Path) -> None:
    os.mkfifo(series(tmp_path / "scan") / "pipe.dcm")
    os.mkfifo(tmp_path / "scan" / "socket")  # nothing says that it were a slice
    assert find_scans(tmp_path) == [tmp_path / "scan"]
    assert "pipe.dcm: not a regular file" in refusal(tmp_path / "scan")


def test_each_frame_has_its_own_slope(tmp_path: Path) -> None:
    rescale = [(0.25 * (number + 1), -1024.0 + number) for number in range(5)]
    frames = np.stack(
        [np.rint((plane - inter) / slope) * slope + inter for plane, (slope, inter) in zip(HU, rescale, strict=True)]
    )
    assert read_as(enhanced(tmp_path / "ct.dcm", frames, range(4, -1, -1), rescale), frames[::-1]) == ()


def test_phases_in_one_file_are_named(tmp_path: Path) -> None:
    phases = [{"TemporalPositionIndex": 1 + frame % 2, "StackID": "1"} for frame in range(10)]
    planes, places = np.repeat(HU, 2, axis=0), np.repeat(range(5), 2).tolist()
    planes[1::2] += 50
    said = refusal(enhanced(tmp_path / "ct.dcm", planes, places, FrameContentSequence=phases))
    assert "TemporalPositionIndex 1 (5 slices), TemporalPositionIndex 2 (5 slices)" in said
    assert "ct.dcm frame 1 and ct.dcm frame 2 lie at one place" in said
    assert read_as(tmp_path / "ct.dcm/stack:phase2", planes[1::2]) == ()
    assert [case.name for case in find_cases(tmp_path / "ct.dcm")] == ["ct_phase1", "ct_phase2"]


def test_a_missing_frame_is_told(tmp_path: Path) -> None:
    volume = read_volume(enhanced(tmp_path / "ct.dcm", hounsfield(11), [k for k in range(12) if k != 4]))
    assert "the widest between ct.dcm frame 4 and ct.dcm frame 5" in volume.warnings[0]


def test_frames_without_places_are_refused(tmp_path: Path) -> None:
    content = image((7, 6), HU.astype(np.uint16).tobytes(), False)
    content.NumberOfFrames, content.PixelSpacing = 5, [1, 1]
    content.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    assert "frame 1: states no ImagePositionPatient" in refusal(written(tmp_path / "cine.dcm", content))


def test_frames_that_are_only_announced_take_no_time(tmp_path: Path) -> None:
    content = image((7, 6), HU.astype(np.uint16).tobytes(), False)
    content.NumberOfFrames, content.PixelSpacing = 999_999_999, [1, 1]
    content.ImageOrientationPatient, content.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    said = "NumberOfFrames is 999999999, and the places of 1 are stated"
    assert said in refusal(written(tmp_path / "cine.dcm", content))


PLANES = ((AXIAL, 2), ((1, 0, 0, 0, 0, -1), 1), ((0, 1, 0, 0, 0, -1), 0))


def crossing(folder: Path, each: int = 3, **others: Any) -> list[str]:
    """Slices in three planes at right angles, as a localiser has them; their names."""
    names = []
    for orientation, axis in PLANES:
        for number in range(each):
            place = [*CORNER_MM, 0.0]
            place[axis] += 20.0 * number
            name = f"plane{len(names)}.dcm"
            stated = {"ImagePositionPatient": place, "ImageOrientationPatient": list(orientation)} | others
            written(folder / name, a_slice(HU[number], 50 + len(names), others=stated))
            names.append(name)
    return names


@pytest.mark.parametrize("each", [1, 3])
def test_a_localiser_that_is_not_called_one_is_passed_over(tmp_path: Path, each: int) -> None:
    crossing(series(tmp_path / "scan"), each, SeriesInstanceUID="1.2.9", SeriesNumber=1)
    assert [case.name for case in find_cases(tmp_path)] == ["scan"]
    (remark,) = read_as(tmp_path / "scan")
    assert remark.startswith(f"a localiser of {3 * each} slices in three planes passed over (plane0.dcm, ")


def test_slices_in_three_planes_of_the_scans_own_series_are_named(tmp_path: Path) -> None:
    """All that does not belong is in one message: moved away, the scan reads."""
    names = crossing(series(tmp_path / "scan", hounsfield(9)), each=1)[1:]
    (tmp_path / "scan" / "plane0.dcm").unlink()
    with pytest.raises(ScanError, match=r"expected one stack of slices: move plane1\.dcm, plane2\.dcm away"):
        read_volume(tmp_path / "scan")
    for name in names:
        (tmp_path / "scan" / name).unlink()
    read_as(
        tmp_path / "scan", hounsfield(9), Space(hounsfield(9).shape, GRID.spacing_mm, GRID.direction, GRID.origin_mm)
    )


def test_two_scans_that_numbers_alone_tell_apart_are_to_be_put_apart(tmp_path: Path) -> None:
    for number, hu in enumerate((HU, HU + 9)):
        for place, values in enumerate(hu):
            stated = {"InstanceNumber": len(HU) * number + place + 1}
            written(tmp_path / f"{number}{place}.dcm", a_slice(values, place, others=stated))
    with pytest.raises(ScanError, match=r"as 4 more\); .*: put the files of each scan into a folder of its own \(Inst"):
        read_volume(tmp_path)
