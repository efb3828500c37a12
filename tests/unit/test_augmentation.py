"""Each transform's effect, its probability, and that spatial ones move image and labels together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import ndimage

from flarecps.data.augmentation import AugmentationSettings, patch_augmentation
from flarecps.data.intensity_transforms import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    LowResolution,
    around_one,
)
from flarecps.data.spatial_transforms import Mirror, PatchPose, RotationAndScaling, sample_labels, swapped_ids
from flarecps.errors import ConfigError
from flarecps.planning.plan import Intensity, Plan, Topology


def a_plan(dimensions=3, axis_order=(0, 1, 2), pairs=((2, 3),)) -> Plan:
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    return Plan(
        dataset="test",
        dimensions=dimensions,
        labels={"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3},
        left_right_pairs=pairs,
        channels=("CT",),
        spacing_mm=(2.0, 1.0, 1.0),
        axis_order=axis_order,
        median_shape_voxels=(40, 40, 40),
        patch_voxels=(16,) * dimensions,
        topology=Topology((8, 16), (ones, twos), (threes, threes)),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=True,
        intensity=Intensity("ct", -100, 300, 0, 100),
        fingerprint={},
        memory_gb=1.0,
    )


def a_subject(image: np.ndarray, labels: np.ndarray | None = None, seed: int = 0) -> tio.Subject:
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(image.astype(np.float32))))
    if labels is not None:
        subject.add_image(tio.LabelMap(tensor=torch.from_numpy(labels[None])), "labels")
    subject["generator"] = np.random.default_rng(seed)
    return subject


def smooth_noise(shape, sigma=2.0, seed=0) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma).astype(np.float32)


def some_labels(shape, seed=0) -> np.ndarray:
    return np.digitize(smooth_noise(shape, seed=seed), [-0.03, 0.0, 0.03]).astype(np.uint8)


def a_rotation(patch, in_plane=False, rotation=1.0, scaling=1.0) -> RotationAndScaling:
    return RotationAndScaling(patch, in_plane, rotation, 30.0, scaling, (0.7, 1.4))


# --- rotation and scaling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_plane", [False, True])
def test_rotated_patch_equals_an_affine_sampling_of_the_whole_scan(in_plane):
    scan = smooth_noise((40, 44, 42))
    patch, lower = (10, 12, 14), (15, 16, 14)
    step = a_rotation(patch, in_plane)
    pose = step.draw_pose(np.random.default_rng(5))
    offset, shape = pose.reach(patch)
    start = np.array(lower) + offset
    region = scan[tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))]
    assert region.shape == shape
    subject = a_subject(region[None])
    subject["pose"] = pose
    centre = (np.array(patch) - 1) / 2
    expected = ndimage.affine_transform(
        scan, pose.matrix, offset=np.array(lower) + centre - pose.matrix @ centre, output_shape=patch, order=1
    )
    np.testing.assert_allclose(step(subject).image.data.numpy()[0], expected, atol=2e-5)


@pytest.mark.parametrize("in_plane", [False, True])
def test_labels_are_the_argmax_of_linearly_interpolated_one_hot_maps(in_plane):
    labels = some_labels((30, 32, 34))
    patch = (10, 12, 14)
    pose = a_rotation(patch, in_plane).draw_pose(np.random.default_rng(2))
    offset, shape = pose.reach(patch)
    start = np.array((9, 9, 9)) + offset
    region = labels[tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))]
    places = pose.coordinates(patch)
    if in_plane:
        sampled = sample_labels(region, places)
        one_hot = [np.stack([ndimage.map_coordinates((one == c) * 1.0, places, order=1) for one in region])
                   for c in range(4)]  # fmt: skip
    else:
        sampled = sample_labels(region[None], places)[0]
        one_hot = [ndimage.map_coordinates((region == c) * 1.0, places, order=1) for c in range(4)]
    shares = np.sort(np.stack(one_hot), axis=0)
    is_tie = shares[-1] - shares[-2] < 1e-4
    assert sampled.dtype == np.uint8
    assert is_tie.mean() < 0.01
    np.testing.assert_array_equal(sampled[~is_tie], np.stack(one_hot).argmax(axis=0)[~is_tie])


def test_image_and_labels_move_together():
    block = np.zeros((24, 24, 24), dtype=np.uint8)
    block[4:14, 6:20, 3:12] = 3
    patch = (16, 16, 16)
    step = a_rotation(patch)
    for seed in range(5):
        pose = step.draw_pose(np.random.default_rng(seed))
        (_, shape) = pose.reach(patch)
        padded = np.zeros(shape, dtype=np.uint8)
        inside = tuple(slice(0, min(24, size)) for size in shape)
        padded[inside] = block[inside]
        subject = a_subject(padded[None] / 3, padded)
        subject["pose"] = pose
        moved = step(subject)
        assert moved.image.data.shape == moved.labels.data.shape == (1, *patch)
        assert moved.labels.data.dtype == torch.uint8
        image = moved.image.data.numpy()
        sure = np.abs(image - 0.5) > 1e-3
        np.testing.assert_array_equal((image > 0.5)[sure], (moved.labels.data.numpy() == 3)[sure])
        assert (moved.labels.data == 3).any()


def test_quarter_turn_is_exact():
    scan = smooth_noise((9, 9, 9))
    quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    step, pose = a_rotation((9, 9, 9)), PatchPose(quarter, in_plane=False)
    offset, shape = pose.reach((9, 9, 9))
    region = np.pad(scan, [(-low, size - 9 + low) for low, size in zip(offset, shape, strict=True)])
    subject = a_subject(region[None])
    subject["pose"] = pose
    turned = step(subject).image.data.numpy()[0]
    assert min(np.abs(turned - np.rot90(scan, turns, axes=(1, 2))).max() for turns in (1, 3)) < 1e-5
    assert np.abs(turned - scan).max() > 1e-2


def test_factor_above_one_shrinks_the_anatomy():
    scan = np.zeros((41, 41, 41), dtype=np.uint8)
    scan[12:29, 12:29, 12:29] = 1  # 17 voxels wide
    patch = (21, 21, 21)
    widths = {}
    for factor in (0.7, 1.4):
        pose = PatchPose(np.eye(3) * factor, in_plane=False)
        offset, shape = pose.reach(patch)
        begin = np.array((10, 10, 10)) + offset
        region = scan[tuple(slice(low, low + size) for low, size in zip(begin, shape, strict=True))]
        widths[factor] = sample_labels(region[None], pose.coordinates(patch))[0, 10, 10].sum()
    assert widths == {0.7: 21, 1.4: 13}  # 17 / 0.7 fills the patch; 17 / 1.4 = 12.1, counted symmetrically


def test_patch_without_a_pose_is_untouched():
    step = a_rotation((8, 8, 8), rotation=0.0, scaling=0.0)
    assert step.draw_pose(np.random.default_rng(0)) is None
    image = smooth_noise((1, 8, 8, 8))
    np.testing.assert_array_equal(step(a_subject(image)).image.data.numpy(), image)


def test_angles_and_factors_fill_their_ranges():
    step = a_rotation((8, 8, 8), in_plane=True, rotation=1.0, scaling=1.0)
    matrices = [step.draw_pose(np.random.default_rng(seed)).matrix for seed in range(500)]
    factors = np.array([np.sqrt(np.linalg.det(matrix[1:, 1:])) for matrix in matrices])
    angles = np.array([np.degrees(np.arctan2(matrix[2, 1], matrix[1, 1])) for matrix in matrices])
    assert all(np.array_equal(matrix[0], [1, 0, 0]) for matrix in matrices)
    assert factors.min() > 0.7
    assert factors.max() < 1.4
    assert np.abs(angles).max() < 30
    assert np.abs(angles).max() > 29
    assert abs(factors.mean() - 1.05) < 0.04


# --- mirroring -----------------------------------------------------------------------------------------------------


def test_mirror_reverses_image_and_labels_and_swaps_sides_only_left_to_right():
    image, labels = smooth_noise((1, 6, 7, 8)), some_labels((6, 7, 8))
    swaps = swapped_ids(4, [(2, 3)])
    assert {2, 3} <= set(np.unique(labels))
    seen = set()
    for seed in range(40):
        mirrored = Mirror((0, 1, 2), 0.5, swaps, lateral_axis=2)(a_subject(image, labels, seed))
        for axes in itertools.chain.from_iterable(itertools.combinations((0, 1, 2), n) for n in range(4)):
            if np.array_equal(mirrored.image.data.numpy()[0], np.flip(image[0], axes)):
                break
        seen.add(axes)
        expected = np.flip(labels, axes)
        if 2 in axes:
            expected = np.where(expected == 2, 3, np.where(expected == 3, 2, expected))
        np.testing.assert_array_equal(mirrored.labels.data.numpy()[0], expected)
        assert mirrored.labels.data.dtype == torch.uint8
    assert len(seen) == 8


def test_mirror_keeps_to_its_axes():
    image = smooth_noise((1, 6, 7, 8))
    for seed in range(20):
        mirrored = Mirror((1,), 0.5)(a_subject(image, seed=seed)).image.data.numpy()
        assert np.array_equal(mirrored, image) or np.array_equal(mirrored, image[:, :, ::-1])


def test_lateral_axis_is_found_through_the_plans_axis_order():
    settings = AugmentationSettings()
    for order, lateral in (((0, 1, 2), 2), ((2, 0, 1), 0), ((1, 2, 0), 1)):
        augmentation = patch_augmentation(settings, a_plan(axis_order=order), (16, 16, 16), None, True)
        assert augmentation.steps[-1].lateral_axis == lateral


# --- intensities ---------------------------------------------------------------------------------------------------

SHAPE = (1, 20, 21, 22)


def changed(step, image, seed=1):
    labels = some_labels(image.shape[1:])
    subject = step(a_subject(image.copy(), labels, seed))
    np.testing.assert_array_equal(subject.labels.data.numpy()[0], labels)
    result = subject.image.data.numpy()
    assert result.dtype == np.float32
    assert not np.array_equal(result, image)
    return result


def test_noise_has_the_drawn_sd():
    image = smooth_noise(SHAPE)
    sds = [(changed(GaussianNoise(1.0, (0.0, 0.1)), image, seed) - image).std() for seed in range(60)]
    assert 0.09 < max(sds) < 0.102
    assert min(sds) < 0.01
    noise = changed(GaussianNoise(1.0, (0.1, 0.1)), image) - image
    assert abs(noise.std() - 0.1) < 0.003
    assert abs(noise.mean()) < 0.005


def test_blur_is_a_gaussian_along_every_axis():
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected = ndimage.gaussian_filter(image[0].astype(np.float64), 0.8, mode="mirror")
    np.testing.assert_allclose(changed(GaussianBlur(1.0, (0.8, 0.8)), image)[0], expected, atol=1e-5)


def test_blur_leaves_a_single_slice_single():
    image = np.random.default_rng(0).normal(size=(1, 1, 20, 20)).astype(np.float32)
    expected = ndimage.gaussian_filter(image[0, 0].astype(np.float64), 0.8, mode="mirror")
    np.testing.assert_allclose(changed(GaussianBlur(1.0, (0.8, 0.8)), image)[0, 0], expected, atol=1e-5)


def test_brightness_multiplies():
    image = smooth_noise(SHAPE) + 1
    ratio = changed(Brightness(1.0, (0.75, 1.25)), image) / image
    assert np.ptp(ratio) < 1e-5
    assert 0.75 <= ratio.mean() <= 1.25


def test_contrast_spreads_about_the_mean_within_the_old_range():
    image = smooth_noise(SHAPE) + 3
    result = changed(Contrast(1.0, (1.25, 1.25)), image)
    mean = image.mean()
    np.testing.assert_allclose(result, np.clip(mean + 1.25 * (image - mean), image.min(), image.max()), atol=1e-5)
    assert (result == image.max()).sum() > 1  # something was clamped


def test_low_resolution_loses_detail_and_keeps_the_grid():
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    result = changed(LowResolution(1.0, (0.5, 0.5), 1.0, in_plane=False), image)
    small = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size=(10, 10, 11), mode="nearest-exact")
    expected = torch.nn.functional.interpolate(small, size=SHAPE[1:], mode="trilinear")
    np.testing.assert_allclose(result, expected[0].numpy(), atol=1e-6)


def test_low_resolution_in_plane_keeps_slices_apart():
    image = np.zeros(SHAPE, dtype=np.float32)
    image[:, 7] = np.random.default_rng(0).normal(size=SHAPE[2:])
    result = changed(LowResolution(1.0, (0.5, 0.5), 1.0, in_plane=True), image)
    assert np.flatnonzero(np.abs(result[0]).sum(axis=(1, 2))).tolist() == [7]


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_and_sd_and_bends_the_middle(inverted):
    image = smooth_noise(SHAPE)
    result = changed(Gamma(1.0, (1.5, 1.5), inverted), image)
    assert abs(result.mean() - image.mean()) < 1e-4
    assert abs(result.std() / image.std() - 1) < 1e-3
    order = np.argsort(image.ravel())
    assert np.all(np.diff(result.ravel()[order]) >= -1e-6)  # still monotone
    turned = -image.astype(np.float64) if inverted else image.astype(np.float64)
    scaled = ((turned - turned.min()) / np.ptp(turned)) ** 1.5
    scaled = (scaled - scaled.mean()) / scaled.std() * turned.std() + turned.mean()
    np.testing.assert_allclose(result, -scaled if inverted else scaled, atol=1e-4)


def test_constant_images_stay_finite():
    image = np.full(SHAPE, 2.0, dtype=np.float32)
    for step in (Gamma(1.0, (1.5, 1.5), True), Contrast(1.0, (1.2, 1.2)), LowResolution(1.0, (0.5, 0.5), 1.0, False)):
        np.testing.assert_allclose(step(a_subject(image.copy())).image.data.numpy(), image, atol=1e-5)


def test_factors_around_one_are_half_below_half_above():
    generator = np.random.default_rng(0)
    factors = np.array([around_one(generator, (0.7, 1.5)) for _ in range(4000)])
    assert abs((factors < 1).mean() - 0.5) < 0.03
    assert abs(factors[factors < 1].mean() - 0.85) < 0.01
    assert abs(factors[factors > 1].mean() - 1.25) < 0.01
    assert around_one(generator, (1.2, 1.2)) == 1.2


# --- the whole set -------------------------------------------------------------------------------------------------


def test_every_step_happens_as_often_as_nnunet_does_it():
    settings = AugmentationSettings(low_resolution_zoom=(0.5, 0.8))  # nearer to 1, four voxels would stay four
    augmentation = patch_augmentation(settings, a_plan(), (16, 16, 16))
    draws = 3000
    image = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    expected = {
        GaussianNoise: [0.1],
        GaussianBlur: [0.1],
        Brightness: [0.15],
        Contrast: [0.15],
        LowResolution: [0.125],
        Gamma: [0.1, 0.3],
        Mirror: [1 - 0.5**3],
    }
    found: dict[type, list[float]] = {}
    for step in augmentation.steps:
        generator = np.random.default_rng(11)
        count = 0
        for _ in range(draws):
            subject = a_subject(image.copy())
            subject["generator"] = generator
            count += not np.array_equal(step(subject).image.data.numpy(), image)
        found.setdefault(type(step), []).append(count / draws)
    assert list(found) == list(expected)
    for kind, shares in expected.items():
        tolerance = 4 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / draws)
        assert np.all(np.abs(np.array(found[kind]) - shares) < tolerance), (kind, found[kind])
    inverted = [step.inverted for step in augmentation.steps if isinstance(step, Gamma)]
    assert inverted == [True, False]


def test_rotation_and_scaling_are_independent_coins():
    step = patch_augmentation(AugmentationSettings(), a_plan(), (16, 16, 16)).spatial
    generator = np.random.default_rng(1)
    poses = [step.draw_pose(generator) for _ in range(3000)]
    moved = [pose for pose in poses if pose is not None]
    turned = sum(np.abs(pose.matrix - np.diag(np.diag(pose.matrix))).max() > 0 for pose in moved)
    scaled = sum(abs(np.linalg.det(pose.matrix) - 1) > 1e-6 for pose in moved)
    assert abs(turned / 3000 - 0.2) < 0.03
    assert abs(scaled / 3000 - 0.2) < 0.03
    assert abs(len(moved) / 3000 - 0.36) < 0.035


@pytest.mark.parametrize(
    ("patch", "in_plane", "degrees"),
    [
        ((112, 160, 128), False, 30),
        ((40, 224, 192), True, 180),
        ((64, 192, 192), False, 30),
        ((512, 512), True, 180),
        ((512, 256), True, 15),
    ],
)
def test_anisotropic_and_flat_patches_are_turned_in_plane(patch, in_plane, degrees):
    augmentation = patch_augmentation(AugmentationSettings(), a_plan(len(patch)), patch)
    assert augmentation.spatial.in_plane is in_plane
    assert augmentation.spatial.rotation_degrees == degrees
    assert augmentation.steps[4].in_plane is in_plane
    assert augmentation.steps[-1].axes == ((1, 2) if len(patch) == 2 else (0, 1, 2))


def test_no_global_generator_is_touched():
    augmentation = patch_augmentation(AugmentationSettings(mirror_probability=1.0), a_plan(), (16, 16, 16))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - watched, not used
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in range(20):
        subject = a_subject(smooth_noise((1, 16, 16, 16)), some_labels((16, 16, 16)), seed)
        augmentation(subject)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"gamma_probability is 1\.5"):
        AugmentationSettings(gamma_probability=1.5)
    with pytest.raises(ConfigError, match="scaling_range"):
        AugmentationSettings(scaling_range=(1.4, 0.7))
    with pytest.raises(ConfigError, match=r"mirror_axes is \[2\].*0 row, 1 column"):
        patch_augmentation(AugmentationSettings(), a_plan(2), (16, 16), mirror_axes=[2])
    with pytest.raises(ConfigError, match="left_right_pairs"):
        patch_augmentation(AugmentationSettings(), a_plan(pairs=()), (16, 16, 16), swap_left_right=True)
