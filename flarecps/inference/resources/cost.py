"""What a scan will cost in memory and time, estimated from sizes and one measured window."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from flarecps.inference.device_export import LABELS_AT_ONCE, PLANES_HELD
from flarecps.inference.export import AT_ONCE, Mode
from flarecps.inference.resources.deadline import WindowSchedule
from flarecps.inference.resources.placement import FallbackChain, Placement
from flarecps.inference.resources.usage import (
    CUDA_CONTEXT_BYTES,
    RamMeter,
    context_bytes,
    peak_gpu_memory,
    ram_bytes,
    release_freed_memory,
    reset_peak_gpu_memory,
)
from flarecps.inference.sliding_window import PINNED_BYTES, Network, scores_by_slab, window_count, windows
from flarecps.inference.window_selection import COARSE_STEP, coarse_shape
from flarecps.planning.plan import Plan, volume_patch
from flarecps.preprocessing.case import network_shape
from flarecps.typing import Triple
from flarecps.volumes.space import Space

FLOAT, HALF, LABEL = 4, 2, 1  # bytes a voxel
COMPONENTS = 13  # bytes a voxel while connected components are looked for: a mask, their numbers, these as indices
BORDER = 8 * AT_ONCE * FLOAT  # bytes a class while border voxels are interpolated between their 8 neighbours
KEPT_BYTES = 32 * 2**20  # of freed memory that the allocator keeps: what lies below glibc's largest threshold
PREVIEW_BYTES = 100 * 2**20  # of a picture that is drawn: measured, benchmarks/inference/ram_limits.py
LOOK_EVERY_S = 0.001  # at the memory of a window, which may be quick
QUICK_S = 2.0  # a first window that is quicker is timed again, without what torch sets up once

# Seconds per million voxels of the scan on one thread of a server core, with a reserve of about two: start values only,
# since what a scan takes is looked at while it runs.
PREPARING_S = 0.03
EXPORTING_S = {"normal": 0.02, "fast": 0.05, "fastest": 0.005}
WRITING_S = 0.02


@dataclass(frozen=True)
class Job:
    """The sizes that decide what a scan costs. Shapes are (slice, row, column), the network's in its own order."""

    scan_shape: Triple
    network_shape: Triple
    network_bytes: int  # a voxel of the image on the network's grid
    axis_order: Triple
    channels: int
    classes: int
    patch_voxels: tuple[int, ...]
    coarse_shape: Triple | None = None  # of the quick pass over larger voxels, where there is one

    @staticmethod
    def of(space: Space, plan: Plan, coarse_to_fine: bool = False) -> Job:
        """The sizes of a scan whose grid is ``space``, in the plan's order of voxels."""
        shape = network_shape(space.shape, space.spacing_mm, plan)
        return Job(
            scan_shape=space.shape,
            network_shape=shape,
            axis_order=plan.axis_order,
            network_bytes=2 if plan.integer_hu else 4,
            channels=len(plan.channels),
            classes=plan.class_count,
            patch_voxels=plan.patch_voxels,
            coarse_shape=coarse_shape(shape, plan.dimensions) if coarse_to_fine else None,
        )

    @property
    def between_voxels(self) -> int:
        """Of the array between the scan's grid and the network's: all axes but the one that grows most are done."""
        canonical = tuple(self.network_shape[self.axis_order.index(axis)] for axis in range(3))
        pairs = sorted(zip(self.scan_shape, canonical, strict=True), key=lambda pair: pair[1] / pair[0])
        (_, first), (_, second), (last, after) = pairs
        return first * second * last if last != after else 0

    @property
    def scan_voxels(self) -> int:
        """Of one channel."""
        return math.prod(self.scan_shape)

    @property
    def network_voxels(self) -> int:
        """Of one channel on the network's grid."""
        return math.prod(self.network_shape)


@dataclass(frozen=True)
class Beside:
    """What is made of every scan beside its labels, as far as memory is concerned."""

    probabilities: bool = False
    preview: bool = False
    rules: bool = False
    agreement: bool = False


LABELS_ALONE = Beside()


@dataclass(frozen=True)
class Unread:
    """What a scan takes in memory that is not read yet, by its headers alone: its grid in the plan's order of voxels.

    ``array_bytes`` of its intensities, all channels; ``reading_bytes`` at the most while they are read.
    """

    space: Space
    array_bytes: int
    reading_bytes: int


@dataclass(frozen=True)
class WindowCost:
    """One window, measured: through all networks once, unmirrored."""

    seconds: float
    ram_bytes: int  # rise above what was there before
    vram_bytes: int  # peak of all tensors, the networks' weights among them
    weights_bytes: int  # of the networks, on the GPU
    ram_by_batch: Mapping[int, int] = field(default_factory=dict)  # of several windows at once, where measured
    context_bytes: int = CUDA_CONTEXT_BYTES  # on the GPU, beside tensors

    def ram_of(self, batch: int) -> int:
        """What up to ``batch`` windows at once take: a layer's last ones may be fewer.

        As measured, else in proportion to the most that were. One small window may take more than several: PyTorch
        convolves single samples by another road.
        """
        measured = {1: self.ram_bytes, **self.ram_by_batch}
        beyond = math.ceil(measured[max(measured)] * batch / max(measured)) if batch > max(measured) else 0
        return max(beyond, *(size for count, size in measured.items() if count <= batch), 0)


@dataclass(frozen=True)
class MemoryEstimate:
    """Resident memory at its highest, by phase, in bytes; ``before`` the windows also while the scan is read."""

    before: int
    preparing: int
    windows: int
    writing: int

    @property
    def peak(self) -> int:
        """The highest of the phases."""
        return max(self.before, self.preparing, self.windows, self.writing)


def measure_window(
    networks: Sequence[Network], plan: Plan, chain: FallbackChain, batch: int = 1, ram_limit: int | None = None
) -> WindowCost:
    """The cost of one window through all networks, unmirrored, on the first placement of ``chain`` that it fits.

    On the CPU 2, 4, … up to ``batch`` windows at once are tried, too, as long as twice as many as were tried are sure
    to fit ``ram_limit``: the memory that they take is not in proportion.
    """
    patch = volume_patch(plan.patch_voxels)
    weights = sum(
        value.numel() * value.element_size()
        for network in networks
        if isinstance(network, nn.Module)
        for value in network.state_dict().values()
    )

    def rise(count: int, chain: FallbackChain) -> tuple[float, int]:
        """Seconds and memory of ``count`` windows at once, behind each other along the first axis."""
        image = torch.zeros((len(plan.channels), count * patch[0], *patch[1:]))
        image.normal_(generator=torch.Generator().manual_seed(0))
        release_freed_memory()
        began = time.perf_counter()
        with RamMeter(LOOK_EVERY_S) as ram:
            for _ in scores_by_slab(networks, image, plan.patch_voxels, plan.class_count, WindowSchedule(1.0), chain):
                pass
            if chain.now.device.type == "cuda":
                torch.cuda.synchronize(chain.now.device)
        sums = (plan.class_count + 1) * count * math.prod(patch) * FLOAT
        return time.perf_counter() - began, max(ram.rise - sums, 0)

    device = chain.now.device
    reset_peak_gpu_memory(device)
    seconds, window_bytes = rise(1, chain)
    if seconds < QUICK_S or chain.place:
        reset_peak_gpu_memory(device)  # placements that failed filled the GPU to its limit
        seconds, window_bytes = rise(1, chain)
    cost = WindowCost(seconds, window_bytes, peak_gpu_memory(device), weights, context_bytes=context_bytes(device))
    while chain.now.device.type == "cpu" and (count := 2 * max((1, *cost.ram_by_batch))) <= batch:
        if ram_limit is not None and ram_bytes() + 2 * cost.ram_of(count) > ram_limit:
            break
        _, more = rise(count, FallbackChain([Placement(count)]))
        cost = replace(cost, ram_by_batch={**cost.ram_by_batch, count: more})
    return cost


def estimate_ram(
    job: Job,
    placement: Placement,
    window: WindowCost,
    now_bytes: int,
    mode: Mode,
    steps: Sequence[float],
    beside: Beside = LABELS_ALONE,
    reading_bytes: int = 0,
) -> MemoryEstimate:
    """The process's resident memory while the scan is done, if it is ``now_bytes`` now, with the scan read.

    ``steps`` are those that the windows may take on the way. While windows run, memory holds the image on the
    network's grid, the sums' slabs, the labels, and what the batch takes. Nothing of it grows with classes × scan.
    ``beside`` is what else is made of the scan; ``reading_bytes`` the memory, in all, while it is read.
    """
    image = job.channels * job.network_voxels * job.network_bytes
    preparing = now_bytes + preparing_bytes(job)
    labels = job.scan_voxels * LABEL + (job.network_voxels * LABEL if mode != "normal" else 0)
    _, rows, columns = _padded(job.network_shape, job.patch_voxels)
    plane = job.classes * rows * columns * FLOAT
    running = now_bytes + image + labels + 2 * plane + KEPT_BYTES  # two of scores, between which a slice lies
    if placement.device.type == "cuda":  # PyTorch rounds pinned blocks up to powers of two
        layer = _slab_voxels(job, placement, steps) * job.channels * job.network_bytes
        running += 2 * layer if layer <= PINNED_BYTES else 0
    if placement.sums_on.type == "cpu":
        running += sums_bytes(job, placement, steps)
    used_up = plane + job.classes * BORDER  # of a slab, when the windows rest
    if beside.probabilities:  # in single precision where it is softened, twice in half precision on its way out
        used_up += job.classes * rows * columns * (FLOAT + 2 * HALF)
    running += max(used_up, window.ram_of(placement.batch) if placement.device.type == "cpu" else 0)
    if beside.agreement:  # the labels of one sibling wait for those of the other
        running += job.scan_voxels * LABEL
    writing = now_bytes + 2 * job.scan_voxels * LABEL
    if beside.rules:
        writing = max(writing, now_bytes + job.scan_voxels * (2 * LABEL + COMPONENTS))
    if beside.preview:
        writing += PREVIEW_BYTES
    return MemoryEstimate(max(now_bytes, reading_bytes), preparing, running, writing)


def preparing_bytes(job: Job) -> int:
    """The most that preparing a scan takes beside it, its image on the network's grid among it.

    Where voxels are filled, they are there as truth values twice; then that image, beside what lies between the grids:
    the two axes that shrink most are resampled first.
    """
    image = job.channels * job.network_voxels * job.network_bytes
    return max(2 * job.scan_voxels, image + job.between_voxels * FLOAT)


def estimate_gpu_memory(
    job: Job, placement: Placement, window: WindowCost, steps: Sequence[float], mirrors: int = 1
) -> int:
    """GPU memory as the driver counts it, in bytes; 0 on the CPU."""
    if placement.device.type == "cpu":
        return 0
    activations = placement.batch * (window.vram_bytes - window.weights_bytes)
    if mirrors > 1:  # beside what is measured of one pass, the sum so far and a copy that is turned back
        activations += 2 * placement.batch * math.prod(job.patch_voxels) * job.classes * FLOAT
    image = _slab_voxels(job, placement, steps) * job.channels * job.network_bytes
    sums = 0
    if placement.sums_on.type != "cpu":  # there the way back is, too
        plane = job.scan_shape[job.axis_order[1]] * job.scan_shape[job.axis_order[2]]
        sums = sums_bytes(job, placement, steps) + plane * (job.classes * PLANES_HELD * FLOAT + 2 * LABELS_AT_ONCE)
    return window.context_bytes + window.weights_bytes + activations + image + sums


def estimate_seconds(job: Job, window: WindowCost, step: float, passes: int, share: float, mode: Mode) -> float:
    """Time from the scan's array to its file. ``passes`` per window (mirrors); ``share`` of windows that are run."""
    count = window_count(job.network_shape, job.patch_voxels, step) * share
    return count * passes * window.seconds + overhead_seconds(job, mode)


def overhead_seconds(job: Job, mode: Mode) -> float:
    """The time of everything but the network."""
    million = job.scan_voxels / 1e6
    return million * (PREPARING_S * job.channels + EXPORTING_S[mode] + WRITING_S)


def sums_bytes(job: Job, placement: Placement, steps: Sequence[float]) -> int:
    """The slabs of sums, every class and the weights, at the step of ``steps`` that needs most, or the quick pass."""
    held = _slab_voxels(job, placement, steps)
    return held * (job.classes * (HALF if placement.half_sums else FLOAT) + FLOAT)


def _slab_voxels(job: Job, placement: Placement, steps: Sequence[float]) -> int:
    """Voxels of the largest slab, at the step of ``steps`` that needs most, or in the quick pass."""
    held = max(_voxels_held(job.network_shape, job.patch_voxels, placement.batch, step) for step in steps)
    if job.coarse_shape is not None:
        held = max(held, _voxels_held(job.coarse_shape, job.patch_voxels, placement.batch, COARSE_STEP))
    return held


def _voxels_held(shape: Triple, patch_voxels: tuple[int, ...], batch: int, step: float) -> int:
    """Of a slab of a grid: a window deep, and more where a plane has so few windows that a batch takes several layers.

    A plane of the quick pass has fewer windows, so its slabs may hold more than those of the network's own grid.
    """
    patch = volume_patch(patch_voxels)
    padded = _padded(shape, patch_voxels)
    starts, *across = windows(padded, patch, step)
    layers = max(1, batch // math.prod(map(len, across)))
    groups = (starts[first : first + layers] for first in range(0, len(starts), layers))
    return (max(group[-1] - group[0] for group in groups) + patch[0]) * padded[1] * padded[2]


def _padded(shape: Triple, patch_voxels: tuple[int, ...]) -> Triple:
    """A grid with every edge at least the patch's."""
    first, second, third = (max(edge, size) for edge, size in zip(shape, volume_patch(patch_voxels), strict=True))
    return first, second, third
