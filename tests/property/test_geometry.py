"""Reordering to canonical RAS is exact, keeps every voxel's position, and agrees with nibabel's choice."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.orientations import io_orientation
from scipy.spatial.transform import Rotation

from flarecps.volumes.io import read_space, read_volume, write_labels, write_volume
from flarecps.volumes.space import Space, as_direction, canonical_reorientation, nearest_orthonormal

ORDERS = [
    "".join(codes) for axes in permutations(("LR", "AP", "SI")) for codes in product(*axes)
]  # the 48 axis-aligned voxel orders, (column, row, slice)
LPS = np.diag([-1.0, -1.0, 1.0])
numbers = st.floats(-1, 1, allow_nan=False)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any orthonormal grid: random rotation (from a quaternion), permuted and flipped."""
    quaternion = np.array([draw(numbers) for _ in range(4)])
    if np.linalg.norm(quaternion) < 1e-3:
        quaternion = np.array([1.0, 0, 0, 0])
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    columns = draw(st.permutations(range(3)))
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    shape = tuple(draw(st.integers(2, 5)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.3, 8)) for _ in range(3))
    origin = tuple(draw(st.floats(-500, 500)) for _ in range(3))
    return Space(shape, spacing, as_direction(rotation[:, columns] * signs), origin)


def voxels(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel holds its own number."""
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def _between_two_orders(space: Space) -> bool:
    """Whether nibabel would choose another order if the scan were turned by 0.6° about some axis."""
    orders = [io_orientation(ras_affine(space)).tolist()]
    for axis, angle in product(np.eye(3), (-0.01, 0.01)):
        turned = as_direction(Rotation.from_rotvec(angle * axis).as_matrix() @ np.reshape(space.direction, (3, 3)))
        orders.append(io_orientation(ras_affine(replace(space, direction=turned))).tolist())
    return any(order != orders[0] for order in orders)


def ras_affine(space: Space) -> np.ndarray:
    """nibabel's matrix for the same grid, written down independently: (column, row, slice) to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = LPS @ np.asarray(space.direction).reshape(3, 3) @ np.diag(space.spacing_mm[::-1])
    affine[:3, 3] = LPS @ np.asarray(space.origin_mm)
    return affine


@given(spaces())
def test_undo_is_exact(space: Space) -> None:
    way = canonical_reorientation(space.direction)
    stored = voxels(space.shape)
    canonical = way.apply(stored)
    assert canonical.shape == way.apply_to_space(space).shape
    np.testing.assert_array_equal(way.undo(canonical), stored)
    channels = np.stack([stored, -stored])
    np.testing.assert_array_equal(way.apply(channels)[1], -canonical)
    np.testing.assert_array_equal(way.undo(way.apply(channels)), channels)


@given(spaces())
def test_every_voxel_keeps_its_position(space: Space) -> None:
    way = canonical_reorientation(space.direction)
    canonical = way.apply_to_space(space)
    stored_indices = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1)
    stored_positions = np.moveaxis(space.position_mm(stored_indices), -1, 0)
    canonical_indices = np.stack(np.meshgrid(*map(np.arange, canonical.shape), indexing="ij"), axis=-1)
    expected = np.moveaxis(canonical.position_mm(canonical_indices), -1, 0)
    np.testing.assert_allclose(way.apply(stored_positions), expected, atol=1e-9)


@given(spaces())
def test_the_canonical_order_is_nibabels(space: Space) -> None:
    if _between_two_orders(space):
        return
    image = nibabel.Nifti1Image(voxels(space.shape).T, ras_affine(space))
    theirs = nibabel.as_closest_canonical(image)
    way = canonical_reorientation(space.direction)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj).T, way.apply(voxels(space.shape)))
    np.testing.assert_allclose(ras_affine(way.apply_to_space(space)), theirs.affine, atol=1e-9)


@given(spaces())
@example(Space((2, 2, 2), (1.0,) * 3, tuple(x / 17 for x in (9, 8, -12, -8, -9, -12, 12, -12, 1))))
def test_a_canonical_grid_stays_as_it_is(space: Space) -> None:
    canonical = canonical_reorientation(space.direction).apply_to_space(space)
    again = canonical_reorientation(canonical.direction)
    assert again.axes == (0, 1, 2)
    assert again.flips == (False, False, False)
    assert again.apply_to_space(canonical) == canonical


@given(spaces())
def test_positions_are_simpleitks(space: Space) -> None:
    image = sitk.Image([int(edge) for edge in space.shape[::-1]], sitk.sitkUInt8)
    image.SetSpacing(space.spacing_mm[::-1])
    image.SetOrigin(space.origin_mm)
    image.SetDirection(space.direction)
    index = tuple(edge - 1 for edge in space.shape)
    np.testing.assert_allclose(space.position_mm(index), image.TransformIndexToPhysicalPoint(index[::-1]), atol=1e-9)
    np.testing.assert_allclose((space.affine @ [*index, 1])[:3], space.position_mm(index), atol=1e-9)


@pytest.mark.parametrize("codes", ORDERS)
def test_all_48_axis_aligned_orders_through_files(codes: str, tmp_path: Path) -> None:
    """Written by nibabel, read by us, labels back: nibabel and SimpleITK see the source's grid and our labels."""
    shape = (4, 5, 6)
    affine = np.zeros((4, 4))
    for axis, (code, spacing) in enumerate(zip(codes, (2.0, 0.7, 3.0), strict=True)):
        affine["RLAPSI".index(code) // 2, axis] = spacing if code in "RAS" else -spacing
    affine[:, 3] = [-31.0, 22.5, 1000.0, 1.0]
    assert nibabel.aff2axcodes(affine) == tuple(codes)
    source = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels(shape).astype(np.int16), affine), source)
    volume = read_volume(source)
    assert io_orientation(ras_affine(volume.space)).tolist() == [[0, 1], [1, 1], [2, 1]]
    theirs = nibabel.as_closest_canonical(nibabel.load(source))
    np.testing.assert_array_equal(volume.array[0], np.asarray(theirs.dataobj).T)
    assert read_space(source) == volume.space

    write_labels(tmp_path / "labels.nii.gz", (volume.array[0] % 7).astype(np.uint8), volume.source)
    ours = nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(ours.dataobj), voxels(shape) % 7)
    np.testing.assert_array_equal(ours.affine, nibabel.load(source).affine)


@settings(max_examples=25)
@given(space=spaces(), suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_oblique_grids_survive_files_as_simpleitk_sees_them(
    tmp_path_factory: pytest.TempPathFactory, space: Space, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    scan, labels = folder / f"scan{suffix}", folder / "labels.nii.gz"
    write_volume(scan, voxels(space.shape).astype(np.int16), space)
    volume = read_volume(scan)
    np.testing.assert_array_equal(volume.source.reorientation.undo(volume.array)[0], voxels(space.shape))
    write_labels(labels, volume.array[0].astype(np.uint8), volume.source)
    before, after = sitk.ReadImage(str(scan)), sitk.ReadImage(str(labels))
    assert before.GetSize() == after.GetSize()
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(after.GetDirection(), space.direction, atol=1e-6)
    for corner in product(*((0, edge - 1) for edge in before.GetSize())):
        expected = before.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(after.TransformIndexToPhysicalPoint(corner), expected, atol=1e-3)
        np.testing.assert_allclose(space.position_mm(corner[::-1]), expected, atol=1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), voxels(space.shape))


@given(spaces(), st.integers(0, 2), st.floats(-0.2, 0.2))
def test_the_nearest_orthonormal_frame_is_orthonormal_and_nearest(space: Space, column: int, shear: float) -> None:
    frame = np.asarray(space.direction).reshape(3, 3)
    np.testing.assert_allclose(nearest_orthonormal(frame), frame, atol=1e-12)
    sheared = frame.copy()
    sheared[:, column] += shear * frame[:, (column + 1) % 3]
    nearest = nearest_orthonormal(sheared)
    np.testing.assert_allclose(nearest @ nearest.T, np.eye(3), atol=1e-12)
    assert np.linalg.norm(sheared - nearest) <= np.linalg.norm(sheared - frame) + 1e-12


def test_axes_in_one_plane_have_no_frame() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        nearest_orthonormal(np.array([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]]))


def test_grids_are_the_same_within_tolerance_and_say_what_differs() -> None:
    grid = Space.canonical((4, 5, 6), (2.0, 1.0, 1.0), (1.0, 2.0, 3.0))
    assert grid.same_grid(Space.canonical((4, 5, 6), (2.02, 1.0, 1.0), (1.0, 2.05, 3.0)))
    assert grid.difference(grid) == ""
    other = Space((4, 5, 7), (2.1, 1.0, 1.0), as_direction(np.diag([-1.0, 1.0, 1.0])), (1.0, 2.0, 3.5))
    assert not grid.same_grid(other)
    said = grid.difference(other)
    for part in ("4×5×6 against 4×5×7 voxels", "spacing (2, 1, 1) against (2.1, 1, 1) mm", "origin", "direction"):
        assert part in said
    assert grid.voxel_volume_mm3 == 2.0
    assert grid.extent_mm == (8.0, 5.0, 6.0)
