"""Sums over windows: slab by slab as all at once, in single and half precision, on every placement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from flarecps.errors import ConfigError
from flarecps.inference.mirroring import Mirroring
from flarecps.inference.resources.placement import CPU, FallbackChain, Placement
from flarecps.inference.slab_sums import SlabSums
from flarecps.inference.sliding_window import (
    Place,
    WindowSchedule,
    joined_slabs,
    predict_probabilities,
    scores_by_slab,
)
from flarecps.inference.window_selection import COARSER, MARGIN_MM, contains_body, find_region, share_with_body
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.preprocessing.case import GridMapping

SHAPE, PATCH, CLASSES = (37, 14, 21), (8, 6, 9), 3


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(size=(1, *SHAPE)).astype(np.float32))


@pytest.fixture
def network():
    torch.manual_seed(4)
    return torch.nn.Conv3d(1, CLASSES, 3, padding=1).eval()


def run(networks, image, patch=PATCH, schedule=None, chain=None, **settings) -> tuple[torch.Tensor, list[int]]:
    """The scores of the whole scan, and how many slices each slab had."""
    depths = []

    def watched():
        for slab in scores_by_slab(
            networks,
            image,
            patch,
            CLASSES,
            schedule or WindowSchedule(0.7),
            chain or FallbackChain([Placement()]),
            **settings,
        ):
            depths.append(slab.shape[1])
            yield slab

    return joined_slabs(watched(), (CLASSES, *image.shape[1:]), CPU), depths


def all_at_once(network, image: torch.Tensor) -> torch.Tensor:
    """Sums over the whole volume in double precision, every window at its place."""
    from flarecps.inference.sliding_window import gaussian_weights, windows

    sums, weights = np.zeros((CLASSES, *SHAPE)), np.zeros(SHAPE)
    kernel = gaussian_weights(PATCH).double().numpy()
    for corner in np.stack(np.meshgrid(*windows(SHAPE, PATCH, 0.7), indexing="ij"), -1).reshape(-1, 3):
        place = tuple(slice(at, at + size) for at, size in zip(corner, PATCH, strict=True))
        with torch.no_grad():
            scores = network(image[(slice(None), *place)][None])[0].softmax(0)
        sums[(slice(None), *place)] += scores.double().numpy() * kernel
        weights[place] += kernel
    return torch.from_numpy(sums / weights).float()


@pytest.mark.parametrize("batch", [1, 5, 40, 1000])
def test_slabs_are_the_whole_volume(network, image: torch.Tensor, batch: int) -> None:
    ours, depths = run([network], image, chain=FallbackChain([Placement(batch)]))
    torch.testing.assert_close(ours, all_at_once(network, image), atol=1e-6, rtol=0)
    assert sum(depths) == SHAPE[0]
    if batch == 1:
        assert max(depths) <= PATCH[0]  # no more than a window's depth is ever finished at once


def test_half_precision_is_close(network, image: torch.Tensor) -> None:
    single, _ = run([network], image)
    half, _ = run([network], image, chain=FallbackChain([Placement(half_sums=True)]))
    torch.testing.assert_close(half, single, atol=3e-3, rtol=0)
    assert not torch.equal(half, single)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("patch", [PATCH, (6, 9)])
@pytest.mark.parametrize("accumulate", ["softmax", "logits"])
def test_a_constant_network_in_either_precision(image: torch.Tensor, half: bool, patch, accumulate) -> None:
    logits = torch.tensor([0.5, -1.0, 2.0])

    def constant(tiles: torch.Tensor) -> torch.Tensor:
        return logits.reshape(1, -1, *(1,) * len(patch)).expand(len(tiles), -1, *patch)

    ours, _ = run([constant], image, patch, chain=FallbackChain([Placement(3, half_sums=half)]), accumulate=accumulate)
    value = logits if accumulate == "logits" else logits.softmax(0)
    expected = value.reshape(-1, 1, 1, 1).expand_as(ours)
    torch.testing.assert_close(ours, expected, atol=1e-3 if half else 1e-6, rtol=1e-3 if half else 1e-5)


def test_windows_left_out_are_background(network, image: torch.Tensor) -> None:
    def wanted(place: Place) -> bool:
        return place[0].stop <= 20

    ours, _ = run([network], image, wanted=wanted)
    torch.testing.assert_close(ours[:, 20:], torch.eye(CLASSES)[0].reshape(-1, 1, 1, 1).expand(-1, 17, 14, 21))
    full, _ = run([network], image)
    torch.testing.assert_close(ours[:, :8], full[:, :8], atol=1e-6, rtol=0)


# -- memory that does not suffice ------------------------------------------------------------------------------------


class Tight(torch.nn.Module):
    """A network whose GPU is too small for more than ``most`` windows, and fails ``failures`` times besides."""

    def __init__(self, network: torch.nn.Module, most: int = 1000, failures: int = 0) -> None:
        super().__init__()
        self.network, self.most, self.failures = network, most, failures
        self.seen: list[int] = []

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) > self.most or self.failures > 0:
            self.failures -= len(tiles) <= self.most
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        self.seen.append(len(tiles))
        return self.network(tiles)


def test_too_large_a_batch_falls_back_and_loses_nothing(network, image: torch.Tensor) -> None:
    tight = Tight(network, most=2)
    chain = FallbackChain([Placement(8), Placement(4), Placement(2), Placement(1)])
    ours, _ = run([tight], image, chain=chain)
    assert chain.now == Placement(2)
    assert max(tight.seen) == 2
    torch.testing.assert_close(ours, run([network], image)[0], atol=1e-6, rtol=0)


REFUSALS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: str(error)[:30])
def test_memory_refused_by_driver_or_library_falls_back_too(network, image: torch.Tensor, refusal: Exception) -> None:
    def full(tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) > 1:
            raise refusal
        return network(tiles)

    chain = FallbackChain([Placement(2), Placement(1)])
    ours, _ = run([full], image, chain=chain)
    assert chain.place == 1
    torch.testing.assert_close(ours, run([network], image)[0], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="not enough memory for one window"):
        run([full], image, chain=FallbackChain([Placement(2)]))


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access", "shapes can't be multiplied"])
def test_other_errors_of_a_network_are_not_taken_for_a_full_gpu(image: torch.Tensor, words: str) -> None:
    def broken(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words):
        run([broken], image, chain=FallbackChain([Placement(2), Placement(1)]))


def test_when_one_window_is_too_much_sums_and_network_move(network, image: torch.Tensor) -> None:
    """The last rungs of a GPU's chain, all on the CPU here: half precision sums become single ones midway."""
    tight = Tight(network)
    chain = FallbackChain([Placement(1, half_sums=True), Placement(1), Placement(1)])

    class Failing(WindowSchedule):
        def ran(self, count: int, seconds: float, left) -> None:
            tight.failures = 1 if len(tight.seen) in (5, 12) else 0

    ours, _ = run([tight], image, schedule=Failing(0.7), chain=chain)
    assert chain.place == 2
    torch.testing.assert_close(ours, run([network], image)[0], atol=3e-3, rtol=0)


@pytest.mark.parametrize("name", ["reach", "add", "finish"])
def test_sums_that_do_not_fit_move_and_lose_nothing(network, image: torch.Tensor, monkeypatch, name: str) -> None:
    original, calls = getattr(SlabSums, name), []

    def failing(self: SlabSums, *arguments):
        calls.append(self.half)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return original(self, *arguments)

    monkeypatch.setattr(SlabSums, name, failing)
    chain = FallbackChain([Placement(1, half_sums=True), Placement(1)])
    ours, _ = run([network], image, chain=chain)
    assert chain.place == 1
    assert (calls[0], calls[-1]) == (True, False)
    torch.testing.assert_close(ours, run([network], image)[0], atol=3e-3, rtol=0)


def test_gradients_are_the_callers_business(network, image: torch.Tensor) -> None:
    for slab in scores_by_slab([network], image, PATCH, CLASSES, WindowSchedule(0.7), FallbackChain([Placement()])):
        assert torch.is_grad_enabled()
        assert not slab.requires_grad


def test_when_nothing_is_left_the_message_says_so(network, image: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="not enough memory for one window"):
        run([Tight(network, most=0)], image, chain=FallbackChain([Placement(2), Placement(1)]))


# -- what changes on the way -----------------------------------------------------------------------------------------


class Hurried(WindowSchedule):
    """Gives up mirroring after some windows, and overlap after some more."""

    def __init__(self, at: Sequence[int]) -> None:
        super().__init__(0.5, Mirroring((0, 1)))
        self.at, self.count, self.left = at, 0, []

    def ran(self, count: int, seconds: float, left) -> None:
        self.count += count
        self.left.append(left(self.step))
        if self.count >= self.at[0]:
            self.mirroring = None
        if self.count >= self.at[1]:
            self.step = 1.0


def test_step_and_mirroring_may_change_on_the_way(image: torch.Tensor) -> None:
    def threshold(tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([-tiles, tiles, 0 * tiles], dim=1)

    schedule = Hurried((3, 30))
    ours, _ = run([threshold], image, schedule=schedule)
    torch.testing.assert_close(ours, torch.cat([-image, image, 0 * image]).softmax(0), atol=1e-6, rtol=0)
    assert schedule.left[-1] == 0
    full = WindowSchedule(0.5)
    counted = []
    run([threshold], image, schedule=full, advance=lambda: counted.append(1))
    assert schedule.count < len(counted)
    assert all(before > after for before, after in zip(schedule.left[:20], schedule.left[1:21], strict=True))


# -- body and region -------------------------------------------------------------------------------------------------


def plan(patch: tuple[int, ...] = (8, 8, 8)) -> Plan:
    n = len(patch)
    return Plan("balls", n, {"background": 0, "ball": 1}, (), ("CT",), (3.0, 3.0, 3.0), (0, 1, 2), (40, 40, 40), patch,
                Topology((4, 8), ((1,) * n, (2,) * n), ((3,) * n,) * 2), {"labelled": 2, "unlabelled": 2}, False,
                Intensity("ct", low=-200, high=200, mean=50, sd=50), {}, 1.0)  # fmt: skip


def ball() -> np.ndarray:
    """A ball of 100 HU, radius 6, at (30, 12, 12) of 48×24×24 voxels of air."""
    z, y, x = np.ogrid[:48, :24, :24]
    inside = (z - 30) ** 2 + (y - 12) ** 2 + (x - 12) ** 2 <= 36
    return np.where(inside, 100, -1000).astype(np.int16)[None]


def test_windows_of_air_hold_no_body() -> None:
    holds = contains_body(ball(), "ct")
    assert holds((slice(20, 28), slice(8, 16), slice(8, 16)))
    assert not holds((slice(0, 20), slice(0, 24), slice(0, 24)))
    mr = contains_body(ball().astype(np.float32), "zscore")
    assert mr((slice(20, 28), slice(8, 16), slice(8, 16)))
    assert not mr((slice(0, 20), slice(0, 24), slice(0, 24)))
    assert 0.2 < share_with_body(ball(), (48, 24, 24), plan(), 1.0) < 0.6


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
def test_the_coarse_pass_finds_the_region_and_its_margin(patch) -> None:
    def threshold(tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([-tiles, tiles], dim=1)

    def convert(part: torch.Tensor) -> torch.Tensor:
        return (part.float() - 50) / 50

    array = ball()
    way = GridMapping((48, 24, 24), (3.0,) * 3, (0, 0, 0), (48, 24, 24), (0, 1, 2), (48, 24, 24), (3.0,) * 3)
    found = partial(find_region, [threshold], grid_mapping=way, plan=plan(patch), convert=convert)
    region = found(torch.from_numpy(array), chain=FallbackChain([Placement()]))
    assert region.mask.shape[1:] == (round(24 / COARSER),) * 2
    reach = MARGIN_MM / 3.0
    assert region.touches((slice(30, 31), slice(12, 13), slice(12, 13)))
    low = 30 - 6 - reach
    assert region.touches((slice(int(low) + 2, int(low) + 4), slice(12, 13), slice(12, 13)))
    assert not region.touches((slice(0, int(low) - 4), slice(0, 24), slice(0, 24)))
    nothing = found(torch.full((1, 48, 24, 24), -1000, dtype=torch.int16), chain=FallbackChain([Placement()]))
    assert nothing.share == 1.0


def test_predict_probabilities_is_the_slabs_put_together(network, image: torch.Tensor) -> None:
    ours = predict_probabilities(network, image, PATCH, CLASSES, accumulate="logits")
    logits, _ = run([network], image, accumulate="logits")
    torch.testing.assert_close(ours, logits.softmax(0))
