"""Which post-processing does good, found on validation scans: nnU-Net's rule.

A step is taken when it lets the mean DSC of some organ rise and that of none fall. First the largest component of all
organs together; then, on what that left, the largest component organ by organ; then, on what that left, the holes
of each organ. A step for one organ changes no other's DSC, so all organs are judged at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flarecps.batch_processing import Outcome, process_cases
from flarecps.errors import DatasetError, ScanError
from flarecps.evaluation.overlap import dice_per_label
from flarecps.inference.postprocessing import Rules, filled, largest_foreground, largest_of_each
from flarecps.typing import LabelArray
from flarecps.volumes.io import is_scan_file, read_labels, scan_name, write_labels

Dsc: TypeAlias = dict[int, float]  # by label; NaN where prediction and reference both lack it
RISE = 1e-12  # a mean that rises by less has not risen: rounding


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference."""

    prediction: Path
    reference: Path


def pairs_of(predictions: Path, references: Path) -> dict[str, Pair]:
    """The predictions that have a reference of the same name. DatasetError when a folder is missing, or none has."""
    found, expected = _by_name(predictions), _by_name(references)
    pairs = {name: Pair(path, expected[name]) for name, path in found.items() if name in expected}
    if not pairs:
        raise DatasetError(f"{predictions}: no prediction has the name of a reference in {references}")
    return pairs


def determine_rules(
    pairs: Mapping[str, Pair], labels: Mapping[str, int], workers: int = 1, progress: bool = True
) -> tuple[Rules, list[Outcome[Any]]]:
    """The rules that do good on these scans, and the outcomes of those that could not be judged (left out).

    The rules' ``evidence`` holds the mean DSC per organ as predicted and after them, and the scans. Raises DatasetError
    when no scan could be judged.
    """
    organs = tuple(sorted(label for label in labels.values() if label))
    cases = list(pairs.items())
    first = process_cases(partial(_components_judged, organs=organs), cases, workers, "Components", progress)
    failed: list[Outcome[Any]] = [outcome for outcome in first if outcome.failed]
    judged = [outcome.value for outcome in first if outcome.value is not None]
    if not judged:
        raise DatasetError(f"none of {len(cases)} scans could be judged; the first: {failed[0].error}")
    as_predicted, together, each, each_of_together = (
        _means([case[step] for case in judged]) for step in range(4)
    )  # fmt: skip
    whole = _does_good(as_predicted, together)
    before, after = (together, each_of_together) if whole else (as_predicted, each)
    largest = tuple(organ for organ in organs if after[organ] > before[organ] + RISE)
    rules = Rules(dict(labels), whole, largest)

    good = [(name, pair) for (name, pair), outcome in zip(cases, first, strict=True) if not outcome.failed]
    second = process_cases(partial(_holes_judged, rules=rules, organs=organs), good, workers, "Holes", progress)
    failed += [outcome for outcome in second if outcome.failed]
    holes = [outcome.value for outcome in second if outcome.value is not None]
    with_holes, without = (_means([case[step] for case in holes]) for step in range(2))
    rules = replace(rules, filled=tuple(organ for organ in organs if without[organ] > with_holes[organ] + RISE))
    name = {label: organ for organ, label in labels.items()}
    final = {organ: without[organ] if organ in rules.filled else with_holes[organ] for organ in organs}
    evidence = {
        "mean_dsc_as_predicted": {name[organ]: _plain(as_predicted[organ]) for organ in organs},
        "mean_dsc_after": {name[organ]: _plain(final[organ]) for organ in organs},
        "scans": [outcome.name for outcome in first if not outcome.failed],
    }
    return replace(rules, evidence=evidence), failed


def apply_rules(
    predictions: Path, output: Path, rules: Rules, workers: int = 1, overwrite: bool = False, progress: bool = True
) -> list[Outcome[bool]]:
    """Every label map of ``predictions`` by the rules, under its name in ``output``; the value says whether it changed.

    What is there already is skipped (its value is False) unless ``overwrite``. Grids and headers are the predictions'.
    """
    if output.resolve() == predictions.resolve():
        raise DatasetError(f"{output}: the predictions' own folder; name another one")
    cases = [(name, (path, output / f"{name}.nii.gz")) for name, path in _by_name(predictions).items()]
    return process_cases(
        partial(_applied, rules=rules, overwrite=overwrite), cases, workers, "Post-processing", progress
    )


def _applied(paths: tuple[Path, Path], rules: Rules, overwrite: bool) -> bool:
    source, result = paths
    if result.exists() and not overwrite:
        return False
    volume = read_labels(source)
    labels = rules(volume.array[0])
    write_labels(result, labels, volume.source)
    return labels is not volume.array[0] and not np.array_equal(labels, volume.array[0])


def _components_judged(pair: Pair, organs: tuple[int, ...]) -> tuple[Dsc, Dsc, Dsc, Dsc]:
    """DSC per organ: as predicted; largest of all together; largest of each; both, one after the other."""
    prediction, reference = _maps(pair)
    together = largest_foreground(prediction)
    maps = (prediction, together, largest_of_each(prediction, organs), largest_of_each(together, organs))
    first, second, third, fourth = (_dsc(one, reference, organs) for one in maps)
    return first, second, third, fourth


def _holes_judged(pair: Pair, rules: Rules, organs: tuple[int, ...]) -> tuple[Dsc, Dsc]:
    """DSC per organ after the rules so far, and with all holes filled besides."""
    prediction, reference = _maps(pair)
    so_far = rules(prediction)
    return _dsc(so_far, reference, organs), _dsc(filled(so_far, organs), reference, organs)


def _maps(pair: Pair) -> tuple[LabelArray, LabelArray]:
    prediction, reference = read_labels(pair.prediction), read_labels(pair.reference)
    if difference := prediction.space.difference(reference.space):
        raise ScanError(f"{pair.prediction}: not on the grid of its reference ({difference})")
    return prediction.array[0], reference.array[0]


def _dsc(prediction: LabelArray, reference: LabelArray, organs: tuple[int, ...]) -> Dsc:
    return {organ: overlap.dsc for organ, overlap in dice_per_label(prediction, reference, organs).items()}


def _means(scores: list[Dsc]) -> Dsc:
    """Per organ over the scans that have it in prediction or reference; NaN when none has."""
    means = {}
    for organ in scores[0]:
        present = [one[organ] for one in scores if not np.isnan(one[organ])]
        means[organ] = float(np.mean(present)) if present else float("nan")
    return means


def _does_good(before: Dsc, after: Dsc) -> bool:
    """Whether some organ's mean rises and none falls; organs that no scan has do not count."""
    changes = [after[organ] - before[organ] for organ in before]
    changes = [change for change in changes if not np.isnan(change)]
    return any(change > RISE for change in changes) and all(change >= -RISE for change in changes)


def _plain(mean: float) -> float | None:
    return None if np.isnan(mean) else round(mean, 6)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected label maps (NIfTI, NRRD, MHA)")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_scan_file(path):
            other = found.setdefault(scan_name(path), path)
            if other is not path:
                raise DatasetError(
                    f"{path}: the name {scan_name(path)!r} is taken by {other.name}; keep one of the two"
                )
    if not found:
        raise DatasetError(f"{folder}: no label maps in this folder; expected files such as CASE.nii.gz")
    return found
