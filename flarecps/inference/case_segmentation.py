"""One scan from its files to its results, in the three stages that a folder's cases go through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from flarecps.errors import ScanError
from flarecps.inference import agreement, statistics
from flarecps.inference.agreement import sibling_agreement
from flarecps.inference.case_records import Record, write_record
from flarecps.inference.probability_file import ProbabilityFile, writing_probabilities
from flarecps.inference.results import (
    LABELS,
    PREVIEW,
    PROBABILITIES,
    Products,
    Request,
    check_room,
    clear_disk_errors,
    clear_leftovers,
)
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.statistics import organ_statistics
from flarecps.inference.work_plan import MARGIN
from flarecps.preprocessing.case import GridMapping, Prepared, in_plan_order
from flarecps.typing import LabelArray
from flarecps.volumes.io import Source, Volume, read_channels, read_labels, read_space, write_labels
from flarecps.volumes.space import Space

READING_BYTES = 8  # a voxel, at most, while a file is read: float32, and once more in a reader of another format


@dataclass(frozen=True)
class Segmented:
    """One finished case: its file, how long it took, and remarks on the scan's header."""

    result: Path
    seconds: float
    skipped: bool = False  # it was there already
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """A scan as read, on the network's grid if that was done ahead, and the labels if they were there already."""

    volume: Volume
    prepared: Prepared | None
    labels: LabelArray | None
    missing: dict[str, Path]
    seconds: float


@dataclass(frozen=True)
class Computed:
    """A segmented scan that is to be written; its first channel only where statistics or a picture need it."""

    source: Source
    space: Space
    warnings: tuple[str, ...]
    image: np.ndarray | None
    labels: LabelArray
    agreement: Record | None
    missing: dict[str, Path]
    seconds: float


class CaseSegmentation:
    """Reads, computes and writes one scan at a time.

    Args:
        segmenter: gives the labels.
        products: what else is wanted.
        siblings: the networks whose agreement is measured, where it is wanted; ``segmenter`` may be one of them.
        overwrite: make finished files again.
        show_progress: a bar over the windows of each scan.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        products: Products,
        siblings: Sequence[Segmenter] = (),
        overwrite: bool = False,
        show_progress: bool = False,
    ) -> None:
        self.segmenter = segmenter
        self.products = products
        self.siblings = tuple(siblings)
        self.overwrite = overwrite
        self.show_progress = show_progress

    def __call__(self, request: Request) -> Segmented:
        """All three stages, one after the other."""
        if not self.products.missing(request, self.overwrite):
            return Segmented(request.result, 0.0, skipped=True)
        return self.write(request, self.compute(request, self.read(request)))

    def read(self, request: Request) -> Material:
        """The scan, prepared for the network unless memory is counted (then one step is taken at a time)."""
        began = time.monotonic()
        check_room(request.result.parent)
        missing = self.products.missing(request, self.overwrite)
        volume = read_channels(request.scans)
        drawn = prepared = None
        if not {LABELS, PROBABILITIES, agreement.KIND} & set(missing):
            drawn = _labels_on(request.result, volume)
        elif not self.segmenter.settings.budget:
            prepared = self.segmenter.prepare(volume)
        return Material(volume, prepared, drawn, missing, time.monotonic() - began)

    def compute(self, request: Request, material: Material) -> Computed:
        """The labels, and what else comes out of the networks."""
        began, volume, missing = time.monotonic(), material.volume, material.missing
        labels = material.labels
        found: Record | None = None
        if labels is None:
            labels = self._segmented(material, began - material.seconds)
            if agreement.KIND in missing:
                found = self._agreement(request.name, material, labels)
            if self.products.rules is not None:
                labels = self.products.rules(labels)
        image = volume.array[0] if {statistics.KIND, PREVIEW} & set(missing) else None
        seconds = material.seconds + time.monotonic() - began
        return Computed(volume.source, volume.space, volume.warnings, image, labels, found, missing, seconds)

    def write(self, request: Request, computed: Computed) -> Segmented:
        """Every missing file, the labels last."""
        began, image, labels, missing = time.monotonic(), computed.image, computed.labels, computed.missing
        plan, output, space = self.segmenter.plan, request.result.parent, computed.space
        is_hu = plan.intensity.scheme == "ct"
        for path in missing.values():
            clear_leftovers(path)
        if statistics.KIND in missing and image is not None:
            record = organ_statistics(request.name, image, labels, space.voxel_volume_mm3, plan.labels, is_hu)
            with clear_disk_errors(missing[statistics.KIND]):
                write_record(output, statistics.KIND, record)
        if computed.agreement is not None:
            with clear_disk_errors(missing[agreement.KIND]):
                write_record(output, agreement.KIND, computed.agreement)
        if PREVIEW in missing and image is not None and self.products.draw is not None:
            path = missing[PREVIEW]
            with clear_disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.products.draw(path, request.name, image, labels, space.spacing_mm, plan.labels, is_hu)
        if LABELS in missing:
            with clear_disk_errors(request.result):
                write_labels(request.result, labels, computed.source)
        return Segmented(request.result, computed.seconds + time.monotonic() - began, warnings=computed.warnings)

    def room_ahead(self, material: Material, following: Request) -> bool:
        """Whether the next scan may be read while this one is computed, for all the RAM that is allowed."""
        limit = self.segmenter.settings.budget.ram_bytes
        if limit is None:
            return True
        if material.labels is not None or any(path.is_dir() for path in following.scans):
            return False  # how large a DICOM series is, only reading it tells
        try:
            voxels = sum(
                space.shape[0] * space.shape[1] * space.shape[2]
                for space in (read_space(path) for path in following.scans)
            )
        except (ScanError, OSError):
            return False
        _, foretold = self.segmenter.foretell(material.volume)
        written = 2 * material.volume.array[0].size  # the scan before may still be on its way to the disk
        return foretold.ram.peak * MARGIN + voxels * READING_BYTES + written <= limit

    def _segmented(self, material: Material, began_s: float) -> LabelArray:
        """The labels; the probabilities are written as they come, if they are wanted."""
        path = material.missing.get(PROBABILITIES)
        if path is None:
            return self.segmenter(material.volume, self.show_progress, began_s, material.prepared)
        clear_leftovers(path)
        plan, settings = self.segmenter.plan, self.segmenter.settings
        with clear_disk_errors(path), ExitStack() as stack:
            file: ProbabilityFile | None = None

            def keep(slab: Tensor, grid_mapping: GridMapping) -> None:
                nonlocal file
                if file is None:
                    writing = writing_probabilities(
                        path, plan, in_plan_order(material.volume, plan).space, grid_mapping, settings.accumulate
                    )
                    file = stack.enter_context(writing)
                file.add(slab)

            return self.segmenter(material.volume, self.show_progress, began_s, material.prepared, keep)

    def _agreement(self, name: str, material: Material, labels: LabelArray) -> Record:
        first, second = (
            labels if one is self.segmenter else one(material.volume, prepared=material.prepared)
            for one in self.siblings
        )
        return sibling_agreement(name, first, second, self.segmenter.plan.labels)


def _labels_on(path: Path, volume: Volume) -> LabelArray:
    """A finished result, as it is now. ScanError when it is not one of this scan."""
    drawn = read_labels(path)
    if difference := drawn.space.difference(volume.space):
        raise ScanError(
            f"{path}: not on the grid of {volume.source.path} ({difference}); remove it, or use --overwrite"
        )
    return drawn.array[0]
