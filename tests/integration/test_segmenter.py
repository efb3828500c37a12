"""Segmenter and segment: whole scans, in their own geometry, through a network that only thresholds.

The anatomy is three balls of different size on different sides, defined in patient space, so a scan on any grid can be
painted and its true labels computed at each voxel's position as SimpleITK reports it.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from flarecps.checkpoint import model_entry
from flarecps.cli.main import main
from flarecps.errors import CheckpointError, ConfigError
from flarecps.inference.folders import requests_for, segment_folder
from flarecps.inference.resources import planner
from flarecps.inference.resources.budget import Budget
from flarecps.inference.resources.cost import Job, sums_bytes
from flarecps.inference.resources.placement import Placement
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.slab_sums import SlabSums
from flarecps.networks.unet import PlainUNet
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.volumes.io import read_volume, write_labels

CENTRES_MM = np.array([[20.0, -15.0, 10.0], [-25.0, 10.0, -20.0], [5.0, 30.0, 25.0]])  # LPS
RADII_MM = np.array([22.0, 16.0, 11.0])
EDGE_MM = 6.0  # over which the balls' border falls from 100 to 0 HU: as smooth as the voxels are large


def plan_of(
    patch: tuple[int, ...] = (16, 24, 20), spacing_mm: tuple[float, float, float] = (3.0, 2.5, 2.5), **changes
) -> Plan:
    dimensions = len(patch)
    entries = {
        "dataset": "balls",
        "dimensions": dimensions,
        "labels": {"background": 0, "ball": 1},
        "left_right_pairs": (),
        "channels": ("CT",),
        "spacing_mm": spacing_mm,
        "axis_order": (0, 1, 2),
        "median_shape_voxels": (40, 48, 48),
        "patch_voxels": patch,
        "topology": Topology((4, 8), ((1,) * dimensions, (2,) * dimensions), ((3,) * dimensions,) * 2),
        "global_batch": {"labelled": 2, "unlabelled": 2},
        "batch_dice": False,
        "intensity": Intensity("ct", low=-200, high=200, mean=50, sd=50),  # 50 HU, the border, becomes 0
        "fingerprint": {},
        "memory_gb": 1.0,
    }
    return Plan(**(entries | changes))


def threshold(tiles: torch.Tensor) -> torch.Tensor:
    """Class 1 where the normalised intensity is above 0."""
    return torch.cat([-4 * tiles, 4 * tiles], dim=1)


def depth_mm(positions_mm: np.ndarray) -> np.ndarray:
    """How deep inside the nearest ball each LPS position (..., 3) lies, negative outside."""
    distance = np.linalg.norm(positions_mm[..., None, :] - CENTRES_MM, axis=-1)
    return (RADII_MM - distance).max(-1)


def positions_of(image: sitk.Image) -> np.ndarray:
    """LPS positions (S, H, W, 3) of an image's voxels, by its own origin, spacing and direction."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    matrix = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return (index @ matrix.T + np.array(image.GetOrigin())).transpose(2, 1, 0, 3)


def scan(size: tuple[int, int, int], spacing_mm: tuple[float, float, float], direction: np.ndarray) -> sitk.Image:
    """A painted CT in SimpleITK's order (column, row, slice), centred on the anatomy."""
    image = sitk.Image(size, sitk.sitkInt16)
    image.SetSpacing(spacing_mm)
    image.SetDirection(direction.ravel().tolist())
    middle = direction @ ((np.array(size) - 1) / 2 * spacing_mm)
    image.SetOrigin((np.array([1.0, 2.0, 3.0]) - middle).tolist())
    voxels = np.clip(50 + 100 * depth_mm(positions_of(image)) / EDGE_MM, 0, 100)
    painted = sitk.GetImageFromArray(np.round(voxels).astype(np.int16))
    painted.CopyInformation(image)
    return painted


def turned(*permutation_and_signs: int) -> np.ndarray:
    """A direction matrix from (1-based signed) patient axes of the three image axes, such as (-2, 1, 3)."""
    matrix = np.zeros((3, 3))
    for column, axis in enumerate(permutation_and_signs):
        matrix[abs(axis) - 1, column] = np.sign(axis)
    return matrix


def rotated(base: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return about_z @ about_x @ base


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def check_in_place(scan_path: Path, result_path: Path) -> None:
    """The result's grid is the scan's, and its labels are the balls at the positions its own header states."""
    before, after = sitk.ReadImage(str(scan_path)), sitk.ReadImage(str(result_path))
    assert after.GetSize() == before.GetSize()
    assert after.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-6)
    for corner in [(0, 0, 0), tuple(n - 1 for n in before.GetSize()), (before.GetSize()[0] - 1, 0, 0)]:
        np.testing.assert_allclose(
            after.TransformIndexToPhysicalPoint(corner), before.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )
    labels = sitk.GetArrayFromImage(after)
    depth = depth_mm(positions_of(after))
    assert dice(labels > 0, depth > 0) > 0.95
    assert (labels[depth > EDGE_MM / 2] == 1).all()
    assert (labels[depth < -EDGE_MM / 2] == 0).all()


ORIENTATIONS = {
    "LPS": turned(1, 2, 3),
    "RAS": turned(-1, -2, 3),
    "LAS": turned(1, -2, 3),
    "RPI": turned(-1, 2, -3),
    "PLI": turned(2, 1, -3),
    "coronal": turned(1, -3, 2),
    "sagittal": turned(2, -3, 1),
    "ASR": turned(-2, 3, -1),
    "SLA": turned(3, 1, -2),
    "IRP": turned(-3, -1, 2),
    "oblique": rotated(turned(1, 2, 3), 17),
    "oblique, flipped": rotated(turned(-1, 2, -3), -23),
    "oblique, sagittal": rotated(turned(2, -3, 1), 31),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_comes_back_in_place(tmp_path: Path, orientation: str) -> None:
    path, result = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), ORIENTATIONS[orientation]), str(path))
    volume = read_volume(path)
    labels = Segmenter(plan_of(), [threshold])(volume)
    assert labels.dtype == np.uint8
    assert labels.shape == volume.space.shape
    write_labels(result, labels, volume.source)
    check_in_place(path, result)


@pytest.mark.parametrize(
    ("size", "spacing_mm", "patch"),
    [
        ((45, 47, 21), (2.3, 2.3, 5.0), (16, 24, 20)),  # thick slices
        ((45, 47, 40), (2.3, 2.3, 2.5), (96, 96, 96)),  # smaller than the patch
        ((110, 100, 25), (1.0, 1.1, 4.0), (32, 32)),  # 2D, slice by slice
        ((22, 47, 90), (5.0, 2.3, 1.2), (16, 24, 20)),
    ],
    ids=["5 mm", "small", "2D", "thick columns"],
)
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_sizes_and_formats_come_back_in_place(tmp_path: Path, size, spacing_mm, patch, suffix: str) -> None:
    path, result = tmp_path / f"scan{suffix}", tmp_path / "labels.nii.gz"
    sitk.WriteImage(scan(size, spacing_mm, turned(-1, 2, 3)), str(path))
    volume = read_volume(path)
    write_labels(result, Segmenter(plan_of(patch), [threshold])(volume), volume.source)
    before = sitk.ReadImage(str(path))
    if max(spacing_mm) == 5.0:  # across 5 mm voxels the smooth border is one voxel wide
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(result)))
        assert dice(labels > 0, depth_mm(positions_of(before)) > 0) > 0.93
    else:
        check_in_place(path, result)


def write_dicom(folder: Path, image: sitk.Image, names: list[str]) -> None:
    """A CT series, one file per slice, whose names say nothing about the slices' order."""
    folder.mkdir()
    series, study, frame = ("1.2.826.0.1.3680043.2.1125.1" + end for end in (".1", ".2", ".3"))
    cosines = np.array(image.GetDirection()).reshape(3, 3).T[:2].ravel()
    for number, name in enumerate(names):
        piece = image[:, :, number]
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{number + 1}",
            "0008|0060": "CT",
            "0010|0020": "balls",
            "0020|000d": study,
            "0020|000e": series,
            "0020|0052": frame,
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in cosines),
            "0018|0050": f"{image.GetSpacing()[2]:.6f}",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / name))
        writer.Execute(piece)


def test_a_dicom_series_out_of_order(tmp_path: Path, checkpoint: Path) -> None:
    image = scan((47, 50, 20), (2.3, 2.1, 4.5), rotated(turned(1, 2, 3), 9))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    names = [f"{number:03d}.dcm" for number in np.random.default_rng(1).permutation(20)]
    write_dicom(tmp_path / "series", image, names)
    volume = read_volume(tmp_path / "series")
    write_labels(tmp_path / "labels.nii.gz", Segmenter(plan_of(), [threshold])(volume), volume.source)
    check_in_place(tmp_path / "scan.mha", tmp_path / "labels.nii.gz")


@pytest.mark.parametrize("kind", ["4D", "qform only", "sform and qform differ", "sheared", "without codes"])
def test_nifti_headers_are_carried_over(tmp_path: Path, kind: str) -> None:
    """The labels' header places voxels as the scan's does, whatever it says; the labels are the scan's threshold."""
    path, result = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    voxels = sitk.GetArrayFromImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(-1, 2, 3))).T
    affine = np.array([[2.3, 0, 0, -50], [0, -2.1, 0, 48.0], [0, 0, 2.8, -60], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(voxels[..., None] if kind == "4D" else voxels, affine)
    image.set_sform(affine, code=0 if kind in ("qform only", "without codes") else 2)
    image.set_qform(affine, code=0 if kind == "without codes" else 1)
    if kind == "sheared":
        image.set_sform(affine + 0.3 * np.eye(4, k=1) * (np.arange(4) < 2)[:, None], code=2)
    if kind == "sform and qform differ":
        image.set_sform(affine + np.eye(4)[:, [3, 0, 1, 2]].T * 3, code=1)
    nibabel.save(image, path)
    volume = read_volume(path)
    write_labels(result, Segmenter(plan_of(), [threshold])(volume), volume.source)
    before, after = nibabel.load(path), nibabel.load(result)
    assert after.shape == before.shape[:3]
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        np.testing.assert_array_equal(after.header[name], before.header[name])
    np.testing.assert_array_equal(after.header["pixdim"], before.header["pixdim"])
    np.testing.assert_array_equal(after.affine, before.affine)
    assert dice(np.asarray(after.dataobj) > 0, voxels > 50) > 0.97
    assert bool(volume.warnings) == (kind in ("sheared", "without codes", "sform and qform differ"))


def test_another_axis_order(tmp_path: Path) -> None:
    path, result = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    sitk.WriteImage(scan((25, 50, 47), (4.0, 2.1, 2.3), turned(1, 2, 3)), str(path))
    volume = read_volume(path)
    segmenter = Segmenter(plan_of(spacing_mm=(4.0, 2.2, 2.2), axis_order=(2, 0, 1)), [threshold])
    write_labels(result, segmenter(volume), volume.source)
    check_in_place(path, result)


def test_mirrors_batches_and_siblings_of_a_symmetric_network_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(1, 2, 3)), str(path))
    volume = read_volume(path)
    plain = Segmenter(plan_of(), [threshold], batch=1)(volume)
    for settings in ({"mirror_axes": "all"}, {"batch": 7}, {"mirror_axes": (0, 2), "step": 0.5}):
        ours = Segmenter(plan_of(), [threshold, threshold], **settings)(volume)
        assert np.count_nonzero(ours != plain) <= 2  # voxels at exactly one half
    probabilities, grid_mapping = Segmenter(plan_of(), [threshold]).probabilities(volume)
    assert probabilities.shape == (2, *grid_mapping.network_shape)


def test_settings_that_contradict_themselves() -> None:
    for settings, words in [
        ({"step": 0.0}, "step 0.0"),
        ({"batch": 0}, "batch 0"),
        ({"mirror_axes": (3,)}, r"mirror axes \[3\]"),
        ({"swap_left_right": True}, "without mirroring"),
        ({"device": "warp"}, "device 'warp'"),
        ({"mode": "quick"}, "mode 'quick'"),
        ({"accumulate": "votes"}, "accumulate 'votes'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Segmenter(plan_of(), [threshold], **settings)


@pytest.mark.parametrize("mode", ["fast", "fastest"])
def test_the_other_modes_come_back_in_place_too(tmp_path: Path, mode: str) -> None:
    path, result = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    sitk.WriteImage(scan((60, 62, 48), (1.8, 1.7, 2.3), ORIENTATIONS["oblique, sagittal"]), str(path))
    volume = read_volume(path)
    segmenter = Segmenter(plan_of(axis_order=(2, 0, 1), spacing_mm=(2.0, 2.3, 1.9)), [threshold], mode=mode)
    write_labels(result, segmenter(volume), volume.source)
    check_in_place(path, result)


def test_enforced_spacing_changes_what_is_seen_and_never_the_grid(tmp_path: Path) -> None:
    path, result = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), ORIENTATIONS["oblique, flipped"]), str(path))
    volume = read_volume(path)
    segmenter = Segmenter(plan_of(), [threshold], enforce_spacing=True)
    _, grid_mapping = segmenter.probabilities(volume)
    in_plane = [round(edge * 0.75 / 2.5) for edge in volume.space.shape[1:]]  # fewer than 150 slices: z is the scan's
    assert grid_mapping.network_shape == (round(volume.space.shape[0] * volume.space.spacing_mm[0] / 3.0), *in_plane)
    write_labels(result, segmenter(volume), volume.source)
    before, after = sitk.ReadImage(str(path)), sitk.ReadImage(str(result))
    np.testing.assert_allclose(after.GetSpacing(), before.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(after.GetOrigin(), before.GetOrigin(), atol=1e-3)
    depth = depth_mm(positions_of(before))  # voxels three times as coarse as they should be: rough, but in place
    assert dice(sitk.GetArrayFromImage(after) > 0, depth > 0) > 0.85


def test_air_and_region_leave_the_labels_as_they_are(tmp_path: Path) -> None:
    """Balls in a long scan of air: most windows hold none of them."""
    image = scan((47, 50, 200), (2.3, 2.1, 3.0), turned(1, 2, 3))
    array = sitk.GetArrayFromImage(image)
    array[array == 0] = -1000
    in_air = sitk.GetImageFromArray(array)
    in_air.CopyInformation(image)
    sitk.WriteImage(in_air, str(tmp_path / "scan.nii.gz"))
    volume = read_volume(tmp_path / "scan.nii.gz")
    seen: list[int] = []

    def counted(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        return threshold(tiles)

    expected, windows = Segmenter(plan_of(), [counted])(volume), sum(seen)
    for settings in ({"skip_air": True}, {"coarse_to_fine": True}, {"skip_air": True, "coarse_to_fine": True}):
        seen.clear()
        np.testing.assert_array_equal(Segmenter(plan_of(), [counted], **settings)(volume), expected)
        assert sum(seen) < 0.8 * windows


def test_a_budget_is_estimated_traded_and_reported(tmp_path: Path) -> None:
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(1, 2, 3)), str(tmp_path / "scan.nii.gz"))
    volume = read_volume(tmp_path / "scan.nii.gz")
    expected = Segmenter(plan_of(), [threshold])(volume)
    said: list[str] = []
    ample = Segmenter(plan_of(), [threshold], say=said.append, budget=Budget(64 * 2**30, None, 1000.0))
    np.testing.assert_array_equal(ample(volume), expected)
    assert "estimated RAM" in said[0]
    assert "of 64.0 GB" in said[0]
    assert "traded" not in said[0]
    assert "it took" in said[-1]
    said.clear()
    hasty = Segmenter(plan_of(), [threshold], say=said.append, mirror_axes="all", budget=Budget(seconds=1e-3))
    assert np.count_nonzero(hasty(volume) != expected) < 0.01 * expected.size
    for words in ("without body left out", "no mirroring", "step 1", "fastest mode"):
        assert words in said[0]
    tiny = Segmenter(plan_of(), [threshold], budget=Budget(ram_bytes=2**20))
    with pytest.raises(ConfigError, match="does not fit its budget"):
        tiny(volume)


def test_memory_that_runs_out_is_survived_and_remembered(tmp_path: Path) -> None:
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(1, 2, 3)), str(tmp_path / "scan.nii.gz"))
    volume = read_volume(tmp_path / "scan.nii.gz")
    batches: list[int] = []

    def small_gpu(tiles: torch.Tensor) -> torch.Tensor:
        batches.append(len(tiles))
        if len(tiles) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return threshold(tiles)

    said: list[str] = []
    segmenter = Segmenter(plan_of(), [small_gpu], say=said.append, batch=8)
    np.testing.assert_array_equal(segmenter(volume), Segmenter(plan_of(), [threshold])(volume))
    assert said == [
        "the GPU's memory ran out; went on with 2 windows at a time on cpu, sums in single precision on cpu"
    ]
    assert batches[:3] == [8, 4, 2]
    batches.clear()
    segmenter(volume)
    assert max(batches) == 2  # the next scan begins there


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("patch", [(8, 16, 16), (16, 16)])
def test_the_sums_estimated_are_the_quick_pass_s_where_those_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, patch: tuple[int, ...]
) -> None:
    """On larger voxels a plane has fewer windows, so a batch of 16 takes more layers of them at once."""
    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(1, 2, 3)), str(tmp_path / "scan.nii.gz"))
    volume, plan, held, reach = read_volume(tmp_path / "scan.nii.gz"), plan_of(patch), [0], SlabSums.reach

    def watched(sums: SlabSums, last: int) -> torch.Tensor:
        scores = reach(sums, last)
        held.append(4 * (scores.numel() + scores[0].numel()))
        return scores

    monkeypatch.setattr(SlabSums, "reach", watched)
    segmenter = Segmenter(plan, [threshold], device="cpu", batch=batch, coarse_to_fine=True)
    segmenter(volume)
    step = segmenter.settings.step
    assert sums_bytes(Job.of(volume.space, plan, coarse_to_fine=True), Placement(batch), (step,)) == max(held)
    if batch == 16:
        assert sums_bytes(Job.of(volume.space, plan), Placement(batch), (step,)) < max(held)
    jobs: list[Job] = []
    monkeypatch.setattr(planner, "plan_work", lambda job, *rest: jobs.append(job))
    segmenter.estimate(volume)
    assert jobs == [Job.of(volume.space, plan, coarse_to_fine=True)]


# -- checkpoints, folders and the command ----------------------------------------------------------------------------


def write_checkpoint(path: Path, siblings: int = 2, plan: Plan | None = None, seed: int = 5) -> Path:
    """A checkpoint as training writes it, of small untrained networks."""
    plan = plan or plan_of()
    torch.manual_seed(seed)
    networks = torch.nn.ModuleList(
        PlainUNet(len(plan.channels), plan.class_count, plan.topology.features, plan.topology.strides,
                  plan.topology.kernels)
        for _ in range(siblings)
    )  # fmt: skip
    state = {f"siblings.{key}": value for key, value in networks.state_dict().items()}
    torch.save({"state_dict": state, "flarecps": model_entry(plan, networks, 1)}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "last.ckpt")


@pytest.fixture
def small_scan() -> sitk.Image:
    return scan((24, 26, 22), (4.0, 4.0, 4.0), turned(1, 2, 3))


def test_siblings_and_their_average(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image) -> None:
    sitk.WriteImage(small_scan, str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    found = {which: Segmenter.load(checkpoint, which).probabilities(volume)[0] for which in ("1", "2", "average")}
    assert not torch.allclose(found["1"], found["2"], atol=1e-2)
    torch.testing.assert_close(found["average"], (found["1"] + found["2"]) / 2, atol=1e-5, rtol=0)
    control = write_checkpoint(tmp_path / "control.ckpt", siblings=1)
    assert len(Segmenter.load(control, "average").networks) == 1
    with pytest.raises(ConfigError, match="one network only"):
        Segmenter.load(control, "2")


def test_checkpoints_of_folds_are_averaged(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image, capsys) -> None:
    sitk.WriteImage(small_scan, str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    other = write_checkpoint(tmp_path / "fold1.ckpt", siblings=1, seed=6)
    pair = Segmenter.load([checkpoint, other]).probabilities(volume)[0]
    one, two = (Segmenter.load(path).probabilities(volume)[0] for path in (checkpoint, other))
    torch.testing.assert_close(pair, (one + two) / 2, atol=1e-5, rtol=0)
    assert not torch.allclose(one, two, atol=1e-2)
    words = [str(checkpoint), str(other), str(tmp_path / "scan.mha"), str(tmp_path / "out")]
    assert main(["segment", *words, "--device", "cpu"]) == 0
    written = read_volume(tmp_path / "out" / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(written, Segmenter.load([checkpoint, other], device="cpu")(volume))
    finer = write_checkpoint(tmp_path / "finer.ckpt", plan=plan_of(spacing_mm=(2.0, 2.0, 2.0)))
    with pytest.raises(ConfigError, match="its spacing_mm is"):
        Segmenter.load([checkpoint, finer])


def test_the_budget_at_the_command_line(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image, capsys) -> None:
    sitk.WriteImage(small_scan, str(tmp_path / "scan.mha"))
    words = ["segment", str(checkpoint), str(tmp_path / "scan.mha"), str(tmp_path / "out"), "--budget", "flare22"]
    assert main([*words, "--max-ram", "30G"]) == 0
    said = capsys.readouterr().err
    assert "of 30.0 GB" in said
    assert "of 216 s" in said
    assert main([*words, "--overwrite", "--max-ram", "1M"]) == 1
    assert "does not fit its budget" in capsys.readouterr().err
    assert main([*words, "--max-ram", "much"]) == 2
    assert "max ram 'much'" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Segmenter.load(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Segmenter.load(tmp_path / "missing.ckpt")


def test_a_mixed_folder_with_one_bad_scan(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image, capsys) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for name in ("a_0000.nii.gz", "b.nrrd", "d.mha"):
        sitk.WriteImage(small_scan, str(scans / name))
    whole = (scans / "a_0000.nii.gz").read_bytes()
    (scans / "c_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    assert main(["segment", str(checkpoint), str(scans), str(out)]) == 1
    said = capsys.readouterr()
    assert "3 of 4 scans segmented" in said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("c: ")]
    assert "c_0000.nii.gz" in line
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "b.nii.gz", "d.nii.gz", "dataset.json"]
    assert json.loads((out / "dataset.json").read_text())["labels"] == {"background": 0, "ball": 1}
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_relative_to(out))
    assert after == before  # nothing is written outside OUTPUT
    for name, result in (("a_0000.nii.gz", "a"), ("b.nrrd", "b"), ("d.mha", "d")):
        scanned, labels = sitk.ReadImage(str(scans / name)), sitk.ReadImage(str(out / f"{result}.nii.gz"))
        assert labels.GetSize() == scanned.GetSize()
        np.testing.assert_allclose(labels.GetOrigin(), scanned.GetOrigin(), atol=1e-3)

    # again: finished cases are skipped, the repaired one is done
    (scans / "c_0000.nii.gz").write_bytes(whole)
    (out / "a.nii.gz").write_bytes(b"mine")
    assert main(["segment", str(checkpoint), str(scans), str(out)]) == 0
    assert "1 of 4 scans segmented" in capsys.readouterr().out
    assert (out / "a.nii.gz").read_bytes() == b"mine"
    assert main(["segment", str(checkpoint), str(scans), str(out), "--overwrite"]) == 0
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "c.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "a.nii.gz"))), expected)


def test_one_scan_to_a_named_file(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image) -> None:
    sitk.WriteImage(small_scan, str(tmp_path / "scan_0000.nii.gz"))
    result = tmp_path / "new" / "organs.nii.gz"
    assert main(["segment", str(checkpoint), str(tmp_path / "scan_0000.nii.gz"), str(result)]) == 0
    assert [path.name for path in result.parent.iterdir()] == ["organs.nii.gz"]


def test_the_command_is_the_python_api(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image) -> None:
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(small_scan, str(path))
    words = ["--sibling", "average", "--step", "0.5", "--mirror-axes", "[0,1]", "--batch", "3", "--device", "cpu"]
    assert main(["segment", str(checkpoint), str(path), str(tmp_path / "out"), *words]) == 0
    segmenter = Segmenter.load(checkpoint, "average", step=0.5, mirror_axes=(0, 1), device="cpu")
    written = read_volume(tmp_path / "out" / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(segmenter(read_volume(path)), written)


def test_worker_processes_give_the_same_labels(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(small_scan, str(tmp_path / "in" / f"{name}.nii"))
    for workers in (1, 2):
        outcomes = segment_folder(checkpoint, tmp_path / "in", tmp_path / f"out{workers}", workers, progress=False)
        assert [outcome.error for outcome in outcomes] == [None, None]
    for name in ("a", "b"):
        one, two = (read_volume(tmp_path / f"out{workers}" / f"{name}.nii.gz").array for workers in (1, 2))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda folder: folder / "missing", "no such file or folder"),
        (lambda folder: folder, "no scan in this folder"),
    ],
)
def test_input_that_is_not_there(tmp_path: Path, checkpoint: Path, capsys, build, words: str) -> None:
    (tmp_path / "in").mkdir()
    assert main(["segment", str(checkpoint), str(build(tmp_path / "in")), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_bad_scans_are_answered_in_one_line(tmp_path: Path, checkpoint: Path, small_scan: sitk.Image, capsys) -> None:
    sitk.WriteImage(small_scan[:, :, :1], str(tmp_path / "thin.nii.gz"))
    voxels = sitk.GetArrayFromImage(small_scan).astype(np.float32)
    voxels[3, 4, 5] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "holes.nii.gz"))
    for name, words in (("thin", "one-slice scan"), ("holes", "NaN")):
        assert main(["segment", str(checkpoint), str(tmp_path / f"{name}.nii.gz"), str(tmp_path / "out")]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert words in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset.json"]


def test_what_results_are_called(tmp_path: Path) -> None:
    for name in ("FLARE22_Tr_0001_0000.nii.gz", "case_0002.nii.gz", "b.mha", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    names = {one.scans[0].name: one.result.name for one in requests_for(tmp_path, tmp_path / "out")}
    assert names == {
        "FLARE22_Tr_0001_0000.nii.gz": "FLARE22_Tr_0001.nii.gz",
        "case_0002.nii.gz": "case_0002.nii.gz",
        "b.mha": "b.nii.gz",
    }


def test_results_that_would_collide(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a.mha"):
        (tmp_path / name).touch()
    (a,) = requests_for(tmp_path, tmp_path / "out")
    assert "a.mha and " in a.fault
    assert "both are case 'a'" in a.fault
    (alone,) = requests_for(tmp_path / "a.mha", tmp_path / "out")
    assert (alone.name, alone.fault) == ("a", "")
    (tmp_path / "c.nii.gz").touch()
    assert [one.fault for one in requests_for(tmp_path, tmp_path / "out")] == [a.fault, ""], "the other is done"
    with pytest.raises(ConfigError, match="a file name for the results of 2 scans"):
        requests_for(tmp_path, tmp_path / "out.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.nii.gz").touch()
    with pytest.raises(ConfigError, match="would replace the scan"):
        requests_for(tmp_path / "in", tmp_path / "in")


def test_several_channels_belong_together(tmp_path: Path) -> None:
    for name in ("a_0000.nii", "a_0001.nii", "b_0001.nii", "b_0000.nii"):
        (tmp_path / name).touch()
    requests = requests_for(tmp_path, tmp_path / "out", channels=2)
    assert [(one.name, [path.name for path in one.scans]) for one in requests] == [
        ("a", ["a_0000.nii", "a_0001.nii"]),
        ("b", ["b_0000.nii", "b_0001.nii"]),
    ]
    (one,) = requests_for(tmp_path / "a_0000.nii", tmp_path / "out", channels=2)
    assert [path.name for path in one.scans] == ["a_0000.nii", "a_0001.nii"]
    (tmp_path / "b_0001.nii").unlink()
    requests = requests_for(tmp_path, tmp_path / "out", channels=2)
    assert [bool(one.fault) for one in requests] == [False, True]
    assert "b_0000.nii: case 'b' has the channels _0000; expected _0000 to _0001" in requests[1].fault


def test_a_folder_with_another_label_set_is_left_alone(
    tmp_path: Path, checkpoint: Path, small_scan: sitk.Image, capsys
) -> None:
    sitk.WriteImage(small_scan, str(tmp_path / "scan.nii.gz"))
    (tmp_path / "out").mkdir()
    theirs = '{"labels": {"background": 0, "liver": 1}, "numTraining": 3}'
    (tmp_path / "out" / "dataset.json").write_text(theirs)
    words = ["segment", str(checkpoint), str(tmp_path / "scan.nii.gz"), str(tmp_path / "out"), "--overwrite"]
    assert main(words) == 2
    assert "label set" in capsys.readouterr().err
    assert (tmp_path / "out" / "dataset.json").read_text() == theirs


def test_a_real_dicom_series(tmp_path: Path, shared_data: Path, checkpoint: Path) -> None:
    series = shared_data / "ct" / "dicom_slab"
    assert main(["segment", str(checkpoint), str(series), str(tmp_path / "out")]) == 0
    result = sitk.ReadImage(str(tmp_path / "out" / "dicom_slab.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    before = reader.Execute()
    assert result.GetSize() == before.GetSize()
    np.testing.assert_allclose(result.GetDirection(), before.GetDirection(), atol=1e-6)
    for corner in [(0, 0, 0), tuple(n - 1 for n in before.GetSize())]:
        np.testing.assert_allclose(
            result.TransformIndexToPhysicalPoint(corner), before.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )


@pytest.mark.parametrize("name", ["example_3mm/ct.nii.gz", "dicom_slab"])
def test_a_threshold_of_a_real_ct_comes_back_in_place(tmp_path: Path, shared_data: Path, name: str) -> None:
    """The body (above -200 HU) is large and smooth: on the scan's own grid it must be the scan's own threshold."""
    volume = read_volume(shared_data / "ct" / name)
    intensity = Intensity("ct", low=-1000, high=600, mean=-200, sd=200)
    labels = Segmenter(plan_of((24, 48, 48), (3.0, 2.5, 2.5), intensity=intensity), [threshold])(volume)
    assert labels.shape == volume.space.shape
    assert dice(labels > 0, volume.array[0] > -200) > 0.97
