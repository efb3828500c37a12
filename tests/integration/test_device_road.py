"""The GPU's road from a prepared scan to its labels, on a pretended card: the CPU's labels, however memory runs out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_card import PretendedCard
from test_segmenter import plan_of, threshold

from flarecps.inference import device_export, sliding_window
from flarecps.inference.outputs import OutputOptions, SegmentationRequest
from flarecps.inference.resources import planner
from flarecps.inference.resources.budget import Budget
from flarecps.inference.resources.cost import Job, MemoryEstimate, preparing_bytes
from flarecps.inference.resources.deadline import WindowSchedule
from flarecps.inference.resources.placement import CPU, FallbackChain, Placement, placements
from flarecps.inference.resources.planner import MARGIN, Estimate
from flarecps.inference.resources.usage import RamMeter
from flarecps.inference.segment_case import CaseSegmentation
from flarecps.inference.segmenter import Segmenter, _normalised
from flarecps.inference.sliding_window import joined_slabs, scores_by_slab
from flarecps.planning.plan import Intensity
from flarecps.preprocessing.intensity import normalise
from flarecps.volumes.io import Volume

CARD = torch.device("cuda", 1)
GB = 2**30


@pytest.mark.parametrize("scheme", ["ct", "zscore"])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_what_a_network_sees_is_the_same_bit_for_bit(scheme: str, kind: type) -> None:
    """On a CPU; a GPU may multiply by a reciprocal where this divides."""
    image = (np.random.default_rng(1).normal(size=(2, 9, 11, 13)) * 700).astype(kind)
    intensity = Intensity(scheme, low=-163.3, high=303.7, mean=80.123, sd=123.456789)
    statistics = {"mean": [3.1, 7.7], "sd": [1234.567, 0.0]}
    before = image.copy()
    found = _normalised(torch.from_numpy(image), replace(plan_of(), intensity=intensity), statistics)
    np.testing.assert_array_equal(found.numpy(), normalise(image, intensity, statistics))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(23, 20, 17), (5, 20, 9)])
@pytest.mark.parametrize("patch", [(8, 12, 10), (12, 10)])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_windows_cut_on_the_card_are_those_cut_in_ram(
    card: PretendedCard, shape: tuple[int, int, int], patch: tuple[int, ...], batch: int
) -> None:
    """Two channels, a patch larger than the image, several layers at once: the same scores, bit for bit."""
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    sent: list[int] = []

    def network(tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([tiles[:, :1], tiles[:, 1:], tiles.sum(1, keepdim=True)], 1)

    def scores(place: torch.device) -> torch.Tensor:
        chain = FallbackChain([Placement(batch, place, place)])
        slabs = scores_by_slab([network], image, patch, 3, WindowSchedule(0.6), chain, convert=lambda part: part * 2)
        return joined_slabs((slab.clone() for slab in slabs), (3, *shape), CPU)

    expected = scores(CPU)
    with card, pytest.MonkeyPatch.context() as watched:
        taken = card.take
        watched.setattr(card, "take", lambda size: (sent.append(size), taken(size)))
        found = scores(CARD)
    assert card.pinned_bytes, "what goes to a card goes by way of pinned memory"
    assert not card.unpinned_copies
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert max(sent) <= 4 * 3 * np.prod([max(a, b) for a, b in zip(shape, (1, *patch)[-3:], strict=True)])


@pytest.mark.parametrize("mode", ["normal", "fast", "fastest"])
def test_labels_in_single_precision_are_the_cpus(
    card: PretendedCard, volume: Volume, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Segmenter(plan_of(), [threshold], device="cpu", mode=mode)(volume)
    with card:
        segmenter = Segmenter(plan_of(), [threshold], device="cuda", mode=mode)
        wanted = segmenter.resources.wanted()
        single = replace(wanted, placement=replace(wanted.placement, half_sums=False))
        monkeypatch.setattr(segmenter.resources, "wanted", lambda: single)
        found = segmenter(volume)
    assert expected.any()
    assert np.count_nonzero(found != expected) <= 1e-5 * expected.size


@pytest.mark.parametrize("refused", [0, 1, 7, 30])
def test_where_memory_runs_out_on_the_way_back_the_rest_is_done_in_ram(
    card: PretendedCard, volume: Volume, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first plane, in the middle, between two planes: no plane is lost and none comes twice."""
    expected = Segmenter(plan_of(), [threshold], device="cpu")(volume)
    lerped, calls = device_export._lerped, []

    def full(scores: torch.Tensor, dim: int, taps: object) -> torch.Tensor:
        calls.append(dim)
        if len(calls) - 1 == refused:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return lerped(scores, dim, taps)

    monkeypatch.setattr(device_export, "_lerped", full)
    said: list[str] = []
    with card:
        found = Segmenter(plan_of(), [threshold], device="cuda", say=said.append)(volume)
    assert len(calls) > refused
    assert said == ["no room on cuda:1 for the way to the scan's grid; the rest of it is done on the CPU"]
    assert np.count_nonzero(found != expected) <= 1e-3 * expected.size  # the sums are in half precision


def test_a_layer_s_slices_are_sent_once_and_forgotten_where_the_card_is_left(card: PretendedCard) -> None:
    """The third window of a layer does not fit: with its sums in RAM, then in RAM altogether; the scores stay."""
    image = torch.randn(1, 30, 40, 16, generator=torch.Generator().manual_seed(3))
    ran: list[int] = []

    def network(tiles: torch.Tensor) -> torch.Tensor:
        ran.append(len(tiles))
        if len(ran) in (3, 4):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return torch.cat([tiles, -tiles], 1)

    def scores(chain: FallbackChain) -> torch.Tensor:
        slabs = scores_by_slab([network], image, (16, 16, 16), 2, WindowSchedule(0.7), chain)
        return joined_slabs((slab.clone() for slab in slabs), (2, *image.shape[1:]), CPU)

    with card:
        chain = FallbackChain(placements(1, CARD, half_sums=False))
        found = scores(chain)
    assert chain.now.device == CPU
    torch.testing.assert_close(found, scores(FallbackChain([Placement()])), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("device", "budget", "ahead"),
    [
        ("cuda", Budget(vram_bytes=2 * GB), True),
        ("cuda", Budget(seconds=216), True),
        ("cuda", Budget(28 * GB, 2 * GB, 216), False),
        ("cpu", Budget(seconds=216), False),  # it would take the processor from the scan that is being timed
        ("cpu", Budget(), True),
    ],
)
def test_the_next_scan_is_prepared_ahead_unless_that_costs_what_is_limited(
    card: PretendedCard, volume: Volume, tmp_path: Path, device: str, budget: Budget, ahead: bool
) -> None:
    with card:
        case = CaseSegmentation(Segmenter(plan_of(), [threshold], device=device, budget=budget), OutputOptions())
        request = SegmentationRequest("scan", (tmp_path / "scan.nii.gz",), tmp_path / "out.nii.gz")
        loaded = case.read(request)
        assert (loaded.prepared is not None) == ahead
        done = case.write(request, case.compute(request, loaded))
    assert done.result.is_file()
    assert done.seconds >= loaded.seconds > 0


def test_layers_too_large_to_pin_go_without_and_are_the_same(
    card: PretendedCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(1, 30, 40, 16, generator=torch.Generator().manual_seed(3))

    def scores() -> torch.Tensor:
        chain = FallbackChain(placements(1, CARD, half_sums=False))
        slabs = scores_by_slab(
            [lambda tiles: torch.cat([tiles, -tiles], 1)], image, (16, 16, 16), 2, WindowSchedule(0.7), chain
        )
        return joined_slabs((slab.clone() for slab in slabs), (2, *image.shape[1:]), CPU)

    layer = 4 * 16 * 40 * 16  # float32, a window deep
    found = []
    for most, pinned in ((layer, True), (layer - 1, False)):
        monkeypatch.setattr(sliding_window, "PINNED_BYTES", most)
        card.pinned_bytes.clear()
        with card:
            found.append(scores())
        assert set(card.pinned_bytes) == ({layer} if pinned else set())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("device", "spare", "prepared", "read"),
    [("cuda", 0, True, True), ("cuda", -2, False, True), ("cpu", 0, False, True), ("cuda", -(10**9), False, False)],
)
def test_a_limit_of_ram_counts_the_scan_that_is_prepared_ahead(
    card: PretendedCard,
    volume: Volume,
    tmp_path: Path,
    device: str,
    spare: int,
    prepared: bool,
    read: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the estimate and its reserve: the next scan's array and what preparing it takes, and labels on their way.

    One that is read ahead was asked for before: it is not measured against what the other holds meanwhile.
    """
    peak = 10**9
    job = Job.of(volume.space, plan_of())
    more = volume.array.nbytes + preparing_bytes(job) + 2 * volume.array[0].size
    limit = round(peak * MARGIN) + more + 1 + spare
    monkeypatch.setattr(
        Segmenter, "estimate", lambda *_, prepared=None: (None, Estimate(MemoryEstimate(peak, 0, 0, 0), 0, 1.0))
    )
    asked: list[object] = []
    monkeypatch.setattr(Segmenter, "check_unread", lambda *sizes: asked.append(sizes))
    first, second = (
        SegmentationRequest(name, (tmp_path / "scan.nii.gz",), tmp_path / f"{name}.nii.gz") for name in "ab"
    )
    with card:
        segmenter = Segmenter(plan_of(), [threshold], device=device, budget=Budget(ram_bytes=limit))
        case = CaseSegmentation(segmenter, OutputOptions())
        loaded = case.read(first)
        assert loaded.prepared is None
        assert case.may_read_ahead(loaded, second) == read
        asked.clear()
        following = case.read(second)
        for one in (loaded, following):
            assert one.ram is not None
            one.ram.stop()
    assert (following.prepared is not None) == prepared
    assert bool(asked) == (not read)


def test_what_was_prepared_ahead_is_not_estimated_twice(
    card: PretendedCard, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the meter of a scan sees what the process holds, whoever holds it."""
    monkeypatch.setattr(planner, "ram_bytes", lambda: 10**9)
    with card:
        segmenter = Segmenter(plan_of(), [threshold], device="cuda", budget=Budget(ram_bytes=28 * GB))
        ahead = segmenter.prepare(volume)
        (_, alone), (_, counted) = (segmenter.estimate(volume, prepared=one) for one in (None, ahead))
        np.testing.assert_array_equal(segmenter(volume, prepared=ahead), segmenter(volume))
    assert alone.ram.windows - counted.ram.windows == ahead.image.nbytes
    with RamMeter() as meter:
        beside = np.ones(2**24, np.uint8)
        time.sleep(0.1)
    assert meter.rise > 0.8 * beside.nbytes
