"""A trained model as a function from a scan to its labels: the Python API behind ``flarecps segment``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flarecps.batch_processing import progress_bar
from flarecps.checkpoint import MUST_AGREE, TrainedModel, Trusted, read_checkpoint
from flarecps.errors import ConfigError, ScanError
from flarecps.inference.device_export import device_labels
from flarecps.inference.export import scan_labels
from flarecps.inference.mirroring import mirroring_of
from flarecps.inference.resources.budget import format_bytes
from flarecps.inference.resources.cost import Job, Unread, preparing_bytes
from flarecps.inference.resources.deadline import WindowSchedule
from flarecps.inference.resources.devices import torch_device
from flarecps.inference.resources.placement import FallbackChain
from flarecps.inference.resources.planner import Estimate, ResourcePlanner, WorkPlan, describe_work
from flarecps.inference.resources.usage import (
    RamMeter,
    limited_gpu_memory,
    peak_as_counted,
    reset_peak_gpu_memory,
)
from flarecps.inference.settings import SegmentationSettings, Sibling
from flarecps.inference.sliding_window import Network, Place, joined_slabs, scores_by_slab, window_count
from flarecps.inference.window_selection import contains_body, find_region
from flarecps.planning.plan import Plan, plan_to_json
from flarecps.preprocessing.case import GridMapping, Prepared, prepare_case, transposed_to_plan
from flarecps.preprocessing.intensity import SMALLEST_SD
from flarecps.typing import LabelArray, SpacingMm, Triple
from flarecps.volumes.io import Volume
from flarecps.volumes.space import Space

# Enforced spacing: the voxel sizes that the paper's test submission pretends a scan to have.
FEW_SLICES, MANY_SLICES = 150, 600  # below and above which the rule changes; both numbers belong to the middle
IN_PLANE_MM = 0.75
DEFAULT_Z_MM = 0.5
LEAST_SHARE = 0.8  # of the default z, however many the slices


class Segmenter:
    """Segments scans with one network, or with several whose probabilities are averaged.

    >>> segmenter = Segmenter.load("runs/cps/checkpoints/last.ckpt", step=0.5)  # doctest: +SKIP
    >>> labels = segmenter(read_volume("scan.nii.gz"))  # doctest: +SKIP

    Args:
        plan: what the networks were trained by: spacing, patch, labels, intensities.
        networks: from windows (B, C, *patch) to logits (B, K, *patch), in evaluation mode.
        settings: how scans are segmented; by default ``SegmentationSettings()``.
        say: is told, in a line each, what a scan is estimated to cost, what is traded for the budget while it runs, and
            what it did cost.
        changes: single settings by name, in place of those of ``settings``.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[Network],
        settings: SegmentationSettings | None = None,
        say: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> None:
        self.plan = plan
        self.settings = replace(settings or SegmentationSettings(), **changes)
        self.device = torch_device(self.settings.device)
        self.networks = tuple(networks)  # whoever runs windows takes them to the device, as far as they fit
        self.mirroring = mirroring_of(plan, self.settings.mirror_axes, self.settings.swap_left_right)
        self.resources = ResourcePlanner(plan, self.networks, self.settings, self.device, self.mirroring)
        self.say = say or (lambda words: None)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | Sequence[Path | str],
        sibling: Sibling | None = None,
        settings: SegmentationSettings | None = None,
        say: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> Segmenter:
        """The segmenter of a checkpoint's sibling ``"1"``, ``"2"``, or of their ``"average"``.

        Several checkpoints (folds) are averaged, too. ``sibling`` and ``changes`` go before ``settings``. Raises
        CheckpointError for a file that is not a checkpoint or names a network that is not trusted, ConfigError for
        settings that do not suit it, or checkpoints that do not belong together.
        """
        if sibling is not None:
            changes["sibling"] = sibling
        settings = replace(settings or SegmentationSettings(), **changes)
        paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
        plan, networks = _load_networks(paths, settings.sibling, settings.trusted)
        return cls(plan, networks, settings, say)

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
        to count, by default now; whoever began tells what the scan took. ``prepared`` is what ``prepare`` gave for this
        scan, if that was done ahead.
        ``each_slab`` is shown the scores (K, n, H, W) on the network's grid as they come. Raises ScanError when the
        channels are not the plan's, ConfigError when the budget's memory can't suffice.
        """
        tell, began_s = began_s is None, time.monotonic() if began_s is None else began_s
        budget, seen = self.settings.budget, self._seen(volume)
        work = self.resources.wanted()
        with ExitStack() as measures:
            if budget:
                work, estimate = self.estimate(seen, began_s, prepared)
                self.say(describe_work(work, estimate, budget))
                measures.enter_context(limited_gpu_memory(budget.vram_bytes, self.device))
                ram = measures.enter_context(RamMeter())
                reset_peak_gpu_memory(self.device)
            prepared = prepared or prepare_case(seen, self.plan)
            schedule = self.resources.schedule(work, seen, began_s, self.say)
            way, placed = prepared.grid_mapping, self.resources.chain(work)
            slabs = self._slabs(prepared, work, placed, schedule, volume.source.path.name, show_progress)
            shown = _shown(slabs, way, each_slab)
            shown = chain([next(shown)], shown)  # when the first is there, the sums have found their place
            if work.mode == "normal" and placed.now.sums_on.type != "cpu":
                labels = device_labels(shown, way, placed.now.sums_on, self.say)
            else:
                labels = scan_labels(shown, way, work.mode)
        if budget and tell:
            self.say(what_it_took(ram.peak, peak_as_counted(self.device), time.monotonic() - began_s))
        return self._restored(labels, volume)

    def prepare(self, volume: Volume) -> Prepared:
        """The scan on the network's grid, the first part of segmenting it; may be done in another thread."""
        return prepare_case(self._seen(volume), self.plan)

    def probabilities(self, volume: Volume, show_progress: bool = False) -> tuple[Tensor, GridMapping]:
        """Class probabilities (K, S, H, W), float32, on the network's grid, and that grid's mapping to the scan's."""
        volume = self._seen(volume)
        prepared = prepare_case(volume, self.plan)
        work = self.resources.wanted()
        schedule = WindowSchedule(work.step, self.mirroring)
        placed = self.resources.chain(work)
        slabs = self._slabs(prepared, work, placed, schedule, volume.source.path.name, show_progress)
        scores = joined_slabs(slabs, (self.plan.class_count, *prepared.grid_mapping.network_shape), torch.device("cpu"))
        if self.settings.accumulate == "logits":
            scores = torch.softmax(scores, dim=0)
        return scores, prepared.grid_mapping

    def slabs(self, prepared: Prepared, name: str) -> Iterator[Tensor]:
        """The scores (K, n, H, W) of a prepared scan on the network's grid, n slices at a time and together all."""
        work = self.resources.wanted()
        schedule = WindowSchedule(work.step, self.mirroring)
        return self._slabs(prepared, work, self.resources.chain(work), schedule, name, show_progress=False)

    def estimate(
        self, volume: Volume, began_s: float | None = None, prepared: Prepared | None = None
    ) -> tuple[WorkPlan, Estimate]:
        """How this scan would be done within the budget, and what it would cost; one window is run to measure it."""
        held = 0 if prepared is None else prepared.image.nbytes
        return self.resources.plan_scan(transposed_to_plan(volume, self.plan), began_s, held)

    def ahead_bytes(self, space: Space, array_bytes: int) -> int:
        """What it takes to have a scan in memory and prepared, of its canonical grid and the bytes of its array."""
        return array_bytes + preparing_bytes(Job.of(self._seen_space(space), self.plan))

    def check_unread(self, space: Space, array_bytes: int, reading_bytes: int) -> None:
        """Nothing, or ConfigError when a scan that is not read yet can't be done within the budget's memory.

        ``space`` is its canonical grid; ``array_bytes`` its intensities in memory, and ``reading_bytes`` what they take
        at most while they are read.
        """
        if self.plan.conventions.orientation == "as_stored":  # brought into the file's order: there twice on the way
            reading_bytes = max(reading_bytes, 2 * array_bytes)
        self.resources.check_unread(Unread(self._seen_space(space), array_bytes, reading_bytes))

    def _seen(self, volume: Volume) -> Volume:
        """The scan in the plan's order of voxels, with the spacing that it is treated as having."""
        return transposed_to_plan(replace(volume, space=self._seen_space(volume.space)), self.plan)

    def _seen_space(self, space: Space) -> Space:
        if not self.settings.enforce_spacing:
            return space
        return replace(space, spacing_mm=enforced_spacing_mm(space.shape, space.spacing_mm))

    def _slabs(
        self,
        prepared: Prepared,
        work: WorkPlan,
        placed: FallbackChain,
        schedule: WindowSchedule,
        name: str,
        show_progress: bool,
    ) -> Iterator[Tensor]:
        """The scores of the prepared case, slab by slab."""
        image = torch.from_numpy(prepared.image)
        convert = partial(_normalised, plan=self.plan, statistics=prepared.statistics)
        tests: list[Callable[[Place], bool]] = []
        if work.skip_air:
            known_air = self.plan.integer_hu  # where CT was clipped, a window without contrast holds no body
            tests.append(contains_body(prepared.image, "ct" if known_air else "zscore"))
        if self.settings.coarse_to_fine:
            region = find_region(self.networks, image, prepared.grid_mapping, self.plan, convert, placed)
            tests.append(region.touches)
        count = window_count(image.shape[1:], self.plan.patch_voxels, work.step)
        with progress_bar(f"Segmenting {name}", count, unit="window", shown=show_progress) as advance:
            for slab in scores_by_slab(
                self.networks,
                image,
                self.plan.patch_voxels,
                self.plan.class_count,
                schedule,
                placed,
                self.settings.accumulate,
                convert,
                lambda place: all(test(place) for test in tests),
                advance,
            ):
                if not bool(torch.isfinite(slab.amin()) & torch.isfinite(slab.amax())):  # nothing as large as the slab
                    raise ScanError(
                        f"{name}: the network's outputs are not finite numbers for this scan: its "
                        "intensities are far from those it was trained on, or its weights are too large for half "
                        "precision; look at the scan (flarecps inspect), or use --device cpu"
                    )
                yield slab
        if placed.place:
            self.say(f"the GPU's memory ran out; went on with {placed.now}")
            self.resources.batch = min(self.resources.batch, placed.now.batch)

    def _restored(self, labels: LabelArray, scan: Volume) -> LabelArray:
        """Labels in the order of ``scan``, as it was given, from those in the plan's order."""
        if self.plan.conventions.orientation == "ras":
            return labels
        return np.ascontiguousarray(scan.source.reorientation.apply(labels))


def _load_networks(
    checkpoints: Sequence[Path | str], sibling: Sibling, trusted: Trusted = ()
) -> tuple[Plan, tuple[nn.Module, ...]]:
    """The plan and the networks whose probabilities are averaged, from one checkpoint or several (folds).

    Of each, sibling ``"1"``, ``"2"`` or both (``"average"``); a supervised control has one network: sibling 1, which
    is the average, too. ``trusted`` as in ``read_checkpoint``. Raises CheckpointError for a file that is not a
    checkpoint or names another network, ConfigError when it has no such sibling or the checkpoints' plans differ in
    what the networks see and name.
    """
    if not checkpoints:
        raise ConfigError("no checkpoint was named: expected one, or one per fold")
    models = [read_checkpoint(path, trusted) for path in checkpoints]
    ours = plan_to_json(models[0].plan)
    for other in models[1:]:
        theirs = plan_to_json(other.plan)
        for name in (*MUST_AGREE, "dimensions", "patch_voxels"):
            if ours.get(name) != theirs.get(name):
                raise ConfigError(
                    f"{other.path}: its {name} is {theirs.get(name)}, that of {models[0].path} is {ours.get(name)}; "
                    "only networks trained by one plan (folds of it, for instance) can be averaged"
                )
    return models[0].plan, tuple(network for model in models for network in _chosen(model, sibling))


def _chosen(model: TrainedModel, sibling: Sibling) -> Sequence[nn.Module]:
    if sibling == "average":
        return model.siblings
    if int(sibling) > len(model.siblings):
        raise ConfigError(
            f"sibling {sibling}: {model.path} holds one network only (a supervised control); use sibling 1"
        )
    return (model.siblings[int(sibling) - 1],)


def _shown(
    slabs: Iterator[Tensor], grid_mapping: GridMapping, each_slab: Callable[[Tensor, GridMapping], None] | None
) -> Iterator[Tensor]:
    for slab in slabs:
        if each_slab is not None:
            each_slab(slab, grid_mapping)
        yield slab


def what_it_took(ram_bytes: int, vram_bytes: int, seconds: float) -> str:
    """A scan's time and highest memory in words."""
    vram = f", GPU memory {format_bytes(vram_bytes)}" if vram_bytes else ""
    return f"it took {seconds:.1f} s; the highest RAM was {format_bytes(ram_bytes)}{vram}"


def _normalised(image: Tensor, plan: Plan, statistics: Mapping[str, Sequence[float]]) -> Tensor:
    """What ``preprocessing.intensity.normalise`` gives, bit for bit on a CPU, computed where ``image`` (C, ...) is."""
    result, one = image.to(torch.float32, copy=True), plan.intensity
    if one.scheme == "ct":
        return result.clamp_(one.low, one.high).sub_(one.mean).div_(max(one.sd, SMALLEST_SD))
    for channel, mean, sd in zip(result, statistics["mean"], statistics["sd"], strict=True):
        channel.sub_(mean).div_(max(sd, SMALLEST_SD))
    return result


def enforced_spacing_mm(shape: Triple, spacing_mm: SpacingMm) -> SpacingMm:
    """The spacing (slice, row, column) that a scan of ``shape`` is treated as having.

    With S slices: below 150 rows and columns are 0.75 mm apart and slices stay as they are; from 150 to 600 slices are
    0.5 mm apart; above, max(0.8, 600/S) × 0.5 mm. Source: 3D-CPS, test submission. A long scan so becomes a
    small one, at 10 to 20 % less DSC and NSD (the paper).

    >>> enforced_spacing_mm((100, 512, 512), (5.0, 0.9, 0.9))
    (5.0, 0.75, 0.75)
    >>> enforced_spacing_mm((700, 512, 512), (1.0, 0.9, 0.9))[0]
    0.42857142857142855
    """
    slices = shape[0]
    if slices < FEW_SLICES:
        z_mm = spacing_mm[0]
    elif slices <= MANY_SLICES:
        z_mm = DEFAULT_Z_MM
    else:
        z_mm = max(LEAST_SHARE, MANY_SLICES / slices) * DEFAULT_Z_MM
    return z_mm, IN_PLANE_MM, IN_PLANE_MM
