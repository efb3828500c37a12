"""How a scan will be done within its budget, what that costs, and what was traded for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from flarecps.errors import ConfigError
from flarecps.inference.export import Mode
from flarecps.inference.mirroring import Mirroring
from flarecps.inference.resources.budget import Budget, format_bytes
from flarecps.inference.resources.cost import (
    LABELS_ALONE,
    Beside,
    Job,
    MemoryEstimate,
    Unread,
    WindowCost,
    estimate_gpu_memory,
    estimate_ram,
    estimate_seconds,
    measure_window,
    overhead_seconds,
)
from flarecps.inference.resources.deadline import LARGER_STEPS, DeadlineSchedule, WindowSchedule
from flarecps.inference.resources.placement import CPU, FallbackChain, Placement, placements, windows_at_a_time
from flarecps.inference.resources.usage import limited_gpu_memory, ram_bytes, release_freed_memory
from flarecps.inference.settings import SegmentationSettings
from flarecps.inference.sliding_window import Network
from flarecps.inference.window_selection import share_with_body
from flarecps.planning.plan import Plan
from flarecps.volumes.io import Volume

MARGIN = 1.15  # a limit on memory is kept even if the estimate is this much too low


@dataclass(frozen=True)
class WorkPlan:
    """Everything about the work that may be traded for memory or time."""

    placement: Placement
    step: float
    mirrors: int  # passes per window: 1 without mirroring
    skip_air: bool
    mode: Mode
    traded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """What a work plan will cost."""

    ram: MemoryEstimate
    vram_bytes: int
    seconds: float


class ResourcePlanner:
    """Decides how each scan is done within the budget, from the scan's sizes and one window that is run and measured.

    ``batch``, the windows at a time that are wanted, may be lowered by whoever finds that memory runs out.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[Network],
        settings: SegmentationSettings,
        device: torch.device,
        mirroring: Mirroring | None,
    ) -> None:
        self.plan = plan
        self.networks = networks
        self.settings = settings
        self.device = device
        self.mirroring = mirroring
        self.batch = settings.batch or windows_at_a_time(plan.patch_voxels, device)
        self.beside = LABELS_ALONE  # what is made of every scan beside its labels; for whoever makes it to say
        self._window: WindowCost | None = None
        self._largest: Placement | None = None  # what one window had to be content with under the limit of GPU memory

    def wanted(self) -> WorkPlan:
        """The work plan as set, before any trade but those that a single window made necessary."""
        half = self.device.type != "cpu"
        mirrors = 1 if self.mirroring is None else self.mirroring.passes
        placement = self._largest or Placement(self.batch, self.device, self.device, half)
        traded = () if self._largest is None else (f"one window does not fit: {placement}",)
        return WorkPlan(placement, self.settings.step, mirrors, self.settings.skip_air, self.settings.mode, traded)

    def plan_scan(
        self, volume: Volume, began_s: float | None = None, prepared_bytes: int = 0
    ) -> tuple[WorkPlan, Estimate]:
        """How ``volume``, in the plan's order of voxels, is done within the budget, and what that costs.

        Of what memory holds, ``prepared_bytes`` are the scan's own image on the network's grid, made ahead.

        The first time, one window is run. It, too, keeps to the limit of GPU memory: where it does not fit, the sums go
        to RAM, then the network. ``began_s`` (``time.monotonic()``) is when the scan's time began to count. Raises
        ConfigError when the budget's memory can't suffice.
        """
        budget, window = self.settings.budget, self._measured_window()
        if budget.seconds is not None and began_s is not None:
            left_s = max(budget.seconds - (time.monotonic() - began_s), 0.0)
            budget = Budget(budget.ram_bytes, budget.vram_bytes, left_s)
        job = Job.of(volume.space, self.plan, self.settings.coarse_to_fine)
        share = share_with_body(volume.array, job.network_shape, self.plan, self.settings.step)
        release_freed_memory()
        now_bytes = ram_bytes() - prepared_bytes
        return plan_work(job, self.wanted(), budget, window, now_bytes, share, self.beside)

    def check_unread(self, scan: Unread) -> None:
        """Nothing, or ConfigError when a scan's headers tell that it can't be read, or done, within the budget."""
        if self.settings.budget.ram_bytes is None:
            return
        window = self._measured_window()
        release_freed_memory()
        now = ram_bytes()
        job = Job.of(scan.space, self.plan, self.settings.coarse_to_fine)
        after, reading = now + scan.array_bytes, now + scan.reading_bytes
        plan_work(job, self.wanted(), self.settings.budget, window, after, 1.0, self.beside, reading)

    def _measured_window(self) -> WindowCost:
        if self._window is None:
            with limited_gpu_memory(self.settings.budget.vram_bytes, self.device):
                chain = FallbackChain(placements(1, self.device, self.device.type != "cpu"))
                budget = self.settings.budget
                self._window = measure_window(self.networks, self.plan, chain, self.batch, budget.ram_bytes)
                self._largest = chain.now if chain.place else None
        return self._window

    def chain(self, work: WorkPlan) -> FallbackChain:
        """The placement of ``work`` and those below it."""
        wanted = work.placement
        steps = placements(wanted.batch, wanted.device, wanted.half_sums)
        if wanted.device != wanted.sums_on:
            steps = tuple(one for one in steps if one.batch == 1 and one.sums_on == wanted.sums_on)
        return FallbackChain(steps)

    def schedule(self, work: WorkPlan, volume: Volume, began_s: float, say: Callable[[str], None]) -> WindowSchedule:
        """Step and mirroring of the windows; with a limit of time, such that they keep to it."""
        mirroring = self.mirroring if work.mirrors > 1 else None
        seconds = self.settings.budget.seconds
        if seconds is None:
            return WindowSchedule(work.step, mirroring)
        after_s = overhead_seconds(Job.of(volume.space, self.plan), work.mode)
        return DeadlineSchedule(work.step, mirroring, began_s + seconds, after_s, say)


def plan_work(
    job: Job,
    wanted: WorkPlan,
    budget: Budget,
    window: WindowCost,
    now_bytes: int,
    share_with_body: float,
    beside: Beside = LABELS_ALONE,
    reading_bytes: int = 0,
) -> tuple[WorkPlan, Estimate]:
    """The first work plan that fits the budget, from the one wanted down, and what it will cost.

    Memory is traded first, for nothing but speed: smaller batches, sums in half precision, sums in RAM, the network
    on the CPU. Then time: windows that hold air are left out, mirroring is, windows overlap less, labels instead of
    probabilities are resampled. A time that can't be met is no error: the fastest plan is taken. Raises ConfigError
    when no plan fits the memory. ``share_with_body`` is the share of windows that hold more than air; ``beside`` and
    ``reading_bytes`` as for `estimate_ram`.
    """
    estimated = partial(_estimate, job, budget, window, now_bytes, share_with_body, beside, reading_bytes)
    for plan in _for_memory(wanted):
        estimate = estimated(plan)
        if not (too_much := _too_much(estimate, budget)):
            break
    else:
        raise ConfigError(
            f"this scan does not fit its budget even with one window at a time: {'; '.join(too_much)}. Allow more, or "
            "give a scan with fewer slices"
        )
    for quicker in _for_time(plan):
        plan, estimate = quicker, estimated(quicker)
        if budget.seconds is None or estimate.seconds <= budget.seconds:
            break
    return plan, estimate


def describe_work(plan: WorkPlan, estimate: Estimate, budget: Budget) -> str:
    """The plan and its estimate in one line."""
    parts = [f"RAM {_against(estimate.ram.peak, budget.ram_bytes, format_bytes)}"]
    if estimate.vram_bytes:
        parts.append(f"GPU memory {_against(estimate.vram_bytes, budget.vram_bytes, format_bytes)}")
    parts.append(_against(estimate.seconds, budget.seconds, "{:.0f} s".format))
    mirrors = f"{plan.mirrors} mirrored passes" if plan.mirrors > 1 else "no mirroring"
    words = f"estimated {', '.join(parts)}; {plan.placement}, step {plan.step:g}, {mirrors}, {plan.mode} mode"
    return words + (f"; traded for the budget: {', '.join(plan.traded)}" if plan.traded else "")


def _for_memory(plan: WorkPlan) -> Iterator[WorkPlan]:
    yield plan
    placement, traded = plan.placement, plan.traded
    while placement.batch > 1:
        placement = replace(placement, batch=placement.batch // 2)
        yield replace(plan, placement=placement, traded=(*traded, f"{placement.batch} windows at a time"))
    traded = (*traded, "one window at a time") if plan.placement.batch > 1 else traded
    if not placement.half_sums:
        placement = replace(placement, half_sums=True)
        traded = (*traded, "sums in half precision")
        yield replace(plan, placement=placement, traded=traded)
    if placement.device.type != "cpu":
        on_cpu = replace(placement, sums_on=CPU, half_sums=False)
        yield replace(plan, placement=on_cpu, traded=(*traded, "sums in RAM"))
        yield replace(plan, placement=replace(on_cpu, device=CPU), traded=(*traded, "the network on the CPU"))


def _for_time(plan: WorkPlan) -> Iterator[WorkPlan]:
    yield plan
    if not plan.skip_air:
        plan = replace(plan, skip_air=True, traded=(*plan.traded, "windows without body left out"))
        yield plan
    if plan.mirrors > 1:
        plan = replace(plan, mirrors=1, traded=(*plan.traded, "no mirroring"))
        yield plan
    before = plan
    for step in LARGER_STEPS:
        if step > before.step:
            plan = replace(before, step=step, traded=(*before.traded, f"step {step:g}"))
            yield plan
    if plan.mode != "fastest":
        yield replace(plan, mode="fastest", traded=(*plan.traded, "fastest mode"))


def _estimate(
    job: Job,
    budget: Budget,
    window: WindowCost,
    now_bytes: int,
    share_with_body: float,
    beside: Beside,
    reading_bytes: int,
    plan: WorkPlan,
) -> Estimate:
    larger = () if budget.seconds is None else LARGER_STEPS  # see DeadlineSchedule
    steps = (plan.step, *(step for step in larger if step > plan.step))
    share = share_with_body if plan.skip_air else 1.0
    return Estimate(
        estimate_ram(job, plan.placement, window, now_bytes, plan.mode, steps, beside, reading_bytes),
        estimate_gpu_memory(job, plan.placement, window, steps, plan.mirrors),
        estimate_seconds(job, window, plan.step, plan.mirrors, share, plan.mode),
    )


def _too_much(estimate: Estimate, budget: Budget) -> list[str]:
    """What exceeds the budget's memory, in words; empty when it fits."""
    kinds = (
        ("RAM", estimate.ram.peak, budget.ram_bytes),
        ("GPU memory", estimate.vram_bytes, budget.vram_bytes),
    )
    return [
        f"{format_bytes(cost)} of {name}, with a reserve of {MARGIN - 1:.0%}, against {format_bytes(limit)}"
        for name, cost, limit in kinds
        if limit is not None and cost * MARGIN > limit
    ]


def _against(cost: float, limit: float | None, words: Callable[[float], str]) -> str:
    return words(cost) if limit is None else f"{words(cost)} of {words(limit)}"
