"""What networks that are not trained yet will cost on scans: at a speed that is measured here, or assumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flarecps.checkpoint import FinestScale, read_checkpoint
from flarecps.inference.resources.budget import Budget, format_bytes
from flarecps.inference.resources.cost import (
    FLOAT,
    Job,
    WindowCost,
    estimate_gpu_memory,
    estimate_ram,
    estimate_seconds,
    measure_window,
)
from flarecps.inference.resources.devices import torch_device
from flarecps.inference.resources.placement import FallbackChain, Placement, placements, windows_at_a_time
from flarecps.inference.resources.planner import MARGIN
from flarecps.inference.resources.usage import ram_bytes
from flarecps.inference.settings import SegmentationSettings
from flarecps.inference.sliding_window import autocast
from flarecps.networks import PlainUNet
from flarecps.networks.cost import NetworkCost, network_cost
from flarecps.planning.fingerprint import CaseShape
from flarecps.planning.plan import Plan, read_plan
from flarecps.planning.student import ScanForecast, Teacher
from flarecps.volumes.space import Space

TRIES = 3  # the first sets things up
ASSUMED_MACS_PER_S = 1e12  # of a GPU that is not here: a seventh of the peak of a card of 13.4 TFLOP/s (RTX 2080 Ti)


class Forecaster:
    """Forecasts what a plan's network costs on a data set's largest scan, as ``segment`` does it, unmirrored.

    Windows of the first network that is asked for are measured, and others are taken to be as quick, and as large in
    memory, by their multiply-accumulates and feature maps. Without a GPU here, ``cuda`` has an assumed speed, and all
    feature maps in memory at once, in single precision.

    Args:
        cases: the data set's scans.
        budget: the limits.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """

    def __init__(self, cases: Sequence[CaseShape], budget: Budget, device: str = "auto") -> None:
        self.cases, self.budget, self.settings = cases, budget, SegmentationSettings()
        self.assumed = device.startswith("cuda") and not torch.cuda.is_available()
        self.device = torch.device("cuda") if self.assumed else torch_device(device)
        self._measured: tuple[NetworkCost, WindowCost] | None = None

    def __call__(self, plan: Plan) -> ScanForecast:
        """The forecast for ``plan``, one window at a time, with the reserve that ``segment`` keeps."""
        window, step = self._window(plan), self.settings.step
        jobs = [Job.of(Space.canonical(case.shape_voxels, case.spacing_mm), plan) for case in self.cases]
        largest = max(jobs, key=lambda job: job.network_voxels)
        placement = Placement(1, self.device, self.device, self.device.type != "cpu")
        seconds = [estimate_seconds(job, window, step, 1, 1.0, self.settings.mode) for job in jobs]
        ram = estimate_ram(largest, placement, window, ram_bytes(), self.settings.mode, (step,)).peak
        costs = [
            (estimate_gpu_memory(largest, placement, window, (step,)), self.budget.vram_bytes, "GPU memory"),
            (ram, self.budget.ram_bytes, "RAM"),
        ]
        memory = [(cost, limit, name) for cost, limit, name in costs if cost]
        words = [f"{max(seconds):.1f} s{_of(self.budget.seconds, '{:g} s'.format)} (median {np.median(seconds):.1f} s)"]
        words += [f"{name} {format_bytes(cost)}{_of(limit, format_bytes)}" for cost, limit, name in memory]
        return ScanForecast(
            memory_fits=all(limit is None or cost * MARGIN <= limit for cost, limit, _ in memory),
            time_fits=self.budget.seconds is None or max(seconds) <= self.budget.seconds,
            words=f"largest scan estimated at {', '.join(words)}, {self.source}",
        )

    @property
    def source(self) -> str:
        """Where the speed comes from, in words."""
        if self.assumed:
            return f"for a GPU of {ASSUMED_MACS_PER_S:.0e} multiply-accumulates a second (assumed: none is here)"
        return f"measured on this machine's {self.device}"

    def _window(self, plan: Plan) -> WindowCost:
        cost = _cost(plan)
        weights = cost.parameters * FLOAT
        if self.assumed:
            maps = cost.convolved_elements * FLOAT
            return WindowCost(cost.macs / ASSUMED_MACS_PER_S, 0, weights + maps, weights)
        if self._measured is None:
            chain = FallbackChain(placements(1, self.device, self.device.type != "cpu"))
            network = FinestScale(_network(plan)).eval()
            window = measure_window([network], plan, chain)
            self._measured = cost, replace(window, seconds=_seconds(network, plan, chain.now.device))
        before, window = self._measured
        share = cost.convolved_elements / before.convolved_elements
        return WindowCost(
            window.seconds * cost.macs / before.macs,
            int(window.ram_bytes * share),
            weights + int(max(window.vram_bytes - before.parameters * FLOAT, 0) * share),
            weights,
        )


def _seconds(network: FinestScale, plan: Plan, device: torch.device) -> float:
    """Of one window among as many at once as suit the device: the quickest of some tries, for others may be at work."""
    batch = windows_at_a_time(plan.patch_voxels, device)
    image, network = torch.zeros((batch, len(plan.channels), *plan.patch_voxels), device=device), network.to(device)
    found = []
    with torch.inference_mode(), autocast(device):
        for _ in range(TRIES):
            began = time.perf_counter()
            network(image).flatten()[0].item()  # waits for a GPU
            found.append(time.perf_counter() - began)
    return min(found) / batch


def parameters_of(plan: Plan) -> int:
    """Of the plan's network."""
    with torch.device("meta"):
        return sum(one.numel() for one in _network(plan).parameters())


def teacher_of(path: Path) -> Teacher:
    """The teacher in a checkpoint of ``fit``, or in a plan; ``FlarecpsError`` where it is neither."""
    if path.suffix.lower() == ".json":
        plan = read_plan(path)
        return Teacher(plan, parameters_of(plan), str(path))
    model = read_checkpoint(path)
    return Teacher(model.plan, sum(one.numel() for one in model.siblings[0].parameters()), str(path))


def _network(plan: Plan) -> PlainUNet:
    one = plan.topology
    return PlainUNet(len(plan.channels), plan.class_count, one.features, one.strides, one.kernels)


def _cost(plan: Plan) -> NetworkCost:
    with torch.device("meta"):
        return network_cost(_network(plan), len(plan.channels), plan.patch_voxels)


def _of(limit: float | None, words: Callable[[float], str]) -> str:
    return "" if limit is None else f" of {words(limit)}"
