"""Pseudo-labels: what trained networks, the teachers, say of the unlabelled cases of a case store.

Every teacher sees each scan whole, by overlapping windows; the labels are those of the mean of their probabilities. How
much to trust them is measured without a reference: by how far the teachers, each for itself, draw the same. Images are
read from the store, on the network's own grid, so nothing is resampled. Teachers of another plan see the images of a
store of theirs, and their probabilities are interpolated onto the grid of the store whose labels these become.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, tee
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from flarecps.batch_processing import Outcome, PerProcess, process_cases, shard
from flarecps.datasets.splits import SPLITS, choose_split, read_splits
from flarecps.errors import ConfigError, StoreError
from flarecps.inference.case_records import sibling_agreement
from flarecps.inference.export import Plane, interpolated_labels, plane_of
from flarecps.inference.outputs import disk_errors_as_config_error
from flarecps.inference.postprocessing import Rules
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.settings import SegmentationSettings
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order
from flarecps.preprocessing.case import GridMapping, Prepared
from flarecps.preprocessing.checksums import sha256
from flarecps.preprocessing.pseudo_labels import prepare_folder, write_pseudo_labels
from flarecps.preprocessing.sources import are_same_files
from flarecps.preprocessing.store import CaseStore, is_finished
from flarecps.preprocessing.store_writing import remove_partial_cases
from flarecps.typing import LabelArray, triple

Done: TypeAlias = Literal["written", "present"]
DECIMALS = 6  # of a quality in its file


@dataclass(frozen=True)
class Teachers:
    """Networks of one plan that label scans together.

    ``segmenters`` hold one network each; ``rules`` are the post-processing of the mean's labels and of each teacher's.
    """

    segmenters: tuple[Segmenter, ...]
    rules: Rules

    @classmethod
    def load(cls, checkpoints: Sequence[Path], settings: SegmentationSettings, rules: Rules) -> Teachers:
        """The networks of ``checkpoints``: of each, the sibling that the settings name, or all ("average")."""
        together = Segmenter.load(checkpoints, settings=settings)
        return cls(tuple(Segmenter(together.plan, [one], settings) for one in together.networks), rules)

    @property
    def plan(self) -> Plan:
        """What all of them were trained by."""
        return self.segmenters[0].plan

    def label(self, prepared: Prepared, name: str, target: GridMapping) -> tuple[LabelArray, list[LabelArray]]:
        """Labels, uint8 (S, H, W) of the grid of ``target``, of the teachers' mean probabilities, and each one's own.

        All after post-processing. Probabilities are interpolated linearly where ``target`` is another network's grid of
        the same scan. ``name`` is the case's, for errors.
        """
        between = grid_to_grid(prepared.grid_mapping, target)
        found = [np.zeros(target.network_shape, np.uint8) for _ in range(1 + len(self.segmenters))]
        canonical = [target.axis_order.index(axis) for axis in range(3)]
        views = [one.transpose(canonical).transpose(between.axis_order) for one in found]
        streams = [  # in step with each other, so that few planes wait for those behind
            interpolated_labels(map(itemgetter(which), copy), between)
            for which, copy in enumerate(tee(self._planes(prepared, name), len(found)))
        ]
        for places, slices in zip(zip(*views, strict=True), zip(*streams, strict=True), strict=True):
            for place, drawn in zip(places, slices, strict=True):
                place[:] = drawn
        labels, *own = map(self.rules, found)
        return labels, own

    def _planes(self, prepared: Prepared, name: str) -> Iterator[list[Plane]]:
        """Of every slice of the network's grid the sum of the teachers' scores, and each one's own."""
        for slabs in zip(*(one.slabs(prepared, name) for one in self.segmenters), strict=True):
            total = slabs[0].float()
            for other in slabs[1:]:
                total = total + other.to(total)
            for at in range(total.shape[1]):
                yield [plane_of(scores[:, at]) for scores in (total, *slabs)]


def grid_to_grid(seen: GridMapping, target: GridMapping) -> GridMapping:
    """How to go from one network's grid to another's, of the same scan: as if the latter were the scan's.

    Both cover the same part of the scan, so nothing is cut off. Raises ``StoreError`` where they do not.
    """
    if (seen.scan_shape, seen.scan_spacing_mm, seen.box) != (target.scan_shape, target.scan_spacing_mm, target.box):
        raise StoreError("another scan, or cut otherwise, than in the teachers' store; preprocess both anew")
    shape = triple(in_canonical_order(target.network_shape, target.axis_order))
    spacing_mm = triple(in_canonical_order(target.network_spacing_mm, target.axis_order))
    return replace(seen, scan_shape=shape, scan_spacing_mm=spacing_mm, box_lower=(0, 0, 0), box_upper=shape)


def quality_of(maps: Sequence[LabelArray], labels: dict[str, int]) -> dict[str, float | None]:
    """By organ the mean Dice over all pairs of the teachers' label maps.

    A pair in which neither has the organ is left out, one in which only one has it counts 0. None without any pair that
    counts: one teacher alone, or an organ that none of them sees.

    >>> maps = [np.array([[[1, 1, 0]]], np.uint8), np.array([[[1, 0, 0]]], np.uint8), np.zeros((1, 1, 3), np.uint8)]
    >>> quality_of(maps, {"background": 0, "liver": 1, "spleen": 2})
    {'liver': 0.222222, 'spleen': None}
    """
    pairs = [sibling_agreement("", first, second, labels)["organs"] for first, second in combinations(maps, 2)]
    found: dict[str, float | None] = {}
    for organ in (name for name, label in labels.items() if label):
        there = [pair[organ] for pair in pairs if pair[organ] is not None]
        found[organ] = round(float(np.mean(there)), DECIMALS) if there else None
    return found


class _CaseLabelling:
    """Labels one case after another."""

    def __init__(self, teachers: Teachers, store: Path, seen: Path, folder: Path) -> None:
        self.teachers = teachers
        self.store, self.seen = CaseStore(store), CaseStore(seen)
        self.folder = folder

    def __call__(self, name: str) -> Done:
        plan, target = self.store.plan, self.store.record(name)
        if not are_same_files(target.sources, self.seen.record(name).sources):
            raise StoreError(
                f"{self.seen.path}: made of other files of '{name}' than {self.store.path}; preprocess both anew"
            )
        labels, own = self.teachers.label(self.seen.read_prepared(name), name, target.grid_mapping)
        differing = [other != own[0] for other in own[1:]]
        disputed = np.logical_or.reduce(differing).astype(np.uint8) if differing else None
        voxel_ml = math.prod(target.spacing_mm) / 1000
        counts = np.bincount(labels.ravel(), minlength=plan.class_count)
        ml = {organ: round(float(counts[label] * voxel_ml), 3) for organ, label in plan.labels.items() if label}
        quality = quality_of(own, plan.labels)
        write_pseudo_labels(self.folder, name, labels, disputed, plan.dimensions, quality, ml)
        return "written"


def label_store(
    checkpoints: Sequence[Path],
    store: Path,
    folder: Path,
    settings: SegmentationSettings,
    rules: Rules | None = None,
    split: str | None = None,
    share: str | None = None,
    workers: int = 1,
    progress: bool = True,
    needs_quality: bool = False,
    teacher_store: Path | None = None,
) -> list[Outcome[Done]]:
    """What became of every unlabelled case of the store's split: written to ``folder``, already present, or its error.

    ``share`` "I/N" does the I-th of N shares of them (job arrays); with ``needs_quality`` one teacher is too few.
    ``teacher_store`` holds the same scans on the teachers' grid, where ``store`` has another, a student's.
    Raises ``StoreError`` when ``store`` is no store or ``folder`` holds pseudo-labels of another run, ``ConfigError``
    when teachers and store do not fit.
    """
    cases, seen = CaseStore(store), CaseStore(teacher_store or store)
    names = choose_split(read_splits(store / SPLITS), split, store).unlabelled
    if not names:
        raise ConfigError(f"{store}: the split has no unlabelled case to be labelled; choose another with --split")
    load = partial(Teachers.load, checkpoints, settings)
    together = Segmenter.load(checkpoints, settings=settings)
    plan = together.plan
    if needs_quality and len(together.networks) < 2:
        raise ConfigError("one teacher agrees with itself: quality needs two or more networks, of other seeds or folds")
    if plan.preprocessing_hash() != seen.plan.preprocessing_hash():
        raise ConfigError(
            f"{checkpoints[0]}: trained on another grid than that of {seen.path} (spacing, labels or channels); name "
            "the store that was preprocessed with the teachers' plan with --teacher-store"
        )
    if (plan.labels, plan.conventions.orientation) != (cases.plan.labels, cases.plan.conventions.orientation):
        raise ConfigError(
            f"{store}: has other labels, or another order of voxels, than the teachers of {checkpoints[0]}; plan the "
            "student on the teachers' data set"
        )
    rules = rules or Rules(plan.labels)
    with disk_errors_as_config_error(folder):
        prepare_folder(folder, _provenance(cases, seen, checkpoints, settings, rules))
    mine = shard(names, share)
    remove_partial_cases(folder, set(mine), set(names))
    waiting = [(name, name) for name in mine if not is_finished(folder, name)]
    make = PerProcess(partial(_labelling, load, rules, store, seen.path, folder))
    done = {one.name: one for one in process_cases(make, waiting, workers, "Pseudo-label", progress)}
    return [done.get(name, Outcome(name, "present", None)) for name in mine]


def _labelling(load: Any, rules: Rules, store: Path, seen: Path, folder: Path) -> _CaseLabelling:
    return _CaseLabelling(load(rules), store, seen, folder)


def _provenance(
    store: CaseStore, seen: CaseStore, checkpoints: Sequence[Path], settings: SegmentationSettings, rules: Rules
) -> dict[str, Any]:
    """What pseudo-labels depend on, in plain types."""
    mirrored, grids = settings.mirror_axes, [one.plan.preprocessing_hash() for one in (store, seen)]
    return {
        "preprocessing_hash": grids[0],
        **({"teachers_preprocessing_hash": grids[1]} if grids[1] != grids[0] else {}),
        "teachers": [{"file": path.name, "sha256": sha256(path)} for path in checkpoints],
        "sibling": settings.sibling,
        "step": settings.step,
        "mirror_axes": mirrored if isinstance(mirrored, str) else list(mirrored),
        "swap_left_right": settings.swap_left_right,
        "postprocessing": {
            "largest_component_of_all_organs": rules.whole_foreground,
            "largest_component_of": list(rules.largest),
            "holes_filled_in": list(rules.filled),
        },
    }
