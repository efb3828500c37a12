"""The sliding window against brute force and scipy; constant networks; padding; batches; mirroring."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from flarecps.inference.mirroring import Mirroring, lateral_patch_axis
from flarecps.inference.sliding_window import gaussian_weights, predict_probabilities, window_count, windows
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.typing import Triple


def local_network(classes: int, dimensions: int, seed: int = 0):
    """A network that answers differently near a patch's border (zero padding), as real ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dimensions]
        return conv(1, classes, 3, padding=1).eval()


def brute_force(network, image: np.ndarray, patch, step: float, logits: bool = False) -> np.ndarray:
    """Every voxel's weighted mean with an explicit sum of weights in float64; image not smaller than patch."""
    impulse = np.zeros(patch)
    impulse[tuple(p // 2 for p in patch)] = 1
    weights = gaussian_filter(impulse, [p / 8 for p in patch], mode="constant")
    weights /= weights.max()
    total, norm = 0.0, np.zeros(image.shape[1:])
    starts = []
    for length, size in zip(image.shape[1:], patch, strict=True):
        count = int(np.ceil((length - size) / (size * step))) + 1
        starts.append([int(np.round((length - size) / max(count - 1, 1) * i)) for i in range(count)])
    for corner in itertools.product(*starts):
        place = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        with torch.no_grad():
            out = network(torch.from_numpy(image[(slice(None), *place)])[None])[0]
        out = (out if logits else out.softmax(0)).double().numpy()
        part = np.zeros((out.shape[0], *image.shape[1:]))
        part[(slice(None), *place)] = out * weights
        total = total + part
        norm[place] += weights
    mean = total / norm
    return torch.from_numpy(mean).softmax(0).numpy() if logits else mean


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, 17, 14, 21)).astype(np.float32)


@pytest.mark.parametrize("step", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("patch", [1, 2, 5, 8, 32])
def test_windows_cover_the_axis_from_end_to_end(patch: int, step: float) -> None:
    for length in range(1, 90):
        (starts,) = windows((length,), (patch,), step)
        if length <= patch:
            assert starts == (0,)
            continue
        assert starts[0] == 0
        assert starts[-1] == length - patch
        strides = np.diff(starts)
        assert strides.min() >= 1  # no window twice
        assert strides.max() <= max(patch * step, 1) + 1
        assert strides.max() <= patch  # no gap


def test_windows_are_nnunets() -> None:
    # counted by hand from n = ceil((L - P) / (P step)) + 1
    assert windows((250, 400, 400), (112, 160, 128), 0.7) == (
        (0, 69, 138),
        (0, 80, 160, 240),
        (0, 68, 136, 204, 272),
    )
    assert windows((64, 112), (64, 64), 0.5) == ((0,), (0, 24, 48))


@pytest.mark.parametrize("step", [0, -0.5, 1.1])
def test_a_step_that_skips_voxels_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step is"):
        windows((64,), (32,), step)


@pytest.mark.parametrize("patch", [(8, 10, 7), (16, 32), (112, 5, 1)])
def test_gaussian_against_scipy(patch: tuple[int, ...]) -> None:
    impulse = np.zeros(patch)
    impulse[tuple(p // 2 for p in patch)] = 1
    reference = gaussian_filter(impulse, [p / 8 for p in patch], mode="constant")
    weights = gaussian_weights(patch)
    np.testing.assert_allclose(weights.numpy(), reference / reference.max(), rtol=1e-5)
    assert weights.min() > 0
    assert weights.max() == weights[tuple(p // 2 for p in patch)] == 1


@pytest.mark.parametrize("accumulate", ["softmax", "logits"])
def test_tiling_against_brute_force(image: np.ndarray, accumulate) -> None:
    network = local_network(3, 3)
    ours = predict_probabilities(network, torch.from_numpy(image), (8, 6, 9), 3, step=0.7, accumulate=accumulate)
    reference = brute_force(network, image, (8, 6, 9), 0.7, logits=accumulate == "logits")
    np.testing.assert_allclose(ours.numpy(), reference, atol=2e-6)
    np.testing.assert_allclose(ours.sum(0).numpy(), 1, atol=2e-6)


def test_2d_network_is_brute_force_slice_by_slice(image: np.ndarray) -> None:
    network = local_network(3, 2)
    ours = predict_probabilities(network, torch.from_numpy(image), (6, 9), 3, step=0.5, batch=5).numpy()
    for s in range(image.shape[1]):
        np.testing.assert_allclose(ours[:, s], brute_force(network, image[:, s], (6, 9), 0.5), atol=2e-6)


@pytest.mark.parametrize("shape", [(17, 14, 21), (3, 40, 5), (8, 6, 9), (1, 1, 1)])
@pytest.mark.parametrize("patch", [(8, 6, 9), (6, 9)])
def test_a_constant_network_gives_that_constant_everywhere(shape, patch) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1])

    def constant(tiles: torch.Tensor) -> torch.Tensor:
        return logits.reshape(1, 4, *(1,) * len(patch)).expand(len(tiles), 4, *patch)

    ours = predict_probabilities(constant, torch.randn(1, *shape), patch, 4)
    assert ours.shape == (4, *shape)
    expected = logits.softmax(0).reshape(4, 1, 1, 1).expand_as(ours)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_small_images_are_padded_with_zero_and_cut_back() -> None:
    image = torch.randn(1, 3, 20, 5)
    seen = []

    def network(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tiles.clone())
        return torch.cat([tiles, -tiles], dim=1)

    ours = predict_probabilities(network, image, (8, 6, 9), 2, batch=2)
    torch.testing.assert_close(ours, torch.cat([image, -image]).softmax(0), atol=1e-6, rtol=1e-5)
    tile = torch.cat(seen)[0, 0]
    torch.testing.assert_close(tile[2:5, :, 2:7], image[0, :, :6])
    assert tile[:2].abs().sum() == tile[5:].abs().sum() == tile[..., :2].abs().sum() == tile[..., 7:].abs().sum() == 0


@pytest.mark.parametrize("patch", [(8, 6, 9), (6, 9)])
def test_the_batch_of_windows_changes_nothing(image: np.ndarray, patch) -> None:
    network = local_network(3, len(patch))
    reference = predict_probabilities(network, torch.from_numpy(image), patch, 3, batch=1)
    for batch in (2, 7, 1000):
        ours = predict_probabilities(network, torch.from_numpy(image), patch, 3, batch=batch)
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)
        assert torch.equal(ours.argmax(0), reference.argmax(0))


def test_several_networks_are_averaged(image: np.ndarray) -> None:
    pair = [local_network(3, 3, seed) for seed in (1, 2)]
    both = predict_probabilities(pair, torch.from_numpy(image), (8, 6, 9), 3)
    one, two = (predict_probabilities(single, torch.from_numpy(image), (8, 6, 9), 3) for single in pair)
    torch.testing.assert_close(both, (one + two) / 2, atol=1e-6, rtol=0)
    assert not torch.allclose(one, two, atol=1e-2)


@pytest.mark.parametrize("patch", [(8, 6, 9), (6, 9)])
def test_progress_counts_windows(image: np.ndarray, patch) -> None:
    calls = []
    network = local_network(2, len(patch))
    predict_probabilities(network, torch.from_numpy(image), patch, 2, batch=4, advance=lambda: calls.append(1))
    assert len(calls) == window_count((17, 14, 21), patch, 0.7)
    assert window_count((17, 14, 21), (8, 6, 9), 0.7) == 3 * 3 * 3
    assert window_count((17, 14, 21), (6, 9), 0.7) == 17 * 3 * 3


def test_a_network_of_another_label_set_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(5, 8, 6, 9\)"):
        predict_probabilities(local_network(3, 3), torch.from_numpy(image), (8, 6, 9), 5)


def test_mirroring_averages_all_combinations(image: np.ndarray) -> None:
    network = local_network(3, 3)
    tiles = torch.from_numpy(image)[None, :, :8, :8, :8]
    with torch.no_grad():
        ours = Mirroring((0, 2)).average(network, tiles)
        terms = [network(tiles.flip(dims)).flip(dims) for dims in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(ours, sum(terms) / 4)
    torch.testing.assert_close(Mirroring(()).average(network, tiles), network(tiles))


def test_mirroring_a_network_that_knows_its_sides() -> None:
    """The stub calls bright voxels 1 in the left half of the patch and 2 in the right half."""

    def sided(tiles: torch.Tensor) -> torch.Tensor:
        bright = (tiles[:, 0] > 0).float()
        left = torch.zeros_like(bright)
        left[..., : bright.shape[-1] // 2] = 1
        return 20 * torch.stack([1 - bright, bright * left, bright * (1 - left)], dim=1)

    tiles = torch.where(torch.rand(2, 1, 4, 4, 8) > 0.5, 1.0, -1.0)
    plain = sided(tiles)
    swapped = Mirroring((0, 1, 2), lateral_axis=2, pairs=((2, 1),)).average(sided, tiles)
    torch.testing.assert_close(swapped, plain)
    confused = Mirroring((0, 1, 2)).average(sided, tiles)
    torch.testing.assert_close(confused[:, 1], confused[:, 2])


def test_mirroring_a_symmetric_network_changes_nothing(image: np.ndarray) -> None:
    def threshold(tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([-tiles, tiles], dim=1)

    x = torch.from_numpy(image)
    plain = predict_probabilities(threshold, x, (8, 6, 9), 2)
    mirrored = predict_probabilities(threshold, x, (8, 6, 9), 2, mirroring=Mirroring((0, 1, 2)))
    torch.testing.assert_close(mirrored, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("axes", [(0, 0), (3,), (-1,)])
def test_mirror_axes_that_do_not_exist(axes) -> None:
    with pytest.raises(ValueError, match="axes"):
        Mirroring(axes)


@pytest.mark.parametrize(
    ("axis_order", "dimensions", "lateral"),
    [((0, 1, 2), 3, 2), ((2, 0, 1), 3, 0), ((0, 1, 2), 2, 1), ((1, 0, 2), 2, 1), ((2, 0, 1), 2, None)],
)
def test_the_lateral_axis_follows_the_plan(axis_order: Triple, dimensions: Literal[2, 3], lateral: int | None) -> None:
    ones, twos = (1,) * dimensions, (2,) * dimensions
    plan = Plan(
        dataset="tiny",
        dimensions=dimensions,
        labels={"background": 0, "right kidney": 1, "left kidney": 2},
        left_right_pairs=((1, 2),),
        channels=("CT",),
        spacing_mm=(1.0, 1.0, 1.0),
        axis_order=axis_order,
        median_shape_voxels=(8, 8, 8),
        patch_voxels=(8,) * dimensions,
        topology=Topology((4, 8), (ones, twos), ((3,) * dimensions,) * 2),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=True,
        intensity=Intensity("ct", -100, 100, 0, 50),
        fingerprint={},
        memory_gb=0.0,
    )
    assert lateral_patch_axis(plan) == lateral
