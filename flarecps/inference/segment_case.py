"""One scan from its files to its results, in the three stages that a folder's cases go through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from flarecps.anatomy import organs_of
from flarecps.batch_processing import Outcome, attempt
from flarecps.errors import ConfigError, ScanError
from flarecps.inference.case_records import (
    AGREEMENT,
    STATISTICS,
    Record,
    organ_statistics,
    sibling_agreement,
    write_record,
)
from flarecps.inference.outputs import (
    DICOM_SEG,
    LABELS,
    PREVIEW,
    PROBABILITIES,
    RTSTRUCT,
    OutputOptions,
    SegmentationRequest,
    check_free_space,
    disk_errors_as_config_error,
    remove_partial_file,
)
from flarecps.inference.probability_file import writing_probabilities
from flarecps.inference.resources.cost import Beside
from flarecps.inference.resources.planner import MARGIN
from flarecps.inference.resources.usage import RamMeter, peak_as_counted
from flarecps.inference.segmenter import Segmenter, what_it_took
from flarecps.preprocessing.case import GridMapping, Prepared, transposed_to_plan
from flarecps.typing import LabelArray
from flarecps.volumes.dicom_results import SourceSeries, read_source_series
from flarecps.volumes.dicom_seg import write_dicom_seg
from flarecps.volumes.io import (
    Source,
    Volume,
    read_channels,
    read_labels_on,
    read_sizes,
    stored_labels,
    write_labels,
)
from flarecps.volumes.rtstruct import write_rtstruct
from flarecps.volumes.space import Space

A = TypeVar("A")  # what names a case
M = TypeVar("M")  # what is read
C = TypeVar("C")  # what is computed
T = TypeVar("T")  # what is left when it is written

Attempted: TypeAlias = tuple[T | None, str | None]


@dataclass(frozen=True)
class SegmentationResult:
    """One finished case: its file, how long it took, and remarks on the scan's header."""

    result: Path
    seconds: float
    skipped: bool = False  # it was there already
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedScan:
    """A scan as read, on the network's grid if that was done ahead, and the labels if they were there already."""

    volume: Volume
    prepared: Prepared | None
    labels: LabelArray | None
    series: SourceSeries | ScanError | None  # where results in DICOM are wanted; or why there can be none
    missing: dict[str, Path]
    seconds: float
    ram: RamMeter | None  # running, where memory is counted


@dataclass(frozen=True)
class PredictedScan:
    """A segmented scan that is to be written; its first channel only where statistics or a picture need it."""

    source: Source
    space: Space
    warnings: tuple[str, ...]
    image: np.ndarray | None
    labels: LabelArray
    agreement: Record | None
    series: SourceSeries | ScanError | None
    missing: dict[str, Path]
    seconds: float
    ram: RamMeter | None
    vram_bytes: int


class CaseSegmentation:
    """Reads, computes and writes one scan at a time.

    Args:
        segmenter: gives the labels.
        outputs: what else is wanted.
        siblings: the networks whose agreement is measured, where it is wanted; ``segmenter`` may be one of them.
        overwrite: make finished files again.
        show_progress: a bar over the windows of each scan.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        outputs: OutputOptions,
        siblings: Sequence[Segmenter] = (),
        overwrite: bool = False,
        show_progress: bool = False,
    ) -> None:
        self.segmenter = segmenter
        self.siblings = tuple(siblings)
        self.outputs = outputs
        self.overwrite = overwrite
        self.show_progress = show_progress
        self._read_ahead: SegmentationRequest | None = None  # which there is room to read while another is computed
        self._prepared_ahead: SegmentationRequest | None = None  # and to prepare

    @property
    def outputs(self) -> OutputOptions:
        """What is wanted of every scan beside its labels; the estimates of memory go by it."""
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: OutputOptions) -> None:
        self._outputs = outputs
        for one in (self.segmenter, *self.siblings):
            one.resources.beside = Beside(
                outputs.probabilities, outputs.draw is not None, outputs.rules is not None, outputs.agreement
            )

    def __call__(self, request: SegmentationRequest) -> SegmentationResult:
        """All three stages, one after the other."""
        if not self.outputs.missing(request, self.overwrite):
            return SegmentationResult(request.result, 0.0, skipped=True)
        return self.write(request, self.compute(request, self.read(request)))

    def read(self, request: SegmentationRequest) -> LoadedScan:
        """The scan, prepared for the network where another's windows, on a GPU or without a limit, don't suffer by it.

        With a limit of RAM the headers are asked first whether it may be read, and it is prepared where
        ``may_read_ahead`` found room for that beside the scan that is computed.
        """
        began, budget = time.monotonic(), self.segmenter.settings.budget
        check_free_space(request.result.parent)
        missing = self.outputs.missing(request, self.overwrite)
        with ExitStack() as stopped:
            ram = stopped.enter_context(RamMeter()) if budget else None
            if budget.ram_bytes is not None and request is not self._read_ahead:  # which was asked already
                self.segmenter.check_unread(*_unread(request.scans))
            volume = read_channels(request.scans)
            series = _series_of(request) if {DICOM_SEG, RTSTRUCT} & set(missing) else None
            drawn = prepared = None
            if not {LABELS, PROBABILITIES, AGREEMENT} & set(missing):
                drawn = _labels_on(request.result, volume)
            elif self._prepares(request):
                prepared = self.segmenter.prepare(volume)
            stopped.pop_all()  # the meter runs until the scan's files are written, or it fails
            return LoadedScan(volume, prepared, drawn, series, missing, time.monotonic() - began, ram)

    def _prepares(self, request: SegmentationRequest) -> bool:
        budget = self.segmenter.settings.budget
        if budget.ram_bytes is not None:
            return request is self._prepared_ahead
        return budget.seconds is None or self.segmenter.device.type != "cpu"

    def compute(self, request: SegmentationRequest, loaded: LoadedScan) -> PredictedScan:
        """The labels, and what else comes out of the networks."""
        began, volume, missing = time.monotonic(), loaded.volume, loaded.missing
        labels = loaded.labels
        found: Record | None = None
        with ExitStack() as stopped:
            if loaded.ram is not None:
                stopped.callback(loaded.ram.stop)
            if labels is None:
                labels = self._segmented(loaded, began - loaded.seconds)
                if AGREEMENT in missing:
                    found = self._agreement(request.name, loaded, labels)
                if self.outputs.rules is not None:
                    labels = self.outputs.rules(labels)
            stopped.pop_all()
        image = volume.array[0] if {STATISTICS, PREVIEW} & set(missing) else None
        seconds, vram = loaded.seconds + time.monotonic() - began, peak_as_counted(self.segmenter.device)
        about = volume.source, volume.space, volume.warnings
        return PredictedScan(*about, image, labels, found, loaded.series, missing, seconds, loaded.ram, vram)

    def write(self, request: SegmentationRequest, computed: PredictedScan) -> SegmentationResult:
        """Every missing file, the labels after all that needs no DICOM series."""
        with ExitStack() as stopped:
            if computed.ram is not None:
                stopped.callback(computed.ram.stop)
            done = self._written(request, computed)
        if computed.ram is not None:
            self.segmenter.say(what_it_took(computed.ram.peak, computed.vram_bytes, done.seconds))
        return done

    def _written(self, request: SegmentationRequest, computed: PredictedScan) -> SegmentationResult:
        began, image, labels, missing = time.monotonic(), computed.image, computed.labels, computed.missing
        plan, output, space = self.segmenter.plan, request.result.parent, computed.space
        is_hu = plan.intensity.scheme == "ct"
        for path in missing.values():
            remove_partial_file(path)
        if STATISTICS in missing and image is not None:
            record = organ_statistics(request.name, image, labels, space.voxel_volume_mm3, plan.labels, is_hu)
            with disk_errors_as_config_error(missing[STATISTICS]):
                write_record(output, STATISTICS, record)
        if computed.agreement is not None:
            with disk_errors_as_config_error(missing[AGREEMENT]):
                write_record(output, AGREEMENT, computed.agreement)
        if PREVIEW in missing and image is not None and self.outputs.draw is not None:
            path = missing[PREVIEW]
            with disk_errors_as_config_error(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.outputs.draw(path, request.name, image, labels, space.spacing_mm, plan.labels, is_hu)
        organs = organs_of(plan.labels)
        if LABELS in missing:
            with disk_errors_as_config_error(request.result):
                write_labels(request.result, labels, computed.source, organs)
        series = computed.series
        if isinstance(series, ScanError):  # only now: the labels are not lost
            raise series
        for kind, write in ((DICOM_SEG, write_dicom_seg), (RTSTRUCT, write_rtstruct)):
            if kind in missing and series is not None:
                with disk_errors_as_config_error(missing[kind]):
                    missing[kind].parent.mkdir(parents=True, exist_ok=True)
                    write(missing[kind], stored_labels(labels, computed.source), series, organs)
        return SegmentationResult(
            request.result, computed.seconds + time.monotonic() - began, warnings=computed.warnings
        )

    def may_read_ahead(self, loaded: LoadedScan, following: SegmentationRequest) -> bool:
        """Whether the next scan may be read while this one is computed, for all the RAM that is allowed.

        Where a GPU computes and there is room for it, too, ``read`` will prepare it.
        """
        limit = self.segmenter.settings.budget.ram_bytes
        if limit is None:
            return True
        if loaded.labels is not None:
            return False
        try:
            space, array_bytes, reading_bytes = _unread(following.scans)
            self.segmenter.check_unread(space, array_bytes, reading_bytes)
        except (ScanError, OSError, ConfigError):  # which is said when its turn comes
            return False
        _, estimate = self.segmenter.estimate(loaded.volume, prepared=loaded.prepared)
        written = 2 * loaded.volume.array[0].size  # the scan before may still be on its way to the disk
        room = limit - estimate.ram.peak * MARGIN - written
        self._read_ahead = following if reading_bytes <= room else None
        ahead_bytes = max(reading_bytes, self.segmenter.ahead_bytes(space, array_bytes))
        self._prepared_ahead = following if self.segmenter.device.type != "cpu" and ahead_bytes <= room else None
        return self._read_ahead is not None

    def _segmented(self, loaded: LoadedScan, began_s: float) -> LabelArray:
        """The labels; the probabilities are written as they come, if they are wanted."""
        path = loaded.missing.get(PROBABILITIES)
        if path is None:
            return self.segmenter(loaded.volume, self.show_progress, began_s, loaded.prepared)
        remove_partial_file(path)
        plan, settings = self.segmenter.plan, self.segmenter.settings
        with disk_errors_as_config_error(path), ExitStack() as stack:
            add: Callable[[Tensor], None] | None = None

            def keep(slab: Tensor, grid_mapping: GridMapping) -> None:
                nonlocal add
                if add is None:
                    writing = writing_probabilities(
                        path, plan, transposed_to_plan(loaded.volume, plan).space, grid_mapping, settings.accumulate
                    )
                    add = stack.enter_context(writing)
                add(slab)

            return self.segmenter(loaded.volume, self.show_progress, began_s, loaded.prepared, keep)

    def _agreement(self, name: str, loaded: LoadedScan, labels: LabelArray) -> Record:
        first, second = (
            labels if one is self.segmenter else one(loaded.volume, prepared=loaded.prepared) for one in self.siblings
        )
        return sibling_agreement(name, first, second, self.segmenter.plan.labels)


def _unread(scans: Sequence[Path]) -> tuple[Space, int, int]:
    """Of the files of one scan, by their headers: the canonical grid, the bytes in memory, and while they are read."""
    spaces, kept, reading = [], 0, 0
    for space, array_bytes, reading_bytes in map(read_sizes, scans):
        spaces.append(space)
        reading = max(reading, kept + reading_bytes)
        kept += array_bytes
    if len(scans) > 1:  # while channels are put together, one is there twice
        reading = max(reading, kept + kept // len(scans))
    return spaces[0], kept, reading


def _series_of(request: SegmentationRequest) -> SourceSeries | ScanError:
    """What results in DICOM refer to, of the first channel; or why there can be none."""
    try:
        return read_source_series(request.scans[0])
    except ScanError as error:
        return error


def _labels_on(path: Path, volume: Volume) -> LabelArray:
    """A finished result, as it is now. ScanError when it is not one of this scan."""
    return read_labels_on(path, volume.space, str(volume.source.path), "remove it, or use --overwrite")


def pipelined(
    cases: Sequence[tuple[str, A]],
    read: Callable[[A], M],
    compute: Callable[[A, M], C],
    write: Callable[[A, C], T],
    may_read_ahead: Callable[[M, A], bool] = lambda loaded, following: True,
) -> Iterator[Outcome[T]]:
    """One outcome per (name, argument) of ``cases``, in their order, as each is written.

    While ``compute`` works on a case in this thread, another thread reads the next one and a third writes the one
    before; no more than these three are in memory. ``may_read_ahead(loaded, next argument)``, asked before a case is
    computed, says whether the next may be read meanwhile; where it may not, the case is also written before the next
    is read. A stage that fails ends its case with its error, and the others go on.
    """
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        reading: Future[Attempted[M]] | None = None
        writing: tuple[str, Future[Attempted[T]]] | None = None
        for index, (name, argument) in enumerate(cases):
            loaded, error = reading.result() if reading is not None else attempt(read, argument)
            reading = None
            following = [one for _, one in cases[index + 1 : index + 2]]
            if following and (loaded is None or may_read_ahead(loaded, following[0])):
                reading = reader.submit(attempt, read, following[0])
            computed: C | None = None
            if loaded is not None:
                computed, error = attempt(partial(compute, argument), loaded)
            loaded = None
            if writing is not None:
                yield _written(*writing)
                writing = None
            if computed is None:
                yield Outcome(name, None, error)
                continue
            writing = (name, writer.submit(attempt, partial(write, argument), computed))
            computed = None
            if reading is None:
                yield _written(*writing)
                writing = None
        if writing is not None:
            yield _written(*writing)


def _written(name: str, ending: Future[Attempted[T]]) -> Outcome[T]:
    value, error = ending.result()
    return Outcome(name, value, error)
