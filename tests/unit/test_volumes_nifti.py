"""NIfTI: voxel types, headers carried over as they are, odd headers read with a warning, damaged files refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from flarecps.errors import ScanError
from flarecps.volumes.io import read_labels, read_space, read_volume, write_labels, write_volume
from flarecps.volumes.space import Space

SHAPE = (4, 5, 6)  # (column, row, slice), as nibabel counts
ORIENTATION_FIELDS = (
    "pixdim",
    "sform_code",
    "qform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


def voxels(kind: type = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 100, shape).astype(kind)


def oblique_affine(shear: float = 0.0) -> np.ndarray:
    turn = nibabel.eulerangles.euler2mat(0.2, -0.15, 0.1)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.9, -0.8, 2.5]) @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]])
    affine[:3, 3] = [120.5, 80.25, -300.125]
    return affine


def save(
    path: Path,
    array: np.ndarray,
    sform: tuple | None = None,
    qform: tuple | None = None,
    kind: type = nibabel.Nifti1Image,
) -> Path:
    """A NIfTI file whose sform and qform are each (matrix, code) or absent."""
    image = kind(array, None)
    image.header.set_sform(*(sform or (None, 0)))
    image.header.set_qform(*(qform or (None, 0)))
    if sform and not qform:
        image.header["pixdim"][1:4] = np.linalg.norm(sform[0][:3, :3], axis=0)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_integers_stay_what_they_are(tmp_path: Path, kind: type) -> None:
    scan = read_volume(save(tmp_path / "scan.nii.gz", voxels(kind), (np.eye(4), 1)))
    assert scan.array.dtype == kind
    np.testing.assert_array_equal(scan.array[0], voxels(kind).T)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_come_as_float32(tmp_path: Path, kind: type) -> None:
    scan = read_volume(save(tmp_path / "scan.nii", voxels(kind) + 0.25, (np.eye(4), 1)))
    assert scan.array.dtype == np.float32
    np.testing.assert_array_equal(scan.array[0], (voxels(kind) + 0.25).T)


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "expected"),
    [
        (np.int16, 1, -1024, np.int16),
        (np.uint16, 1, -1024, np.int16),
        (np.int16, 1000, 0, np.int32),
        (np.int16, 0.5, 10, np.float32),
        (np.uint8, 1, 0, np.uint8),
        (np.float32, 2, -1, np.float32),
    ],
)
def test_scaling_is_applied_and_whole_numbers_stay_whole(
    tmp_path: Path, stored: type, slope: float, inter: float, expected: type
) -> None:
    path = save(tmp_path / "scan.nii", voxels(stored), (np.eye(4), 1))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, inter], np.float32).tobytes()  # scl_slope and scl_inter of NIfTI-1
    path.write_bytes(raw)
    scan = read_volume(path)
    assert scan.array.dtype == expected
    np.testing.assert_allclose(scan.array[0], np.asarray(nibabel.load(path).get_fdata()).T)
    np.testing.assert_allclose(scan.array[0], voxels(stored).T * float(slope) + inter)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("sform", "qform"),
    [
        ((oblique_affine(), 1), None),
        (None, (oblique_affine(), 1)),
        ((oblique_affine(), 2), (oblique_affine(), 1)),
        ((oblique_affine(), 4), (np.diag([-0.9, -0.8, 2.5, 1]), 3)),
        ((oblique_affine(shear=0.3), 2), None),
        (None, None),
    ],
)
def test_labels_carry_the_sources_orientation_as_it_is(
    tmp_path: Path, sform: tuple | None, qform: tuple | None, suffix: str
) -> None:
    source = save(tmp_path / "scan.nii.gz", voxels(), sform, qform)
    scan = read_volume(source)
    write_labels(tmp_path / f"labels{suffix}", scan.array[0].astype(np.uint8), scan.source)
    before, after = nibabel.load(source), nibabel.load(tmp_path / f"labels{suffix}")
    for field in ORIENTATION_FIELDS:
        np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
    assert after.get_data_dtype() == np.uint8
    assert (after.dataobj.slope, after.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(after.dataobj), voxels())
    assert read_labels(tmp_path / f"labels{suffix}").space == scan.space


def test_a_nifti_2_and_a_big_endian_source_are_carried_over(tmp_path: Path) -> None:
    second = save(tmp_path / "two.nii.gz", voxels(), (oblique_affine(), 1), kind=nibabel.Nifti2Image)
    swapped = tmp_path / "swapped.nii"
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels(), oblique_affine(), header), swapped)
    for path in (second, swapped):
        scan = read_volume(path)
        assert scan.array.dtype == np.int16
        assert scan.array.dtype.isnative
        write_labels(tmp_path / "labels.nii.gz", scan.array[0].astype(np.uint8), scan.source)
        after = nibabel.load(tmp_path / "labels.nii.gz")
        assert type(after) is type(nibabel.load(path))
        np.testing.assert_array_equal(np.asarray(after.dataobj), voxels())
        np.testing.assert_array_equal(after.affine, nibabel.load(path).affine)
    assert (
        sitk.ReadImage(str(tmp_path / "labels.nii.gz")).GetSize() == SHAPE
    )  # the big-endian one; ITK knows no NIfTI-2


def test_header_extensions_of_the_source_stay_behind(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), oblique_affine())
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"NAME^OF PATIENT"))
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(scan.array[0].sum(), voxels().sum())
    write_labels(tmp_path / "labels.nii", scan.array[0].astype(np.uint8), scan.source)
    assert b"PATIENT" not in (tmp_path / "labels.nii").read_bytes()


def test_one_frame_of_four_dimensions_is_a_scan_and_its_labels_have_three(tmp_path: Path) -> None:
    source = save(tmp_path / "scan.nii.gz", voxels(shape=(*SHAPE, 1)), (oblique_affine(), 1))
    scan = read_volume(source)
    assert scan.array.shape == (1, 6, 5, 4)
    write_labels(tmp_path / "labels.nii.gz", scan.array[0].astype(np.uint8), scan.source)
    assert nibabel.load(tmp_path / "labels.nii.gz").shape == SHAPE


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", voxels(shape=(*SHAPE, 3)), (np.eye(4), 1))
    with pytest.raises(ScanError, match="4×5×6×3 voxels, several frames"):
        read_volume(path)
    with pytest.raises(ScanError, match="several frames"):
        read_space(path)


def test_a_sheared_sform_is_read_by_the_nearest_frame_with_a_warning(tmp_path: Path) -> None:
    straight = read_volume(save(tmp_path / "straight.nii", voxels(), (oblique_affine(), 1)))
    sheared = read_volume(save(tmp_path / "sheared.nii", voxels(), (oblique_affine(shear=0.05), 1)))
    assert straight.warnings == ()
    assert len(sheared.warnings) == 1
    assert "sheared" in sheared.warnings[0]
    frame = np.asarray(sheared.space.direction).reshape(3, 3)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(sheared.space.direction, straight.space.direction, atol=0.05)
    np.testing.assert_allclose(sheared.source.stored.origin_mm, straight.source.stored.origin_mm)


def test_no_orientation_is_reported_and_read_as_itk_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    image.header["pixdim"][1:4] = [0.9, 0.8, 2.5]
    nibabel.save(image, path)
    scan = read_volume(path)
    itk = sitk.ReadImage(str(path))
    assert "no orientation" in scan.warnings[0]
    np.testing.assert_allclose(scan.source.stored.direction, itk.GetDirection())
    np.testing.assert_allclose(scan.source.stored.spacing_mm[::-1], itk.GetSpacing())
    np.testing.assert_allclose(scan.source.stored.origin_mm, itk.GetOrigin())


def test_contradicting_headers_are_reported(tmp_path: Path) -> None:
    shifted = oblique_affine()
    shifted[0, 3] += 7
    apart = read_volume(save(tmp_path / "apart.nii", voxels(), (oblique_affine(), 1), (shifted, 1)))
    assert any("7 mm apart" in warning for warning in apart.warnings)
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(oblique_affine(), 1)
    image.header["pixdim"][1:4] = [1, 1, 1]
    nibabel.save(image, tmp_path / "spacing.nii")
    spacing = read_volume(tmp_path / "spacing.nii")
    assert any("differ by 1.5 mm in spacing" in warning for warning in spacing.warnings)
    np.testing.assert_allclose(spacing.source.stored.spacing_mm, (2.5, 0.8, 0.9), rtol=1e-6)


def test_metres_are_converted_as_itk_does(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    assert "converted" in scan.warnings[0]
    np.testing.assert_allclose(scan.space.spacing_mm, (3, 2, 1), rtol=1e-6)
    np.testing.assert_allclose(scan.space.spacing_mm[::-1], sitk.ReadImage(str(tmp_path / "scan.nii")).GetSpacing())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("lost", [1, 4, 9, 60, 0.5, 0.99, 1.0])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, suffix: str, lost: float) -> None:
    whole = save(tmp_path / f"scan{suffix}", voxels(), (np.eye(4), 1)).read_bytes()
    kept = len(whole) - (lost if isinstance(lost, int) else round(lost * len(whole)))
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole[:kept])
    with pytest.raises(ScanError, match="copy or download it again") as caught:
        read_volume(cut)
    assert str(caught.value).startswith(f"{cut}: ")
    assert "\n" not in str(caught.value)


def test_a_changed_byte_is_noticed_by_the_check_sum(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", voxels(), (np.eye(4), 1))
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 1  # within gzip's check sum
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="CRC"):
        read_volume(path)


def test_a_foreign_file_under_a_nifti_name_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.nii.gz", gzip.compress(b"x" * 1000)), ("b.nii", b"hello" * 200), ("c.nii.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScanError, match="not a NIfTI file"):
            read_volume(tmp_path / name)


def test_no_header_whatever_ends_in_another_error_than_scanerror(tmp_path: Path) -> None:
    """300 files with random damage to the header: each is either read or refused in one line."""
    whole = save(tmp_path / "scan.nii", voxels(), (oblique_affine(), 1), (oblique_affine(), 1)).read_bytes()
    generator = np.random.default_rng(11)
    complaints = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, 352, 3):
            damaged[place] = int(generator.integers(0, 256))
        (tmp_path / "damaged.nii").write_bytes(damaged)
        try:
            read_volume(tmp_path / "damaged.nii")
        except ScanError as error:
            complaints.append(str(error))
    assert 0 < len(complaints) < 300
    assert not any("\n" in complaint for complaint in complaints)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float32])
def test_written_volumes_are_read_back_by_us_nibabel_and_itk(tmp_path: Path, kind: type) -> None:
    array = voxels(kind).T
    space = Space.canonical(array.shape, (2.5, 0.75, 0.5), (10.0, -20.5, 30.25))
    write_volume(tmp_path / "scan.nii.gz", array, space)
    scan = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(scan.array[0], array)
    assert scan.space.misplacement(space).mm < 1e-4
    assert scan.warnings == ()
    image = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    np.testing.assert_allclose(image.GetOrigin(), space.origin_mm, atol=1e-5)
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "scan.nii.gz").affine) == ("R", "A", "S")


def test_the_same_labels_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, voxels().T, Space.canonical((6, 5, 4), (1, 1, 1)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (np.zeros((3, 4)), False),
        ([[0, 0, 0, 0.0005], [0, 0, 0, -0.0005], [0, 0, 0, 0.0004]], False),  # an origin rounded to 0.001 mm
        ([[0.004, 0, 0, 0], [0] * 4, [0] * 4], False),  # 0.156 mm at the last of 40 columns of 2 mm: 0.08 of a voxel
        ([[0.006, 0, 0, 0], [0] * 4, [0] * 4], True),  # 0.12 of a voxel
        ([[0.05, -0.05, 0, 0], [0] * 4, [0] * 4], True),  # nothing at the first and the last voxel, 2 mm between them
    ],
)
def test_sform_and_qform_are_compared_over_the_whole_volume(moved: list, said: bool, tmp_path: Path) -> None:
    """The frame is turned by 179.99°, where float32 quaternions are least exact: 0.014 mm."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(np.radians(179.99) * np.array([1, 0.02, 0.05]) / 1.00145).as_matrix()
    affine[:3, :3] *= [2.0, 2.0, 3.0]
    affine[:3, 3] = [10, -20, -30]
    image = nibabel.Nifti1Image(np.zeros((40, 40, 24), np.int16), affine)
    image.set_qform(affine, 1)
    other = affine.copy()
    other[:3] += affine[:3, :3] / [2.0, 2.0, 3.0] @ np.asarray(moved)
    image.set_sform(other, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    warnings = read_volume(tmp_path / "scan.nii").warnings
    assert any("sform and qform place voxels up to" in remark for remark in warnings) == said
