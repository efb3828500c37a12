"""Pseudo-labels: what trained networks, the teachers, say of the unlabelled cases of a case store.

Every teacher sees each scan whole, by overlapping windows; the labels are those of the mean of their probabilities. How
much to trust them is measured without a reference: by how far the teachers, each for itself, draw the same. Images are
read from the store, on the network's own grid, so nothing is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from flarecps.batch_processing import Outcome, PerProcess, process_cases, shard
from flarecps.datasets.splits import SPLITS, choose_split, read_splits
from flarecps.errors import ConfigError
from flarecps.inference.case_records import sibling_agreement
from flarecps.inference.export import highest_label
from flarecps.inference.outputs import disk_errors_as_config_error
from flarecps.inference.postprocessing import Rules
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.settings import SegmentationSettings
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import Prepared
from flarecps.preprocessing.checksums import sha256
from flarecps.preprocessing.pseudo_labels import prepare_folder, write_pseudo_labels
from flarecps.preprocessing.store import CaseStore, is_finished
from flarecps.preprocessing.store_writing import remove_partial_cases
from flarecps.typing import LabelArray

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

    def label(self, prepared: Prepared, name: str) -> tuple[LabelArray, list[LabelArray]]:
        """Labels, uint8 (S, H, W) of the network's grid, of the teachers' mean probabilities, and each one's own;
        all after post-processing. ``name`` is the case's, for errors.
        """
        shape = prepared.grid_mapping.network_shape
        labels, own = np.empty(shape, np.uint8), [np.empty(shape, np.uint8) for _ in self.segmenters]
        done = 0
        for slabs in zip(*(one.slabs(prepared, name) for one in self.segmenters), strict=True):
            total = slabs[0].float()
            for other in slabs[1:]:
                total = total + other.to(total)
            now = slice(done, done + total.shape[1])
            for array, scores in zip((labels, *own), (total, *slabs), strict=True):
                array[now] = highest_label(scores)
            done = now.stop
        return self.rules(labels), [self.rules(one) for one in own]


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

    def __init__(self, teachers: Teachers, store: Path, folder: Path) -> None:
        self.teachers = teachers
        self.store = CaseStore(store)
        self.folder = folder

    def __call__(self, name: str) -> Done:
        plan = self.teachers.plan
        labels, own = self.teachers.label(self.store.read_prepared(name), name)
        differing = [other != own[0] for other in own[1:]]
        disputed = np.logical_or.reduce(differing).astype(np.uint8) if differing else None
        voxel_ml = math.prod(self.store.record(name).spacing_mm) / 1000
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
) -> list[Outcome[Done]]:
    """What became of every unlabelled case of the store's split: written to ``folder``, already present, or its error.

    ``share`` "I/N" does the I-th of N shares of them (job arrays); with ``needs_quality`` one teacher is too few.
    Raises ``StoreError`` when ``store`` is no store or ``folder`` holds pseudo-labels of another run, ``ConfigError``
    when teachers and store do not fit.
    """
    cases = CaseStore(store)
    names = choose_split(read_splits(store / SPLITS), split, store).unlabelled
    if not names:
        raise ConfigError(f"{store}: the split has no unlabelled case to be labelled; choose another with --split")
    load = partial(Teachers.load, checkpoints, settings)
    together = Segmenter.load(checkpoints, settings=settings)
    plan = together.plan
    if needs_quality and len(together.networks) < 2:
        raise ConfigError("one teacher agrees with itself: quality needs two or more networks, of other seeds or folds")
    if plan.preprocessing_hash() != cases.plan.preprocessing_hash():
        raise ConfigError(
            f"{checkpoints[0]}: trained on another grid than that of {store} (spacing, labels or channels); preprocess "
            "the data set with the teachers' plan"
        )
    rules = rules or Rules(plan.labels)
    with disk_errors_as_config_error(folder):
        prepare_folder(folder, _provenance(cases, checkpoints, settings, rules))
    mine = shard(names, share)
    remove_partial_cases(folder, set(mine), set(names))
    waiting = [(name, name) for name in mine if not is_finished(folder, name)]
    make = PerProcess(partial(_labelling, load, rules, store, folder))
    done = {one.name: one for one in process_cases(make, waiting, workers, "Pseudo-label", progress)}
    return [done.get(name, Outcome(name, "present", None)) for name in mine]


def _labelling(load: Any, rules: Rules, store: Path, folder: Path) -> _CaseLabelling:
    return _CaseLabelling(load(rules), store, folder)


def _provenance(
    store: CaseStore, checkpoints: Sequence[Path], settings: SegmentationSettings, rules: Rules
) -> dict[str, Any]:
    """What pseudo-labels depend on, in plain types."""
    mirrored = settings.mirror_axes
    return {
        "preprocessing_hash": store.plan.preprocessing_hash(),
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
