"""One case on the network's grid and back: crop, resampling, axis order, samples, intensities."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from flarecps.errors import ScanError
from flarecps.inference.export import scan_labels
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.preprocessing.case import GridMapping, labels_to_scan, network_shape, prepare_case
from flarecps.preprocessing.intensity import channel_statistics, normalise
from flarecps.preprocessing.store_writing import sample_voxels
from flarecps.volumes.io import Source, Volume, read_labels, read_volume
from flarecps.volumes.resampling import resample, resample_labels
from flarecps.volumes.space import CANONICAL_DIRECTION, Space, canonical_reorientation

GENERATOR = np.random.default_rng(3)


def a_plan(spacing_mm: tuple = (2.0, 1.0, 1.0), axis_order: tuple = (0, 1, 2), **changes) -> Plan:
    plan = Plan(
        dataset="small",
        dimensions=3,
        labels={"background": 0, "one": 1, "two": 2, "three": 3},
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=spacing_mm,
        axis_order=axis_order,
        median_shape_voxels=(20, 20, 20),
        patch_voxels=(8, 8, 8),
        topology=Topology((4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=False,
        intensity=Intensity("ct", -200.0, 300.0, 40.0, 80.0),
        fingerprint={},
        memory_gb=1.0,
    )
    return replace(plan, **changes)


def a_volume(array: np.ndarray, spacing_mm: tuple = (2.0, 1.0, 1.0)) -> Volume:
    space = Space.canonical(array.shape[1:], spacing_mm)
    source = Source(Path("scan.nii.gz"), space, canonical_reorientation(CANONICAL_DIRECTION), "nifti")
    return Volume(array, space, source)


def a_scan(shape: tuple = (12, 14, 16)) -> tuple[np.ndarray, np.ndarray]:
    """HU inside a box, fill of -2000 around it, and blocks of three labels inside."""
    image = np.full((1, *shape), -2000, np.int16)
    image[0, 1:-2, 2:-1, 3:-3] = GENERATOR.integers(-300, 400, (shape[0] - 3, shape[1] - 3, shape[2] - 6))
    labels = np.zeros((1, *shape), np.uint8)
    labels[0, 2:6, 3:8, 4:9] = 1
    labels[0, 6:9, 3:12, 4:12] = 2
    labels[0, 3:5, 9:12, 10:13] = 3
    return image, labels


def test_a_grid_beyond_this_machines_memory_is_refused_before_it_is_made() -> None:
    image, _ = a_scan()
    with pytest.raises(ScanError, match=r"scan\.nii\.gz: .* voxels of 90×90×90 mm become .* correct the header"):
        prepare_case(a_volume(image, (90.0, 90.0, 90.0)), a_plan((0.01, 0.01, 0.01)))
    with pytest.raises(ScanError, match="correct the header"):
        network_shape((20, 20, 20), (90.0, 90.0, 90.0), a_plan((0.01, 0.01, 0.01)))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_without_resampling_the_way_back_is_exact(order: tuple) -> None:
    image, labels = a_scan()
    spacing = (2.0, 1.0, 0.5)
    plan = a_plan(tuple(spacing[axis] for axis in order), order)
    prepared = prepare_case(a_volume(image, spacing), plan, a_volume(labels, spacing))
    inside = image[0, 1:-2, 2:-1, 3:-3]
    assert prepared.image.dtype == np.int16
    np.testing.assert_array_equal(prepared.image[0], inside.transpose(order))
    assert prepared.labels is not None
    assert prepared.image.shape[1:] == prepared.labels.shape == prepared.grid_mapping.network_shape
    np.testing.assert_array_equal(labels_to_scan(prepared.labels, prepared.grid_mapping), labels[0])
    one_hot = np.eye(4, dtype=np.float32)[prepared.labels].transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(scan_labels([torch.from_numpy(one_hot)], prepared.grid_mapping), labels[0])


def test_a_resampled_case_is_the_resampled_crop() -> None:
    image, labels = a_scan()
    prepared = prepare_case(a_volume(image), a_plan((2.0, 1.6, 1.6)), a_volume(labels))
    inside = image[:, 1:-2, 2:-1, 3:-3].astype(np.float32)
    shape = (9, round(11 / 1.6), round(10 / 1.6))
    np.testing.assert_array_equal(prepared.image, np.rint(resample(inside, shape)).astype(np.int16))
    np.testing.assert_array_equal(prepared.labels, resample_labels(labels[0, 1:-2, 2:-1, 3:-3], shape))
    assert prepared.statistics["mean"] == [pytest.approx(inside.mean())]
    back = labels_to_scan(prepared.labels, prepared.grid_mapping)
    assert back.shape == (12, 14, 16)
    assert set(np.unique(back)) <= {0, 1, 2, 3}
    assert 2 * np.sum((back == 2) & (labels[0] == 2)) / (np.sum(back == 2) + np.sum(labels == 2)) > 0.7
    outside = np.ones(back.shape, bool)
    outside[1:-2, 2:-1, 3:-3] = False
    assert not back[outside].any()


def test_thick_slices_are_resampled_apart_both_ways() -> None:
    """Spacing 6×1×1 against 3×1×1 mm: slices repeat, and the way back returns each one."""
    image, labels = a_scan()
    prepared = prepare_case(
        a_volume(image, (6.0, 1.0, 1.0)), a_plan((3.0, 1.0, 1.0)), a_volume(labels, (6.0, 1.0, 1.0))
    )
    np.testing.assert_array_equal(prepared.image[0], image[0, 1:-2, 2:-1, 3:-3].repeat(2, axis=0))
    assert prepared.labels is not None
    np.testing.assert_array_equal(labels_to_scan(prepared.labels, prepared.grid_mapping), labels[0])


def test_probabilities_go_back_linearly_class_by_class() -> None:
    image, _ = a_scan()
    grid_mapping = prepare_case(a_volume(image), a_plan((2.0, 2.0, 2.0), (0, 2, 1))).grid_mapping
    probabilities = GENERATOR.random((4, *grid_mapping.network_shape)).astype(np.float32)
    canonical = probabilities.transpose(0, 1, 3, 2)
    expected = np.zeros((12, 14, 16), np.uint8)
    expected[1:-2, 2:-1, 3:-3] = resample(canonical, (9, 11, 10), order=1).argmax(axis=0)
    np.testing.assert_array_equal(scan_labels([torch.from_numpy(probabilities)], grid_mapping), expected)


def test_in_2d_slices_stay_where_they_are() -> None:
    image, labels = a_scan()
    plan = a_plan((5.0, 2.0, 2.0), dimensions=2)
    prepared = prepare_case(a_volume(image, (2.5, 1.0, 1.0)), plan, a_volume(labels, (2.5, 1.0, 1.0)))
    assert prepared.image.shape == (1, 9, 6, 5)
    assert prepared.grid_mapping.network_spacing_mm == (2.5, 2.0, 2.0)


def test_other_modalities_keep_their_numbers() -> None:
    image = GENERATOR.random((2, 6, 7, 8)).astype(np.float32) * 3000 - 1500
    plan = a_plan(channels=("T1", "T2"), intensity=Intensity("zscore"))
    prepared = prepare_case(a_volume(image), plan)
    assert prepared.image.dtype == np.float32
    assert prepared.labels is None
    np.testing.assert_array_equal(prepared.image, image)
    scaled = normalise(prepared.image, plan.intensity, prepared.statistics)
    np.testing.assert_allclose(scaled.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=(1, 2, 3)), 1, atol=1e-5)


def test_ct_is_clipped_and_scaled_by_the_plan() -> None:
    values = np.array([-1024, -200, 0, 40, 300, 3000], np.int16)
    scaled = normalise(values.reshape(1, 1, 1, -1), Intensity("ct", -200.0, 300.0, 40.0, 80.0), {})
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.ravel(), [-3, -3, -0.5, 0, 3.25, 3.25], atol=1e-6)


def test_a_constant_scan_becomes_zero() -> None:
    image = np.full((1, 2, 3, 4), 7.0, np.float32)
    assert not normalise(image, Intensity("zscore"), channel_statistics(image)).any()


def test_the_way_back_travels_as_json() -> None:
    image, _ = a_scan()
    grid_mapping = prepare_case(a_volume(image), a_plan((2.0, 1.6, 1.7))).grid_mapping
    assert GridMapping.from_dict(json.loads(json.dumps(asdict(grid_mapping)))) == grid_mapping


@pytest.mark.parametrize("target", [(4.0, 2.0, 2.0), (2.0, 8.0, 2.0)], ids=["halved", "rows by nearest neighbour"])
def test_ties_of_labels_fall_alike_in_every_order_of_storage(target: tuple, tmp_path: Path) -> None:
    """Halving puts every voxel midway between two: image and labels, each in any of 48 orders, give one result."""
    rng = np.random.default_rng(8)
    image, labels = rng.integers(-300, 400, (10, 12, 14)), rng.integers(0, 4, (10, 12, 14))
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    orders = [np.column_stack(pair) for pair in product(permutations(range(3)), product((1, -1), repeat=3))]
    plan = a_plan(target)
    results = []
    for number, (order, other) in enumerate(zip(orders, orders[17:] + orders[:17], strict=True)):
        paths = [tmp_path / f"{number}_{name}.nii" for name in ("image", "labels")]
        for path, array, way in zip(paths, (image, labels), (order, other), strict=True):
            nibabel.save(nibabel.Nifti1Image(array.astype(np.int16).T, affine).as_reoriented(way), path)
        results.append(prepare_case(read_volume(paths[0]), plan, read_labels(paths[1])))
        for path in paths:
            path.unlink()
    for one in results[1:]:
        np.testing.assert_array_equal(one.image, results[0].image)
        np.testing.assert_array_equal(one.labels, results[0].labels)
    grid_mapping = results[0].grid_mapping
    assert grid_mapping.network_shape == ((5, 6, 7) if target[1] == 2.0 else (10, 2, 7))


def test_what_does_not_belong_together() -> None:
    image, labels = a_scan()
    with pytest.raises(ScanError, match="case 'patient' has 1 channels; the plan expects 2"):
        prepare_case(a_volume(image), a_plan(channels=("CT", "CT")), name="patient")
    with pytest.raises(ScanError, match="not on the grid of its image"):
        prepare_case(a_volume(image), a_plan(), a_volume(labels, (2.0, 1.0, 1.1)))
    labels[0, 0, 0, 0] = 200
    with pytest.raises(ScanError, match=r"value 200.*dataset\.json"):
        prepare_case(a_volume(image), a_plan(), a_volume(labels))
    grid_mapping = prepare_case(a_volume(image), a_plan()).grid_mapping
    with pytest.raises(ValueError, match="network grid"):
        labels_to_scan(np.zeros((3, 3, 3), np.uint8), grid_mapping)


@pytest.mark.parametrize("edge", [3, 30, 110])
def test_samples_are_true_voxels_as_many_as_nnunet_keeps(edge: int) -> None:
    labels = np.zeros((edge, edge, edge + 2), np.uint8)
    labels[:, :, :-2] = 5
    labels[0, 0, -1] = 2
    samples = sample_voxels(labels, "patient")
    count = edge**3
    assert {label: len(voxels) for label, voxels in samples.items()} == {
        2: 1, 5: max(min(10000, count), math.ceil(0.01 * count)),
    }  # fmt: skip
    assert all((labels[tuple(voxels.T)] == label).all() for label, voxels in samples.items())
    assert len(np.unique(samples[5], axis=0)) == len(samples[5])
    again = sample_voxels(labels, "patient")
    np.testing.assert_array_equal(samples[5], again[5])
    if edge == 30:
        assert not np.array_equal(samples[5], sample_voxels(labels, "another patient")[5])
