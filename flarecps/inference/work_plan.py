"""How a scan will be done within its budget, what that costs, and what was traded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flarecps.errors import ConfigError
from flarecps.inference.budget import Budget, in_words
from flarecps.inference.export import Mode
from flarecps.inference.footing import CPU, Footing
from flarecps.inference.forecast import Job, Memory, WindowCost, forecast_ram, forecast_seconds, forecast_vram

MARGIN = 1.15  # a limit on memory is kept even if the forecast is this much too low
LARGER_STEPS = (0.85, 1.0)


@dataclass(frozen=True)
class WorkPlan:
    """Everything about the work that may be traded for memory or time."""

    footing: Footing
    step: float
    mirrors: int  # passes per window: 1 without mirroring
    skip_air: bool
    mode: Mode
    traded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foretold:
    """What a work plan will cost."""

    ram: Memory
    vram_bytes: int
    seconds: float


def plan_work(
    job: Job, wanted: WorkPlan, budget: Budget, window: WindowCost, now_bytes: int, share_with_body: float
) -> tuple[WorkPlan, Foretold]:
    """The first work plan that fits the budget, from the one wanted down, and what it will cost.

    Memory is traded first, for nothing but speed: smaller batches, sums in half precision, sums in RAM, the network
    on the CPU. Then time: windows that hold air are left out, mirroring is, windows overlap less, labels instead of
    probabilities are resampled. A time that can't be met is no error: the fastest plan is taken. Raises ConfigError
    when no plan fits the memory. ``share_with_body`` is the share of windows that hold more than air.
    """
    for plan in _for_memory(wanted):
        foretold = _foretold(job, plan, budget, window, now_bytes, share_with_body)
        if not _too_much(foretold, budget):
            break
    else:
        raise ConfigError(_refusal(foretold, budget))
    for quicker in _for_time(plan):
        plan, foretold = quicker, _foretold(job, quicker, budget, window, now_bytes, share_with_body)
        if budget.seconds is None or foretold.seconds <= budget.seconds:
            break
    return plan, foretold


def plan_in_words(plan: WorkPlan, foretold: Foretold, budget: Budget) -> str:
    """The plan and its forecast in one line."""
    parts = [f"RAM {_against(foretold.ram.peak, budget.ram_bytes, in_words)}"]
    if foretold.vram_bytes:
        parts.append(f"GPU memory {_against(foretold.vram_bytes, budget.vram_bytes, in_words)}")
    parts.append(_against(foretold.seconds, budget.seconds, "{:.0f} s".format))
    mirrors = f"{plan.mirrors} mirrored passes" if plan.mirrors > 1 else "no mirroring"
    words = f"foretold {', '.join(parts)}; {plan.footing}, step {plan.step:g}, {mirrors}, {plan.mode} mode"
    return words + (f"; traded for the budget: {', '.join(plan.traded)}" if plan.traded else "")


def _for_memory(plan: WorkPlan) -> Iterator[WorkPlan]:
    yield plan
    footing, traded = plan.footing, plan.traded
    while footing.batch > 1:
        footing = replace(footing, batch=footing.batch // 2)
        yield replace(plan, footing=footing, traded=(*traded, f"{footing.batch} windows at a time"))
    traded = (*traded, "one window at a time") if plan.footing.batch > 1 else traded
    if not footing.half_sums:
        footing = replace(footing, half_sums=True)
        traded = (*traded, "sums in half precision")
        yield replace(plan, footing=footing, traded=traded)
    if footing.device.type != "cpu":
        on_cpu = replace(footing, sums_on=CPU, half_sums=False)
        yield replace(plan, footing=on_cpu, traded=(*traded, "sums in RAM"))
        yield replace(plan, footing=replace(on_cpu, device=CPU), traded=(*traded, "the network on the CPU"))


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


def _foretold(
    job: Job, plan: WorkPlan, budget: Budget, window: WindowCost, now_bytes: int, share_with_body: float
) -> Foretold:
    larger = [] if budget.seconds is None else [step for step in LARGER_STEPS if step > plan.step]  # see Pace
    steps = (plan.step, *larger)
    share = share_with_body if plan.skip_air else 1.0
    return Foretold(
        forecast_ram(job, plan.footing, window, now_bytes, plan.mode, steps),
        forecast_vram(job, plan.footing, window, steps),
        forecast_seconds(job, window, plan.step, plan.mirrors, share, plan.mode),
    )


def _too_much(foretold: Foretold, budget: Budget) -> bool:
    pairs = ((foretold.ram.peak, budget.ram_bytes), (foretold.vram_bytes, budget.vram_bytes))
    return any(limit is not None and cost * MARGIN > limit for cost, limit in pairs)


def _refusal(least: Foretold, budget: Budget) -> str:
    found = []
    for name, cost, limit in (
        ("RAM", least.ram.peak, budget.ram_bytes),
        ("GPU memory", least.vram_bytes, budget.vram_bytes),
    ):
        if limit is not None and cost * MARGIN > limit:
            found.append(f"{in_words(cost)} of {name}, with a reserve of {MARGIN - 1:.0%}, against {in_words(limit)}")
    return (
        f"this scan does not fit its budget even with one window at a time: {'; '.join(found)}. Allow more, or give a "
        "scan with fewer slices"
    )


def _against(cost: float, limit: float | None, words: Callable[[float], str]) -> str:
    return words(cost) if limit is None else f"{words(cost)} of {words(limit)}"
