"""Budgets: words, what is estimated, what is traded in which order, and the deadline kept while windows run."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flarecps.errors import ConfigError
from flarecps.inference.mirroring import Mirroring
from flarecps.inference.outputs import OutputOptions
from flarecps.inference.postprocessing import Rules
from flarecps.inference.resources.budget import PRESETS, Budget, budget_of, format_bytes, parse_bytes
from flarecps.inference.resources.cost import (
    BORDER,
    KEPT_BYTES,
    Beside,
    Job,
    WindowCost,
    estimate_gpu_memory,
    estimate_ram,
    estimate_seconds,
    sums_bytes,
)
from flarecps.inference.resources.deadline import DeadlineSchedule
from flarecps.inference.resources.placement import CPU, FallbackChain, Placement, placements
from flarecps.inference.resources.planner import MARGIN, WorkPlan, describe_work, plan_work
from flarecps.inference.resources.usage import CUDA_CONTEXT_BYTES
from flarecps.inference.segment_case import CaseSegmentation
from flarecps.inference.slab_sums import SlabSums
from flarecps.inference.sliding_window import WindowSchedule, scores_by_slab

MB, GB = 2**20, 2**30
GPU = torch.device("cuda")
JOB = Job(
    scan_shape=(1000, 512, 512),
    network_shape=(800, 320, 320),
    network_bytes=2,
    axis_order=(0, 1, 2),
    channels=1,
    classes=14,
    patch_voxels=(96, 160, 160),
)
WINDOW = WindowCost(seconds=2.0, ram_bytes=800 * MB, vram_bytes=900 * MB, weights_bytes=120 * MB)
STEP = (0.7,)
WANTED = WorkPlan(Placement(4), 0.7, 8, False, "normal")


def test_sizes_in_words() -> None:
    assert parse_bytes("28G") == parse_bytes("28 GB") == parse_bytes("28GiB") == 28 * GB
    assert parse_bytes("2048m") == 2 * GB
    assert parse_bytes("1.5k") == 1536
    assert parse_bytes("700000000") == 700000000
    for wrong in ("", "G", "-1G", "0", "8 GiB of RAM", "1e9", "²G", "9" * 400):
        with pytest.raises(ConfigError, match="max ram"):
            parse_bytes(wrong, "max ram")
    assert format_bytes(28 * GB) == "28.0 GB"


def test_the_preset_is_flares_tolerance_and_gives_way_to_options() -> None:
    assert budget_of("flare22") == Budget(28 * GB, 2 * GB, 216.0) == PRESETS["flare22"]
    assert budget_of("flare22", ram="8G", seconds=30) == Budget(8 * GB, 2 * GB, 30.0)
    assert not budget_of()
    assert budget_of(vram="4G")
    with pytest.raises(ConfigError, match="flare23"):
        budget_of("flare23")
    with pytest.raises(ConfigError, match="max seconds"):
        budget_of(seconds=0)


def test_the_forecast_counts_what_is_in_memory() -> None:
    """By hand, for the sizes above: voxels times bytes."""
    scan, network = 1000 * 512 * 512, 800 * 320 * 320
    assert sums_bytes(JOB, Placement(1), STEP) == 96 * 320 * 320 * (14 + 1) * 4
    assert sums_bytes(JOB, Placement(1, GPU, GPU, half_sums=True), STEP) == 96 * 320 * 320 * (14 * 2 + 4)
    planes, used_up = 2 * 14 * 320 * 320 * 4 + KEPT_BYTES, 14 * 320 * 320 * 4 + 14 * BORDER
    memory = estimate_ram(JOB, Placement(2), WINDOW, 3 * GB, "normal", STEP)
    sums = sums_bytes(JOB, Placement(2), STEP)
    assert memory.windows == 3 * GB + network * 2 + scan + planes + sums + 2 * WINDOW.ram_bytes
    assert memory.preparing == 3 * GB + max(2 * scan, network * 2 + 320 * 320 * 1000 * 4)  # slices grow most: last
    assert memory.peak == max(memory.windows, memory.preparing)
    on_gpu = Placement(2, GPU, GPU, half_sums=True)
    spared = estimate_ram(JOB, on_gpu, WINDOW, 3 * GB, "normal", STEP).windows
    image = 96 * 320 * 320 * 2
    assert spared == 3 * GB + network * 2 + scan + planes + used_up + 2 * image  # pinned, at most twice a layer
    way_back = 512 * 512 * (14 * 5 * 4 + 2 * 16)  # five planes of scores, 16 planes of labels twice
    assert estimate_gpu_memory(JOB, on_gpu, WINDOW, STEP) == (
        CUDA_CONTEXT_BYTES + 120 * MB + 2 * 780 * MB + image + sums_bytes(JOB, on_gpu, STEP) + way_back
    )
    mirrored = estimate_gpu_memory(JOB, on_gpu, WINDOW, STEP, mirrors=2)
    assert mirrored == estimate_gpu_memory(JOB, on_gpu, WINDOW, STEP) + 2 * 2 * 96 * 160 * 160 * 14 * 4
    on_both = Placement(1, GPU, CPU)
    assert estimate_gpu_memory(JOB, on_both, WINDOW, STEP) == CUDA_CONTEXT_BYTES + 120 * MB + 780 * MB + image
    assert estimate_gpu_memory(JOB, Placement(2), WINDOW, STEP) == 0


@pytest.mark.parametrize("step", [0.5, 0.7, 0.85, 1.0])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("patch", [(8, 12, 10), (12, 10)])
def test_the_sums_estimated_are_those_that_are_held(
    monkeypatch: pytest.MonkeyPatch, step: float, batch: int, patch: tuple[int, ...]
) -> None:
    """At step 1 a plane of 20 × 20 voxels has four windows, and a batch of 16 takes four layers of them at once."""
    held = 0
    reach = SlabSums.reach

    def watched(sums: SlabSums, last: int) -> torch.Tensor:
        nonlocal held
        scores = reach(sums, last)
        held = max(held, 4 * (scores.numel() + scores[0].numel()))
        return scores

    monkeypatch.setattr(SlabSums, "reach", watched)
    job = Job((41, 20, 20), (41, 20, 20), 2, (0, 1, 2), 1, 3, patch)
    placement = Placement(batch)
    for _ in scores_by_slab(
        [lambda tiles: tiles.expand(-1, 3, *tiles.shape[2:])],
        torch.zeros(1, 41, 20, 20),
        patch,
        3,
        WindowSchedule(step),
        FallbackChain([placement]),
    ):
        pass
    assert sums_bytes(job, placement, (step,)) == held


def test_a_limit_of_time_counts_the_larger_steps_that_it_may_take() -> None:
    job = Job((41, 20, 20), (41, 20, 20), 2, (0, 1, 2), 1, 3, (8, 12, 10))
    wanted = WorkPlan(Placement(16), 0.5, 1, False, "normal")
    window = WindowCost(1e-6, 0, 0, 0)
    peaks = [plan_work(job, wanted, Budget(seconds=limit), window, 0, 1.0)[1].ram.windows for limit in (None, 1e6)]
    assert peaks[1] - peaks[0] == sums_bytes(job, Placement(16), (1.0,)) - sums_bytes(job, Placement(16), (0.5,)) > 0


def test_what_is_made_beside_labels_and_reading_are_in_the_estimate() -> None:
    plain = estimate_ram(JOB, Placement(2), WINDOW, 3 * GB, "normal", STEP)
    on_gpu = estimate_ram(JOB, Placement(2, GPU, GPU), WINDOW, 3 * GB, "normal", STEP)
    written = estimate_ram(JOB, Placement(2, GPU, GPU), WINDOW, 3 * GB, "normal", STEP, Beside(probabilities=True))
    assert written.windows == on_gpu.windows + 320 * 320 * 14 * 8  # when no window runs: on the CPU these take more
    for beside, phase, more in (
        (Beside(probabilities=True), "windows", 0),
        (Beside(agreement=True), "windows", 1000 * 512 * 512),
        (Beside(preview=True), "writing", 100 * MB),
        (Beside(rules=True), "writing", 13 * 1000 * 512 * 512),
    ):
        costs = estimate_ram(JOB, Placement(2), WINDOW, 3 * GB, "normal", STEP, beside)
        assert getattr(costs, phase) == getattr(plain, phase) + more
    assert estimate_ram(JOB, Placement(2), WINDOW, 3 * GB, "normal", STEP, reading_bytes=99 * GB).peak == 99 * GB


def test_rules_that_are_read_after_the_model_are_in_the_estimate_too() -> None:
    segmenter: Any = SimpleNamespace(resources=SimpleNamespace())
    case = CaseSegmentation(segmenter, OutputOptions(probabilities=True))
    assert segmenter.resources.beside == Beside(probabilities=True)
    case.outputs = replace(case.outputs, rules=Rules({"background": 0, "liver": 1}))
    assert segmenter.resources.beside == Beside(probabilities=True, rules=True)


def test_several_windows_cost_what_was_measured() -> None:
    """A layer's last may be one alone, which takes more; beyond those measured, in proportion to the most of them."""
    window = WindowCost(1.0, 80 * MB, 0, 0, {2: 10 * MB, 4: 16 * MB})
    assert [window.ram_of(batch) // MB for batch in (1, 2, 4, 8)] == [80, 80, 80, 80]
    assert window.ram_of(64) == 256 * MB
    assert WindowCost(1.0, 80 * MB, 0, 0).ram_of(4) == 320 * MB


def test_the_forecast_of_time_counts_passes() -> None:
    windows = math.prod((12, 3, 3))  # by nnU-Net's rule: ceil((800 - 96) / 67.2) + 1, ceil((320 - 160) / 112) + 1
    plain = estimate_seconds(JOB, WINDOW, 0.7, 1, 1.0, "normal")
    mirrored = estimate_seconds(JOB, WINDOW, 0.7, 8, 0.5, "normal")
    assert mirrored - plain == pytest.approx(windows * (8 * 0.5 - 1) * 2.0)


def test_without_limits_nothing_is_traded() -> None:
    plan, estimate = plan_work(JOB, WANTED, Budget(), WINDOW, GB, 1.0)
    assert plan == WANTED
    assert "traded" not in describe_work(plan, estimate, Budget())


def test_memory_is_traded_in_order_and_no_more_than_needed() -> None:
    def peak(placement: Placement) -> int:
        return estimate_ram(JOB, placement, WINDOW, GB, "normal", STEP).peak

    steps = [Placement(4), Placement(2), Placement(1), Placement(1, half_sums=True)]
    for placement in steps:
        budget = Budget(ram_bytes=math.ceil(peak(placement) * MARGIN))
        plan, estimate = plan_work(JOB, WANTED, budget, WINDOW, GB, 1.0)
        assert plan.placement == placement
        assert estimate.ram.peak * MARGIN <= budget.ram_bytes
        assert (plan.step, plan.mirrors, plan.mode) == (0.7, 8, "normal")
    with pytest.raises(ConfigError, match="does not fit its budget") as refused:
        plan_work(JOB, WANTED, Budget(ram_bytes=peak(steps[-1])), WINDOW, GB, 1.0)
    assert format_bytes(peak(steps[-1])) in str(refused.value)


def test_gpu_memory_is_traded_for_ram() -> None:
    wanted = WorkPlan(Placement(4, GPU, GPU, True), 0.7, 1, False, "normal")
    vram = {batch: estimate_gpu_memory(JOB, Placement(batch, GPU, GPU, True), WINDOW, STEP) for batch in (4, 2, 1)}
    sums_in_ram = estimate_gpu_memory(JOB, Placement(1, GPU, CPU), WINDOW, STEP)
    for limit, placement in [
        (vram[2], Placement(2, GPU, GPU, True)),
        (vram[1], Placement(1, GPU, GPU, True)),
        (sums_in_ram, Placement(1, GPU, CPU)),
        (sums_in_ram // 2, Placement(1, CPU, CPU)),
    ]:
        plan, _ = plan_work(JOB, wanted, Budget(vram_bytes=math.ceil(limit * MARGIN)), WINDOW, GB, 1.0)
        assert plan.placement == placement


def test_time_is_traded_in_order() -> None:
    def seconds(step: float, passes: int, share: float, mode) -> float:
        return estimate_seconds(JOB, WINDOW, step, passes, share, mode)

    rungs = [
        (seconds(0.7, 8, 1.0, "normal"), ()),
        (seconds(0.7, 8, 0.6, "normal"), ("windows without body left out",)),
        (seconds(0.7, 1, 0.6, "normal"), ("no mirroring",)),
        (seconds(0.85, 1, 0.6, "normal"), ("step 0.85",)),
        (seconds(1.0, 1, 0.6, "normal"), ("step 1",)),
        (seconds(1.0, 1, 0.6, "fastest"), ("fastest mode",)),
        (1.0, ("fastest mode",)),  # can't be met: the fastest plan
    ]
    for limit, last in rungs:
        plan, estimate = plan_work(JOB, WANTED, Budget(seconds=limit), WINDOW, GB, 0.6)
        assert plan.traded[-1:] == last
        assert estimate.seconds <= limit or limit == 1.0
    words = describe_work(plan, estimate, Budget(seconds=1.0))
    assert "of 1 s" in words
    assert "no mirroring" in words


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduled(windows: int, pass_s: float, deadline_s: float, mirrored: bool = True) -> tuple[DeadlineSchedule, float]:
    """Run windows one by one; a larger step leaves proportionally fewer (per axis, three axes)."""
    clock = Clock()
    schedule = DeadlineSchedule(
        0.5, Mirroring((0, 1, 2)) if mirrored else None, clock.now + deadline_s, 5.0, clock=clock
    )
    left = float(windows)
    while left > 0.5:
        step = schedule.step
        took = pass_s * (1 if schedule.mirroring is None else 8)
        clock.now += took
        left -= 1
        schedule.ran(1, took, lambda wanted, left=left, step=step: math.ceil(left * (step / wanted) ** 3))
        if schedule.step != step:
            left *= (step / schedule.step) ** 3
    return schedule, clock.now - 100.0


def test_the_pace_trades_only_what_the_time_needs() -> None:
    schedule, took = scheduled(100, 1.0, 810.0)
    assert (schedule.traded, took) == ([], 800.0)
    schedule, took = scheduled(100, 1.0, 200.0)
    assert schedule.traded == ["no mirroring any more"]
    assert took <= 195
    schedule, took = scheduled(100, 1.0, 60.0)
    assert schedule.traded == ["no mirroring any more", "step 0.85 from here on"]
    assert took <= 55
    schedule, _ = scheduled(100, 1.0, 1.0)  # can't be met
    assert schedule.step == 1.0


def test_the_ladder_goes_down_to_the_cpu_and_ends() -> None:
    chain = FallbackChain(placements(4, GPU, True))
    assert [(one.batch, one.device.type, one.sums_on.type) for one in chain.steps] == [
        (4, "cuda", "cuda"),
        (2, "cuda", "cuda"),
        (1, "cuda", "cuda"),
        (1, "cuda", "cpu"),
        (1, "cpu", "cpu"),
    ]
    assert [one.batch for one in placements(5, CPU, False)] == [5, 2, 1]
    short = FallbackChain(placements(1, CPU, False))
    with pytest.raises(ConfigError, match="not enough memory for one window"):
        short.fall_back()
