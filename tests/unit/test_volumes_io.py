"""Scans of every format in, labels on the scan's own grid out, and every bad input refused in one line."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from flarecps.errors import ScanError
from flarecps.volumes.discovery import find_scans
from flarecps.volumes.io import (
    read_channels,
    read_labels,
    read_space,
    read_volume,
    scan_name,
    write_labels,
    write_volume,
)
from flarecps.volumes.space import Space

GRID = Space.canonical((6, 5, 4), (2.5, 0.75, 0.5), (10.0, -20.5, 30.25))


def scan(path: Path, array: np.ndarray | None = None, space: Space = GRID) -> Path:
    voxels = np.arange(120, dtype=np.int16).reshape(space.shape) if array is None else array
    write_volume(path, voxels, space)
    return path


def same_grid(before: sitk.Image, after: sitk.Image) -> None:
    """Equal size and voxel order; positions within 1e-3 mm; directions within 1e-6: the project's geometry contract."""
    assert before.GetSize() == after.GetSize()
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-6)
    for corner in product(*((0, edge - 1) for edge in before.GetSize())):
        np.testing.assert_allclose(
            after.TransformIndexToPhysicalPoint(corner), before.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_are_read_and_their_labels_written_as_nifti(tmp_path: Path, suffix: str) -> None:
    source = scan(tmp_path / f"scan{suffix}")
    volume = read_volume(source)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[0], np.arange(120).reshape(6, 5, 4))
    assert volume.space.misplacement(GRID).mm < 1e-5
    assert read_space(source) == volume.space
    write_labels(tmp_path / "labels.nii.gz", volume.array[0].astype(np.uint8), volume.source)
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    same_grid(sitk.ReadImage(str(source)), labels)
    assert labels.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), np.arange(120).reshape(6, 5, 4))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0, 10, 100, 400])
def test_truncated_files_of_other_formats_are_refused(
    tmp_path: Path, suffix: str, kept: int, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, GRID.shape).astype(np.int16)
    path = scan(tmp_path / f"scan{suffix}", noise)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ScanError, match="copy or download it again") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # what the C libraries print is in the message


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nan_and_infinite_voxels_are_counted_and_refused(tmp_path: Path, suffix: str) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[0, 0, :3] = [np.nan, np.inf, -np.inf]
    with pytest.raises(ScanError, match="3 voxels are NaN or infinite"):
        read_volume(scan(tmp_path / f"scan{suffix}", array))


@pytest.mark.parametrize(("axis", "name"), [(0, "slice"), (1, "row"), (2, "column")])
def test_a_one_slice_scan_is_refused_with_its_axis(tmp_path: Path, axis: int, name: str) -> None:
    shape = tuple(1 if here == axis else 5 for here in range(3))
    path = scan(tmp_path / "scan.nii.gz", np.zeros(shape, np.int16), Space.canonical(shape, (1, 1, 1)))
    with pytest.raises(ScanError, match=f"one-slice scan .* one along the {name} axis"):
        read_volume(path)


def test_a_two_dimensional_image_is_a_one_slice_scan(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([5, 6], sitk.sitkInt16), str(tmp_path / "flat.mha"))
    with pytest.raises(ScanError, match="one along the slice axis"):
        read_volume(tmp_path / "flat.mha")


def test_colour_and_time_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.mha"))
    sitk.WriteImage(sitk.Image([5, 6, 7, 2], sitk.sitkInt16), str(tmp_path / "time.nrrd"))
    with pytest.raises(ScanError, match="several numbers per voxel"):
        read_volume(tmp_path / "colour.mha")
    with pytest.raises(ScanError, match="several frames"):
        read_volume(tmp_path / "time.nrrd")


def test_missing_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("gone.nii.gz", "no such file"),
        ("notes.txt", "not a known"),
        ("empty", "no DICOM series"),
    ):
        with pytest.raises(ScanError, match=complaint):
            read_volume(tmp_path / name)
    with pytest.raises(ScanError, match="no such folder"):
        find_scans(tmp_path / "gone")


def test_channels_are_stacked_in_order_and_must_share_a_grid(tmp_path: Path) -> None:
    first = scan(tmp_path / "a_0000.nii.gz")
    second = scan(tmp_path / "a_0001.nii.gz", np.full(GRID.shape, 0.5, np.float32))
    volume = read_channels([first, second])
    assert volume.array.shape == (2, *GRID.shape)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[1], 0.5)
    assert volume.source.path == first
    moved = scan(tmp_path / "a_0002.nii.gz", space=Space.canonical(GRID.shape, GRID.spacing_mm, (0, 0, 0)))
    with pytest.raises(ScanError, match=r"a_0002.nii.gz: not on the grid of a_0000.nii.gz .*origin"):
        read_channels([first, moved])
    with pytest.raises(ScanError, match="no image file"):
        read_channels([])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_are_uint8_however_they_are_stored(tmp_path: Path, kind: type) -> None:
    labels = (np.arange(120) % 14).reshape(GRID.shape).astype(kind)
    volume = read_labels(scan(tmp_path / "labels.nii.gz", labels))
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0], labels)


@pytest.mark.parametrize(
    ("value", "complaint"), [(-1, "values from -1"), (256, "to 256"), (1.5, "1 voxels are not whole numbers")]
)
def test_what_is_no_label_is_refused(tmp_path: Path, value: float, complaint: str) -> None:
    labels = np.zeros(GRID.shape, np.float32 if isinstance(value, float) else np.int16)
    labels[1, 2, 3] = value
    with pytest.raises(ScanError, match=complaint):
        read_labels(scan(tmp_path / "labels.nii.gz", labels))


def test_labels_need_a_nifti_name_and_the_scans_size(tmp_path: Path) -> None:
    volume = read_volume(scan(tmp_path / "scan.nii.gz"))
    with pytest.raises(ScanError, match="written as NIfTI"):
        write_labels(tmp_path / "labels.nrrd", volume.array[0].astype(np.uint8), volume.source)
    with pytest.raises(ScanError, match="labels for a scan of"):
        write_labels(tmp_path / "labels.nii.gz", np.zeros((2, 2, 2), np.uint8), volume.source)
    with pytest.raises(ScanError, match="unknown image format"):
        write_volume(tmp_path / "scan.png", volume.array[0], volume.space)
    with pytest.raises(ScanError, match="do not fill"):
        write_volume(tmp_path / "scan.nii", volume.array[0, 1:], volume.space)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_source_replaced_meanwhile_is_noticed_and_a_deleted_one_does_not_lose_the_result(tmp_path: Path) -> None:
    path = scan(tmp_path / "scan.nii.gz")
    volume = read_volume(path)
    labels = volume.array[0].astype(np.uint8)
    path.unlink()
    write_labels(tmp_path / "labels.nii.gz", labels, volume.source)
    assert read_labels(tmp_path / "labels.nii.gz").space.same_grid(volume.space)
    scan(path, np.zeros((3, 3, 3), np.int16), Space.canonical((3, 3, 3), (1, 1, 1)))
    with pytest.raises(ScanError, match="when it was read"):
        write_labels(tmp_path / "labels.nii.gz", labels, volume.source)


def test_find_scans_lists_files_and_series_folders_and_leaves_the_rest(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "c.mha"):
        scan(tmp_path / name)
    (tmp_path / ".partial-1234-d.nii.gz").write_bytes(b"")
    (tmp_path / "dataset.json").write_text("{}")
    series(tmp_path / "patient" / "series")
    assert [path.name for path in find_scans(tmp_path)] == ["a.nrrd", "b.nii.gz", "c.mha", "series"]
    assert find_scans(tmp_path / "patient" / "series") == [tmp_path / "patient" / "series"]
    assert [scan_name(path) for path in find_scans(tmp_path)] == ["a", "b", "c", "series"]


# DICOM


def series(
    folder: Path,
    positions: list[tuple[float, float, float]] | None = None,
    uid: str = "1.2.3.4",
    plane: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    names: str = "edcba",
) -> Path:
    """A CT series of 5×6 pixels a slice, slice i holding 10·i HU, in files without extension named by ``names``."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, position in enumerate(positions or [(1, 2, 3 + 2.5 * index) for index in range(5)]):
        flat = sitk.GetImageFromArray(np.full((6, 5), 10 * index, np.int16))
        flat[0, 0] = -1000
        flat.SetSpacing((0.8, 0.9))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{index + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{value:.9g}" for value in position),
            "0020|0037": "\\".join(f"{value:.9g}" for value in plane),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            flat.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{names[index]}.dcm"))
        writer.Execute(flat)
        (folder / f"{names[index]}.dcm").rename(folder / names[index])
    return folder


def itk_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_a_dicom_series_is_ordered_by_position_whatever_its_names(tmp_path: Path) -> None:
    volume = read_volume(series(tmp_path / "series"))
    assert volume.source.kind == "dicom"
    assert volume.array.dtype == np.int16
    assert volume.array[0, :, 2, 2].tolist() == [0, 10, 20, 30, 40]
    assert (volume.array[0, :, 5, 4] == -1000).all()  # first row and column are anterior and right: turned to RAS
    assert volume.source.stored == Space((5, 6, 5), (2.5, 0.9, 0.8), (1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 2, 3))
    assert volume.warnings == ()
    assert read_space(tmp_path / "series") == volume.space
    write_labels(tmp_path / "labels.nii.gz", (volume.array[0] // 10).clip(0).astype(np.uint8), volume.source)
    same_grid(itk_series(tmp_path / "series"), sitk.ReadImage(str(tmp_path / "labels.nii.gz")))


def test_an_oblique_series_keeps_its_directions(tmp_path: Path) -> None:
    cosine, sine = np.cos(0.3), np.sin(0.3)
    positions = [(1, 2 - 2.5 * sine * index, 3 + 2.5 * cosine * index) for index in range(5)]
    volume = read_volume(series(tmp_path / "series", positions, plane=(1, 0, 0, 0, cosine, sine)))
    np.testing.assert_allclose(volume.source.stored.direction, [1, 0, 0, 0, cosine, -sine, 0, sine, cosine], atol=1e-8)
    assert volume.source.stored.spacing_mm[0] == pytest.approx(2.5)
    assert volume.warnings == ()
    write_labels(tmp_path / "labels.nii.gz", np.zeros(volume.space.shape, np.uint8), volume.source)
    same_grid(itk_series(tmp_path / "series"), sitk.ReadImage(str(tmp_path / "labels.nii.gz")))


def test_missing_slices_and_a_tilted_gantry_are_reported(tmp_path: Path) -> None:
    gap = read_volume(series(tmp_path / "gap", [(1, 2, z) for z in (0, 2.5, 5, 10, 12.5)]))
    assert len(gap.warnings) == 1
    assert "uneven (2.5 to 5 mm" in gap.warnings[0]
    tilted = read_volume(series(tmp_path / "tilt", [(1, 2 + index, 2.5 * index) for index in range(5)]))
    assert len(tilted.warnings) == 1
    assert "sideways by 4 mm" in tilted.warnings[0]
    assert tilted.space.spacing_mm[0] == pytest.approx(2.5)  # along the slices' normal, not along the shifted stack


def test_several_series_in_one_folder_are_named(tmp_path: Path) -> None:
    series(tmp_path / "both")
    series(tmp_path / "both", uid="1.2.3.5", names="vwxyz")
    with pytest.raises(ScanError, match=r"2 DICOM series in one folder: .*5 files as a.*5 files as v"):
        read_volume(tmp_path / "both")


@pytest.mark.parametrize("lost", [1, 20, 300])
def test_a_truncated_slice_is_not_passed_over(tmp_path: Path, lost: int) -> None:
    damaged = series(tmp_path / "series") / "c"
    damaged.write_bytes(damaged.read_bytes()[:-lost])
    with pytest.raises(ScanError, match=r"series/c: .*copy") as caught:
        read_volume(tmp_path / "series")
    assert "\n" not in str(caught.value)


def test_a_single_slice_is_no_scan_and_a_slice_file_points_to_its_folder(tmp_path: Path) -> None:
    series(tmp_path / "one", [(1, 2, 3)])
    with pytest.raises(ScanError, match="one along the slice axis"):
        read_volume(tmp_path / "one")
    with pytest.raises(ScanError, match="name the folder"):
        read_volume(tmp_path / "one" / "e")


# Real scans


def test_real_ct_comes_and_goes_on_its_own_grid(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "ct" / "example_3mm" / "ct.nii.gz"
    volume, organs = read_volume(path), read_labels(path.with_name("seg13.nii.gz"))
    assert volume.array.dtype == np.int16
    assert volume.space.same_grid(organs.space)
    liver, lungs_and_air = volume.array[organs.array == 1], volume.array < -500
    assert 0 < liver.mean() < 200  # HU: the labels lie on the organ
    assert not (lungs_and_air & (organs.array == 1)).mean() > 1e-3
    write_labels(tmp_path / "labels.nii.gz", organs.array[0], volume.source)
    same_grid(sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "labels.nii.gz")))
    again = nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(again.dataobj), np.asarray(nibabel.load(path.with_name("seg13.nii.gz")).dataobj)
    )


def test_a_real_dicom_series_lies_under_its_labels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ct" / "dicom_slab"
    volume, organs = read_volume(folder), read_labels(shared_data / "ct" / "dicom_slab_seg13.nii.gz")
    assert volume.array.shape == (1, 20, 512, 512)
    np.testing.assert_allclose(volume.space.spacing_mm, (2.0, 0.9765625, 0.9765625))
    assert read_space(folder) == volume.space
    assert folder in find_scans(shared_data / "ct")
    write_labels(tmp_path / "labels.nii.gz", np.zeros(volume.space.shape, np.uint8), volume.source)
    same_grid(itk_series(folder), sitk.ReadImage(str(tmp_path / "labels.nii.gz")))
    np.testing.assert_array_equal(
        volume.source.reorientation.undo(volume.array)[0], sitk.GetArrayFromImage(itk_series(folder))
    )
    assert volume.space.misplacement(organs.space).mm < 1e-2, volume.space.difference(organs.space)


def test_real_head_and_neck_scans_turn_as_nibabel_turns_them(shared_data: Path, tmp_path: Path) -> None:
    images = sorted((shared_data / "kbp" / "imagesTr").glob("*_0000.nii.gz"))[:3]
    for path in images:
        labels = shared_data / "kbp" / "labelsTr" / path.name.replace("_0000", "")
        volume, reference = read_volume(path), read_labels(labels)
        canonical = nibabel.as_closest_canonical(nibabel.load(path))
        np.testing.assert_array_equal(volume.array[0], np.asarray(canonical.dataobj).T)
        assert volume.space.same_grid(reference.space)
        write_labels(tmp_path / "labels.nii.gz", reference.array[0], volume.source)
        same_grid(sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "labels.nii.gz")))
        np.testing.assert_array_equal(
            np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj), np.asarray(nibabel.load(labels).dataobj)
        )


def test_a_truncated_copy_of_a_real_scan_is_refused(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "ct" / "example_3mm" / "ct.nii.gz", tmp_path / "cut.nii.gz")
    whole = (tmp_path / "cut.nii.gz").stat().st_size
    (tmp_path / "cut.nii.gz").chmod(0o644)
    with open(tmp_path / "cut.nii.gz", "r+b") as file:
        file.truncate(whole - 3)
    with pytest.raises(ScanError, match=r"cut.nii.gz: .*copy or download it again"):
        read_volume(tmp_path / "cut.nii.gz")
