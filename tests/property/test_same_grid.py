"""Image and labels of one grid stay together, and of two grids are refused, however each file stores its voxels.

Files are written by nibabel, SimpleITK and by hand; what is expected comes from their own matrices, in float64, voxel
by voxel. Every voxel holds its own number, so labels in place are equal to the image.
"""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from flarecps.errors import ScanError
from flarecps.volumes.io import on_grid, read_channels, read_labels, read_volume
from flarecps.volumes.space import SAME_GRID_VOXELS, Space, matching_reorientation

SHAPE = (5, 6, 4)  # (column, row, slice), as nibabel counts
NUMBERS = np.arange(np.prod(SHAPE)).reshape(SHAPE)
HEADERS = ("qform.nii.gz", "sform.nii", "both.nii.gz", "lps.nrrd", "ras.nrrd", "lps.mha")
ORDERS = [np.column_stack([axes, signs]) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def written(path: Path, affine: np.ndarray, order: np.ndarray, kind: type = np.uint8) -> np.ndarray:
    """Write the numbers on a grid (RAS) in another voxel order; the matrix the file then has, back in the first order.

    ``order`` is nibabel's: where each axis goes and in which sense. The file's name says how its header tells the grid.
    """
    image = nibabel.Nifti1Image(NUMBERS.astype(kind), affine).as_reoriented(order)
    voxels, stored = np.asarray(image.dataobj), image.affine
    if ".nii" in path.name:
        image.set_qform(stored, 1 if path.name.startswith(("qform", "both")) else 0)
        image.set_sform(stored, 1 if path.name.startswith(("sform", "both")) else 0)
        nibabel.save(image, path)
        stored = nibabel.load(path).affine
    elif path.name.startswith("ras"):
        vectors = " ".join(f"({','.join(map(repr, column.tolist()))})" for column in stored[:3, :3].T)
        header = (
            f"NRRD0004\ntype: {'short' if kind is np.int16 else 'uchar'}\ndimension: 3\n"
            f"space: right-anterior-superior\nsizes: {' '.join(map(str, voxels.shape))}\nspace directions: {vectors}\n"
            f"endian: little\nencoding: raw\nspace origin: ({','.join(map(repr, stored[:3, 3].tolist()))})\n\n"
        )
        path.write_bytes(header.encode() + voxels.tobytes(order="F"))
    else:
        lps = LPS @ stored
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        scan = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
        scan.SetSpacing(spacing.tolist())
        scan.SetOrigin(lps[:3, 3].tolist())
        scan.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(scan, str(path))
    return stored @ np.linalg.inv(nibabel.orientations.inv_ornt_aff(order, SHAPE))


def furthest(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance between two voxels of one number, as a share of a voxel's edges, by looking at all."""
    indices = np.stack(np.meshgrid(*map(np.arange, SHAPE), [1], indexing="ij"), axis=-1).reshape(-1, 4)
    apart = (indices @ (one - other).T)[:, :3]
    return max(np.linalg.norm(apart @ np.linalg.inv(matrix[:3, :3]).T, axis=1).max() for matrix in (one, other))


@st.composite
def grids(draw: st.DrawFn) -> np.ndarray:
    """A rigid grid (RAS): turned by any angle, or by multiples of 45°, where two orders are equally near."""
    if draw(st.booleans()):
        angles = [45 * draw(st.integers(-4, 4)) for _ in range(3)]
    else:
        angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", angles, degrees=True).as_matrix() * [
        draw(st.floats(0.4, 6)) for _ in range(3)
    ]
    affine[:3, 3] = [draw(st.floats(-900, 900)) for _ in range(3)]
    return affine


@settings(max_examples=120)
@given(
    affine=grids(),
    headers=st.tuples(st.sampled_from(HEADERS), st.sampled_from(HEADERS)),
    orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
    share=st.sampled_from([0.0, 0.0, 0.03, 0.07, 0.2, 0.5, 2.0]),
    change=st.sampled_from(["origin", "spacing", "turn"]),
    axis=st.integers(0, 2),
)
def test_the_verdict_is_that_of_the_distance_and_labels_stay_in_place(
    tmp_path_factory: pytest.TempPathFactory,
    affine: np.ndarray,
    headers: tuple[str, str],
    orders: tuple[np.ndarray, np.ndarray],
    share: float,
    change: str,
    axis: int,
) -> None:
    folder = tmp_path_factory.mktemp("grids")
    moved = affine.copy()
    if change == "origin":
        moved[:3, 3] += share * affine[:3, axis]
    elif change == "spacing":
        moved[:3, axis] *= 1 + share / (SHAPE[axis] - 1)
    else:
        moved[:3, :3] = Rotation.from_rotvec(0.1 * share * np.eye(3)[axis]).as_matrix() @ affine[:3, :3]
    image_file, label_file = folder / f"{headers[0]}", folder / f"{headers[1].replace('.', '_label.', 1)}"
    apart = furthest(written(image_file, affine, orders[0], np.int16), written(label_file, moved, orders[1]))
    assume(abs(apart - SAME_GRID_VOXELS) > 1e-3)
    image = read_volume(image_file)
    if apart > SAME_GRID_VOXELS:
        with pytest.raises(ScanError, match="not on the grid"):
            on_grid(read_labels(label_file), image.space, "its image")
        with pytest.raises(ScanError, match="not on the grid"):
            read_channels([image_file, label_file])
        return
    labels = on_grid(read_labels(label_file), image.space, "its image")
    np.testing.assert_array_equal(labels.array, image.array)
    np.testing.assert_array_equal(read_channels([image_file, label_file]).array, np.repeat(image.array, 2, axis=0))
    measured = labels.space.misplacement(image.space)
    assert measured.voxels == pytest.approx(apart, abs=1e-3)
    assert labels.source.reorientation.apply_to_space(labels.source.stored).misplacement(labels.space).mm < 1e-6
    assert [image.space.same_grid(labels.space), labels.space.same_grid(image.space)] == [True, True]


@settings(max_examples=40)
@given(
    affine=grids(),
    header=st.sampled_from(HEADERS[1:]),
    order=st.sampled_from(ORDERS),
    rounding=st.tuples(*[st.floats(-2e-6, 2e-6)] * 3),
)
def test_a_scan_reads_alike_in_whatever_order_it_is_stored(
    tmp_path_factory: pytest.TempPathFactory,
    affine: np.ndarray,
    header: str,
    order: np.ndarray,
    rounding: tuple[float, float, float],
) -> None:
    """At 45°, too, where what another program rounds would decide."""
    folder = tmp_path_factory.mktemp("orders")
    written(folder / "sform.nii", affine, ORDERS[0])
    other = affine.copy()
    other[:3, :3] = Rotation.from_rotvec(rounding).as_matrix() @ affine[:3, :3]
    written(folder / f"{header.split('.')[0]}_other.{header.split('.', 1)[1]}", other, order)
    one, two = (read_volume(path) for path in sorted(folder.iterdir(), key=lambda path: "other" in path.name))
    np.testing.assert_array_equal(one.array, two.array)
    assert one.space.misplacement(two.space).voxels < 1e-3


@given(st.sampled_from(ORDERS), grids())
def test_two_reorderings_in_one(order: np.ndarray, affine: np.ndarray) -> None:
    """First one, then another: as their composition, on voxels and on grids."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    space = Space(SHAPE[::-1], tuple(spacing[::-1]), tuple((affine[:3, :3] / spacing).ravel()))
    first = matching_reorientation(space.direction, (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    signs = np.zeros((3, 3))
    signs[order[:, 0].astype(int), range(3)] = order[:, 1]
    second = matching_reorientation(first.apply_to_space(space).direction, tuple(signs.ravel()))
    both = first.then(second)
    np.testing.assert_array_equal(both.apply(NUMBERS.T), second.apply(first.apply(NUMBERS.T)))
    assert both.apply_to_space(space).misplacement(second.apply_to_space(first.apply_to_space(space))).mm < 1e-9
    np.testing.assert_array_equal(both.inverse().apply(both.apply(NUMBERS.T)), NUMBERS.T)
