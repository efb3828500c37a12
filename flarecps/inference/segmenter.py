"""A trained model as a function from a scan to its labels: the Python API behind ``flarecps segment``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flarecps.batch_processing import progress_bar
from flarecps.errors import ConfigError
from flarecps.inference.body import holds_body, share_with_body
from flarecps.inference.budget import UNLIMITED, Budget, in_words
from flarecps.inference.coarse_to_fine import find_region
from flarecps.inference.ensemble import Sibling, load_networks
from flarecps.inference.export import MODES, Mode, scan_labels
from flarecps.inference.footing import Footing, Ladder, footings, windows_at_a_time
from flarecps.inference.forecast import Job, WindowCost, side_seconds
from flarecps.inference.meters import (
    CUDA_CONTEXT_BYTES,
    RamMeter,
    forget_vram_peak,
    limited_gpu_memory,
    ram_bytes,
    vram_peak_bytes,
)
from flarecps.inference.mirroring import Mirroring, lateral_patch_axis
from flarecps.inference.pace import Pace
from flarecps.inference.sliding_window import (
    Accumulate,
    Course,
    Network,
    Place,
    scores_by_slab,
    volume_patch,
    whole,
    window_count,
)
from flarecps.inference.spacing_rules import enforced_spacing_mm, pretended
from flarecps.inference.work_plan import Foretold, WorkPlan, plan_in_words, plan_work
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import GridMapping, Prepared, in_plan_order, network_shape, prepare_case
from flarecps.preprocessing.intensity import normalise
from flarecps.typing import LabelArray
from flarecps.volumes.io import Volume

DEFAULT_STEP = 0.7  # the paper's; nnU-Net's is 0.5
QUICK_S = 2.0  # a first window that is quicker is timed again, without what torch sets up once


@dataclass(frozen=True)
class Settings:
    """How a scan is segmented; see ``Segmenter``."""

    step: float = DEFAULT_STEP
    mirror_axes: tuple[int, ...] | Literal["all"] = ()
    swap_left_right: bool = False
    device: torch.device | str = "auto"
    batch: int | None = None
    accumulate: Accumulate = "softmax"
    mode: Mode = "normal"
    skip_air: bool = False
    coarse_to_fine: bool = False
    enforce_spacing: bool = False
    budget: Budget = UNLIMITED

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ConfigError(
                f"step {self.step}: expected a fraction of the patch above 0, at most 1, e.g. {DEFAULT_STEP}"
            )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch {self.batch}: expected at least 1 window at a time")
        if self.mode not in MODES:
            raise ConfigError(f"mode '{self.mode}': expected one of {', '.join(MODES)}")
        if self.accumulate not in ("softmax", "logits"):
            raise ConfigError(f"accumulate '{self.accumulate}': expected softmax or logits")


class Segmenter:
    """Segments scans with one network, or with several whose probabilities are averaged.

    >>> segmenter = Segmenter.load("runs/cps/checkpoints/last.ckpt")  # doctest: +SKIP
    >>> labels = segmenter(read_volume("scan.nii.gz"))  # doctest: +SKIP

    Args:
        plan: what the networks were trained by: spacing, patch, labels, intensities.
        networks: from windows (B, C, *patch) to logits (B, K, *patch), in evaluation mode.
        say: is told, in a line each, what a scan is foretold to cost, what is traded for the budget while it runs, and
            what it did cost.

    ``settings`` are those of ``Settings``, each with a default:

    - ``step`` of the sliding window, as a fraction of the patch.
    - ``mirror_axes``: the patch's own axes that are mirrored at test time, in all combinations; ``"all"``, or none.
      Only axes along which the training mirrored, too, do good.
    - ``swap_left_right``: exchange paired labels when the left-right axis is mirrored, for models trained that way.
    - ``device``: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
    - ``batch``: windows at a time; None: as many as suit patch and device. Does not change the result.
    - ``accumulate``: average ``"softmax"`` (nnU-Net v1) or ``"logits"`` (v2) over windows, mirrors and networks.
    - ``mode``: ``"normal"``, ``"fast"`` or ``"fastest"``, see ``flarecps.inference.export``.
    - ``skip_air``: leave out windows that hold no body; they are background.
    - ``coarse_to_fine``: a quick pass on larger voxels finds the region of the organs; only windows there are run.
    - ``enforce_spacing``: the paper's pretended spacing; 10 to 20 % less DSC (the paper).
    - ``budget``: limits of memory and time. What is traded for them is chosen for each scan.
    """

    def __init__(
        self, plan: Plan, networks: Sequence[Network], say: Callable[[str], None] | None = None, **settings: object
    ) -> None:
        self.plan = plan
        self.settings = Settings(**settings)  # type: ignore[arg-type]  # a wrong name is a TypeError that says so
        self.device = torch_device(self.settings.device)
        self.networks = tuple(networks)  # whoever runs windows takes them to the device, as far as they fit
        self.mirroring = _mirroring(plan, self.settings.mirror_axes, self.settings.swap_left_right)
        self._say = say
        self.batch = self.settings.batch or windows_at_a_time(plan.patch_voxels, self.device)
        self._window: WindowCost | None = None
        self._largest: Footing | None = None  # what one window had to be content with under the limit of GPU memory

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | Sequence[Path | str],
        sibling: Sibling = "1",
        say: Callable[[str], None] | None = None,
        **settings: object,
    ) -> Segmenter:
        """The segmenter of a checkpoint's sibling ``"1"``, ``"2"``, or of their ``"average"``.

        Several checkpoints (folds) are averaged, too. Raises CheckpointError for a file that is not a checkpoint,
        ConfigError for settings that do not suit it, or checkpoints that do not belong together.
        """
        paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
        plan, networks = load_networks(paths, sibling)
        return cls(plan, networks, say, **settings)

    def __call__(
        self,
        volume: Volume,
        show_progress: bool = False,
        began_s: float | None = None,
        prepared: Prepared | None = None,
        each_slab: Callable[[Tensor, GridMapping], None] | None = None,
    ) -> LabelArray:
        """Labels, uint8 (slice, row, column), on the canonical grid of ``volume``; 0 outside the field of view.

        ``show_progress`` shows a bar over the windows. ``began_s`` (``time.monotonic()``) is when the scan's time began
        to count, by default now. ``prepared`` is what ``prepare`` gave for this scan, if that was done ahead.
        ``each_slab`` is shown the scores (K, n, H, W) on the network's grid as they come. Raises ScanError when the
        channels are not the plan's, ConfigError when the budget's memory can't suffice.
        """
        began_s = time.monotonic() if began_s is None else began_s
        scan, volume = volume, self._seen(volume)
        if not self.settings.budget:
            prepared = prepared or prepare_case(volume, self.plan)
            work = self._wanted()
            slabs = self._slabs(prepared, work, Course(work.step, self.mirroring), volume, show_progress)
            labels = scan_labels(_shown(slabs, prepared.grid_mapping, each_slab), prepared.grid_mapping, work.mode)
            return self._canonical(labels, scan)
        work, foretold = self.foretell(volume, began_s)
        self._tell(plan_in_words(work, foretold, self.settings.budget))
        with limited_gpu_memory(self.settings.budget.vram_bytes, self.device), RamMeter() as ram:
            forget_vram_peak(self.device)
            prepared = prepared or prepare_case(volume, self.plan)
            course = self._course(work, volume, began_s)
            slabs = self._slabs(prepared, work, course, volume, show_progress)
            labels = scan_labels(_shown(slabs, prepared.grid_mapping, each_slab), prepared.grid_mapping, work.mode)
        self._tell(_what_it_took(ram.peak, vram_peak_bytes(self.device), time.monotonic() - began_s))
        return self._canonical(labels, scan)

    def prepare(self, volume: Volume) -> Prepared:
        """The scan on the network's grid, the first part of segmenting it; may be done in another thread."""
        return prepare_case(self._seen(volume), self.plan)

    def probabilities(self, volume: Volume, show_progress: bool = False) -> tuple[Tensor, GridMapping]:
        """Class probabilities (K, S, H, W), float32, on the network's grid, and the way back to the scan's."""
        volume = self._seen(volume)
        prepared = prepare_case(volume, self.plan)
        work = self._wanted()
        slabs = self._slabs(prepared, work, Course(work.step, self.mirroring), volume, show_progress)
        scores = whole(slabs, (self.plan.class_count, *prepared.grid_mapping.network_shape), torch.device("cpu"))
        if self.settings.accumulate == "logits":
            scores = torch.softmax(scores, dim=0)
        return scores, prepared.grid_mapping

    def foretell(self, volume: Volume, began_s: float | None = None) -> tuple[WorkPlan, Foretold]:
        """How this scan would be done within the budget, and what it would cost; one window is run to measure it.

        That window, too, keeps to the limit of GPU memory: where it does not fit, the sums go to RAM, then the network.
        """
        if self._window is None:
            with limited_gpu_memory(self.settings.budget.vram_bytes, self.device):
                self._window = self._measured_window()
        volume = in_plan_order(volume, self.plan)
        job = self._job(volume)
        budget = self.settings.budget
        if budget.seconds is not None and began_s is not None:
            gone = time.monotonic() - began_s
            budget = Budget(budget.ram_bytes, budget.vram_bytes, max(budget.seconds - gone, 0.0))
        share = share_with_body(volume.array, job.network_shape, self.plan, self.settings.step)
        return plan_work(job, self._wanted(), budget, self._window, ram_bytes(), share)

    def _seen(self, volume: Volume) -> Volume:
        """The scan in the plan's order of voxels, with the spacing that it is treated as having."""
        if self.settings.enforce_spacing:
            volume = pretended(volume, enforced_spacing_mm(volume.space.shape, volume.space.spacing_mm))
        return in_plan_order(volume, self.plan)

    def _canonical(self, labels: LabelArray, scan: Volume) -> LabelArray:
        """Labels in the order of ``scan``, as it was given, from those in the plan's order."""
        if self.plan.conventions.orientation == "ras":
            return labels
        return np.ascontiguousarray(scan.source.reorientation.apply(labels))

    def _wanted(self) -> WorkPlan:
        """The work plan as set, before any trade but those that a single window made necessary."""
        half = self.device.type != "cpu"
        mirrors = 1 if self.mirroring is None else self.mirroring.passes
        footing = self._largest or Footing(self.batch, self.device, self.device, half)
        traded = () if self._largest is None else (f"one window does not fit: {footing}",)
        return WorkPlan(footing, self.settings.step, mirrors, self.settings.skip_air, self.settings.mode, traded)

    def _course(self, work: WorkPlan, volume: Volume, began_s: float) -> Course:
        mirroring = self.mirroring if work.mirrors > 1 else None
        seconds = self.settings.budget.seconds
        if seconds is None:
            return Course(work.step, mirroring)
        after_s = side_seconds(self._job(volume), work.mode)
        return Pace(work.step, mirroring, began_s + seconds, after_s, self._say)

    def _slabs(
        self, prepared: Prepared, work: WorkPlan, course: Course, volume: Volume, show_progress: bool
    ) -> Iterator[Tensor]:
        """The scores of the prepared case, slab by slab."""
        image = torch.from_numpy(prepared.image)
        convert = partial(_normalised, plan=self.plan, statistics=prepared.statistics)
        ladder = Ladder(footings(work.footing.batch, work.footing.device, work.footing.half_sums))
        if work.footing.device != work.footing.sums_on:
            ladder = Ladder([one for one in ladder.steps if one.batch == 1 and one.sums_on == work.footing.sums_on])
        tests: list[Callable[[Place], bool]] = []
        if work.skip_air:
            known_air = self.plan.whole_hu  # where CT was clipped, a window without contrast holds no body
            tests.append(holds_body(prepared.image, "ct" if known_air else "zscore"))
        if self.settings.coarse_to_fine:
            region = find_region(self.networks, image, prepared.grid_mapping, self.plan, convert, ladder)
            tests.append(region.touches)
        count = window_count(image.shape[1:], self.plan.patch_voxels, work.step)
        title = f"Segmenting {volume.source.path.name}"
        with progress_bar(title, count, unit="window", shown=show_progress) as advance:
            yield from scores_by_slab(
                self.networks,
                image,
                self.plan.patch_voxels,
                self.plan.class_count,
                course,
                ladder,
                self.settings.accumulate,
                convert,
                lambda place: all(test(place) for test in tests),
                advance,
            )
        if ladder.place:
            self._tell(f"the GPU's memory ran out; went on with {ladder.now}")
            self.batch = min(self.batch, ladder.now.batch)

    def _job(self, volume: Volume) -> Job:
        return Job(
            scan_shape=volume.space.shape,
            network_shape=network_shape(volume.space.shape, volume.space.spacing_mm, self.plan),
            axis_order=self.plan.axis_order,
            network_bytes=2 if self.plan.whole_hu else 4,
            channels=len(self.plan.channels),
            classes=self.plan.class_count,
            patch_voxels=self.plan.patch_voxels,
        )

    def _measured_window(self) -> WindowCost:
        """One window through all networks, unmirrored."""
        patch = volume_patch(self.plan.patch_voxels)
        image = torch.zeros((len(self.plan.channels), *patch)).normal_(generator=torch.Generator().manual_seed(0))
        ladder = Ladder(footings(1, self.device, self.device.type != "cpu"))
        weights = sum(
            value.numel() * value.element_size()
            for network in self.networks
            if isinstance(network, nn.Module)
            for value in network.state_dict().values()
        )

        def once() -> float:
            began = time.perf_counter()
            slabs = scores_by_slab(
                self.networks, image, self.plan.patch_voxels, self.plan.class_count, Course(1.0), ladder
            )
            for _ in slabs:
                pass
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - began

        forget_vram_peak(self.device)
        with RamMeter() as ram:
            seconds = once()
        if seconds < QUICK_S:
            seconds = once()
        self._largest = ladder.now if ladder.place else None
        slices = patch[0] if len(self.plan.patch_voxels) == 3 else 1
        sums = (self.plan.class_count + 1) * slices * patch[1] * patch[2] * 4
        return WindowCost(seconds, max(ram.rise - sums, 0), vram_peak_bytes(self.device), weights)

    def _tell(self, words: str) -> None:
        if self._say is not None:
            self._say(words)


def torch_device(name: torch.device | str) -> torch.device:
    """The device called ``name``; ``"auto"`` is a GPU if there is one. ConfigError when it is not there.

    A GPU always has its index: limits of memory are set for one card, and ``torch.cuda`` won't guess which.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}': not available here; expected auto, cpu, cuda or cuda:N") from error
    return device


def _shown(
    slabs: Iterator[Tensor], grid_mapping: GridMapping, each_slab: Callable[[Tensor, GridMapping], None] | None
) -> Iterator[Tensor]:
    for slab in slabs:
        if each_slab is not None:
            each_slab(slab, grid_mapping)
        yield slab


def _what_it_took(ram_bytes: int, vram_bytes: int, seconds: float) -> str:
    vram = f", GPU memory {in_words(vram_bytes + CUDA_CONTEXT_BYTES)}" if vram_bytes else ""
    return f"it took {seconds:.1f} s; the highest RAM was {in_words(ram_bytes)}{vram}"


def _normalised(image: Tensor, plan: Plan, statistics: dict[str, list[float]]) -> Tensor:
    return torch.from_numpy(normalise(image.numpy(), plan.intensity, statistics))


def _mirroring(plan: Plan, axes: Sequence[int] | Literal["all"], swap_left_right: bool) -> Mirroring | None:
    chosen = tuple(range(plan.dimensions)) if axes == "all" else tuple(int(axis) for axis in axes)
    if not chosen:
        if swap_left_right:
            raise ConfigError("swap_left_right without mirroring does nothing: choose the mirror axes, too")
        return None
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(plan.dimensions)):
        names = "0 slice, 1 row, 2 column" if plan.dimensions == 3 else "0 row, 1 column"
        raise ConfigError(f"mirror axes {list(chosen)}: expected each of the patch's axes at most once ({names})")
    lateral = lateral_patch_axis(plan) if swap_left_right else None
    return Mirroring(chosen, lateral, plan.left_right_pairs)
