"""Grids that cannot be are refused wherever they come from, and every command takes the same two grids for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from small_model import small_plan

from flarecps.datasets.case_inspection import LabelSet, inspect_case
from flarecps.datasets.layouts import Case
from flarecps.datasets.relabelling import relabel_file
from flarecps.errors import GridError, ScanError
from flarecps.evaluation.scores import score_folders
from flarecps.inference.postprocessing import determine_rules
from flarecps.planning.fingerprint import fingerprint_case
from flarecps.preprocessing.case import prepare_case
from flarecps.volumes import io
from flarecps.volumes.io import read_channels, read_labels, read_labels_on, read_space, read_volume
from flarecps.volumes.space import Space, axis_codes, misplacement

NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing_mm": (-3.0, 1.0, 1.0)}, "a spacing of -3, 1, 1 mm"),
        ({"spacing_mm": (3.0, 0.0, 1.0)}, "expected positive numbers"),
        ({"spacing_mm": (3.0, 1.0, NAN)}, "expected positive numbers"),
        ({"spacing_mm": (3.0, float("inf"), 1.0)}, "expected positive numbers"),
        ({"shape": (0, 5, 6)}, "0×5×6 voxels"),
        ({"shape": (4, -5, 6)}, "at least 1"),
        ({"shape": (5, 6)}, "5×6 voxels; expected at least 1 along each of 3 axes"),
        ({"shape": (4, 5.5, 6)}, "4×5.5×6 voxels"),
        ({"origin_mm": (0.0, NAN, 0.0)}, "an origin of 0, nan, 0 mm"),
        ({"direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.01)}, "right angles"),
        ({"direction": (1.0, 0, 0, 0.01, 1.0, 0, 0, 0, 1.0)}, "right angles"),
        ({"direction": (1.0, 0, 0, 1.0, 0, 0, 0, 0, 1.0)}, "right angles"),
        ({"direction": (NAN,) * 9}, "right angles"),
        ({"direction": (0.0,) * 9}, "right angles"),
    ],
)
def test_a_grid_that_cannot_be_is_not_made(changes: dict, said: str) -> None:
    good = Space((4, 5, 6), (3.0, 1.0, 1.0))
    with pytest.raises(GridError, match=said):
        replace(good, **changes)
    with pytest.raises(GridError, match=said):
        Space(**{"shape": (4, 5, 6), "spacing_mm": (3.0, 1.0, 1.0), **changes})


@pytest.mark.parametrize("reader", [read_volume, read_space])
def test_a_grid_from_a_library_is_checked_and_its_file_named(
    reader: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library returned it for frames stored from top to bottom: one slice from there, the volume was negative."""
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.Image([6, 5, 4], sitk.sitkInt16), str(path))
    monkeypatch.setitem(io.HEADER_READERS, "mha", lambda _: Space((4, 5, 6), (-3.0, 1.0, 1.0)))
    with pytest.raises(ScanError, match=r"scan\.mha: a spacing of -3, 1, 1 mm .* expected positive numbers"):
        reader(path)


def test_the_furthest_corner_counts_and_no_order_of_voxels_matters() -> None:
    """Worked out by hand: 383 steps of 0.000025 mm are 0.0096 mm, of 0.0009 mm 0.3447 mm: 0.49 of a voxel."""
    grid = Space.canonical((24, 384, 384), (3.0, 0.7031, 0.7031))
    near, far = (replace(grid, spacing_mm=(3.0, 0.7031, edge)) for edge in (0.703125, 0.7040))
    assert grid.misplacement(near).mm == pytest.approx(383 * 0.000025)
    assert grid.misplacement(far).mm == pytest.approx(383 * 0.0009)
    assert grid.misplacement(far).voxels == pytest.approx(383 * 0.0009 / 0.7031)
    assert (grid.same_grid(near), grid.same_grid(far)) == (True, False)
    assert grid.misplacement(far) == far.misplacement(grid)
    assert "voxels up to 0.345 mm apart (0.49 of a voxel); spacing (3, 0.7031, 0.7031)" in grid.difference(far)
    rounded = replace(grid, origin_mm=(0.0004, -0.0005, 0.0005))
    assert grid.difference(rounded) == ""
    assert grid.misplacement(replace(grid, shape=(24, 384, 383))).voxels == np.inf
    assert misplacement(np.eye(4), np.diag([1.0, 1.0, 0.0, 1.0]), (2, 2, 2)).voxels == np.inf


@pytest.mark.parametrize("degrees", [45.0, 45.00001, 44.99999, -45.0, 135.0])
def test_every_axis_has_a_letter_of_its_own_midway_too(degrees: float) -> None:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    codes = axis_codes((cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0))
    assert sorted(code.translate(str.maketrans("LPI", "RAS")) for code in codes) == ["A", "R", "S"]
    assert codes[2] == "S"


# --- two files whose grids are one but for rounding, or half a voxel apart, in every place where two grids meet

SHAPE = (8, 12, 384)  # (slice, row, column)
LABELS = {"background": 0, "one": 1, "two": 2}


def write(path: Path, array: np.ndarray, column_mm: float, stored: str, code: str, degrees: float = 0.0) -> None:
    """A NIfTI file stored LPS or RAS from one corner of the scan on, its matrix as qform or sform alone."""
    sense = -1.0 if stored == "LPS" else 1.0
    affine = np.diag([sense * column_mm, sense * 2.0, 3.0, 1.0])
    affine[:3, 3] = [-sense * 135.0, -sense * 20.0, 12.0]
    affine[:3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ affine[:3]
    image = nibabel.Nifti1Image(array.T, affine)
    image.set_qform(affine, int(code == "qform"))
    image.set_sform(affine, int(code == "sform"))
    nibabel.save(image, path)


def drawn() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:9, 40:200] = 1
    labels[5:7, 2:7, 200:380] = 2
    return labels


def inspected(image: Path, labels: Path) -> bool:
    names = {number: name for name, number in LABELS.items()}
    case = inspect_case((Case("case", "labelled", (image,), labels), LabelSet(names, (), (True,))))
    return not any(finding.code == "grid-mismatch" for finding in case.findings)


def planned(image: Path, labels: Path) -> None:
    fingerprint_case(read_volume(image), read_labels(labels), "case", "labelled", True, (0, 1, 2))


def preprocessed(image: Path, labels: Path) -> None:
    prepare_case(read_volume(image), small_plan(labels=LABELS, left_right_pairs=()), read_labels(labels))


def scored(image: Path, labels: Path) -> bool:
    found = score_folders(labels, image.with_name("drawn.nii.gz"), LABELS, "strict", progress=False)
    assert all(score.dsc == 1.0 for case in found.cases.values() for score in case.organs.values())
    return not found.failed


def postprocessed(image: Path, labels: Path) -> bool:
    pairs = {"case": (labels, image.with_name("drawn.nii.gz")), "other": (labels, labels)}
    rules, failed = determine_rules(pairs, LABELS, progress=False)
    assert rules.evidence["mean_dsc_as_predicted"] == {"one": 1.0, "two": 1.0}
    return not failed


def laid_over(image: Path, labels: Path) -> None:
    read_labels_on(labels, read_volume(image).space, "the scan")


def channels(image: Path, labels: Path) -> None:
    read_channels([image, labels])


def takes(place: Callable[[Path, Path], bool | None], image: Path, labels: Path) -> bool:
    """Whether a place accepts the pair: some answer, others raise."""
    try:
        return place(image, labels) is not False
    except ScanError:
        return False


PLACES = [inspected, planned, preprocessed, scored, postprocessed, laid_over, channels]


@pytest.mark.parametrize("degrees", [0.0, 45.0])
@pytest.mark.parametrize("stored", [("LPS", "LPS"), ("RAS", "RAS"), ("LPS", "RAS")], ids="-".join)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(("column_mm", "accepted"), [(0.7031, True), (0.7040, False)])
def test_every_place_takes_the_same_grids_for_one(
    place: Callable[[Path, Path], bool | None],
    column_mm: float,
    accepted: bool,
    stored: tuple[str, str],
    degrees: float,
    tmp_path: Path,
) -> None:
    """The image's columns are 0.703125 mm apart: rounded to 4 decimals they fit, at 0.7040 half a voxel is missing."""
    image, labels = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    hu = np.random.default_rng(5).normal(40, 200, SHAPE).clip(-1000, 900).astype(np.int16)
    turned = drawn()[:, ::-1, ::-1] if stored[0] != stored[1] else drawn()
    write(image, hu, 0.703125, stored[0], "qform", degrees)
    write(tmp_path / "drawn.nii.gz", drawn(), 0.703125, stored[0], "qform", degrees)
    write(labels, turned, column_mm, stored[1], "sform", degrees)
    if stored[0] != stored[1]:  # from the other corner: where the image's last voxel lies
        file = nibabel.load(labels)
        matrix = nibabel.load(image).affine
        affine = file.affine
        affine[:3, 3] = (matrix @ [SHAPE[2] - 1, SHAPE[1] - 1, 0, 1])[:3]
        moved = nibabel.Nifti1Image(np.asarray(file.dataobj), affine)
        nibabel.save(moved, labels)
    assert takes(place, image, labels) == accepted


def stored_anyhow(path: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator, float32: bool) -> None:
    """The voxels (column, row, slice) of ``affine`` in one of 48 orders, the matrix as qform, sform or both."""
    order = np.column_stack([rng.permutation(3), rng.choice([-1, 1], 3)]).astype(float)
    turned = nibabel.orientations.apply_orientation(array, order)
    matrix = affine @ nibabel.orientations.inv_ornt_aff(order, array.shape)
    image = nibabel.Nifti1Image(turned, matrix.astype(np.float32).astype(float) if float32 else matrix)
    qform, sform = [(1, 0), (0, 1), (1, 1)][rng.integers(3)]
    image.set_qform(matrix, qform)
    image.set_sform(matrix, sform)
    nibabel.save(image, path)


@pytest.mark.parametrize("seed", range(16))
def test_random_grids_stored_anyhow_get_one_verdict_and_labels_in_place(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    angles = rng.choice([0.0, 45.0, 90.0, 33.3], 3) if seed % 2 else rng.uniform(-180, 180, 3)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    spacing = rng.uniform(0.6, 5.0, 3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, rng.uniform(-300, 300, 3)
    labels = np.zeros((24, 20, 16), np.uint8)
    labels[3:12, 4:15, 2:9], labels[13:22, 2:9, 5:15] = 1, 2
    hu = (labels * 100 + rng.integers(0, 50, labels.shape)).astype(np.int16)
    image, map_ = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    stored_anyhow(image, hu, affine, rng, bool(seed % 3))
    stored_anyhow(tmp_path / "drawn.nii.gz", labels, affine, rng, bool(seed % 2))
    stored_anyhow(map_, labels, affine, rng, not seed % 3)
    volume = read_volume(image)
    np.testing.assert_array_equal(read_labels_on(map_, volume.space, "the scan"), volume.array[0] // 100)
    relabel_file((map_, tmp_path / "relabelled.nii.gz"), [(1, 2), (2, 1)])
    exchanged = read_labels_on(tmp_path / "relabelled.nii.gz", volume.space, "the scan")
    np.testing.assert_array_equal(np.array([0, 2, 1])[exchanged], volume.array[0] // 100)
    assert [place.__name__ for place in PLACES if not takes(place, image, map_)] == []
    affine[:3, 3] += turn[:, seed % 3] * spacing[seed % 3] / 2
    stored_anyhow(map_, labels, affine, rng, True)
    assert [place.__name__ for place in PLACES if takes(place, image, map_)] == []


def test_preprocessed_labels_of_another_order_lie_on_their_voxels(tmp_path: Path) -> None:
    """Stored LPS and RAS, or both alike: the same case on the network's grid."""
    plan = small_plan(labels=LABELS, left_right_pairs=())
    hu = np.random.default_rng(5).normal(40, 200, SHAPE).astype(np.int16)
    image, own, other = (tmp_path / name for name in ("scan.nii.gz", "own.nii.gz", "other.nii.gz"))
    write(image, hu, 0.703125, "LPS", "sform")
    write(own, drawn(), 0.703125, "LPS", "sform")
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(own)), other)
    one, two = (prepare_case(read_volume(image), plan, read_labels(path)).labels for path in (own, other))
    np.testing.assert_array_equal(one, two)
