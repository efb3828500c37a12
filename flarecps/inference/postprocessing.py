"""What may be put right in finished labels, scan by scan: stray components taken away, holes filled.

Which of it does good is found on validation scans by nnU-Net's rule, and kept in one JSON file. A step is taken when
it lets the mean DSC of some organ rise and that of none fall. First the largest component of all organs together; then,
on what that left, the largest component organ by organ; then, on what that left, the holes of each organ. A step for
one organ changes no other's DSC, so all organs are judged at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import ndimage

from flarecps import atomic
from flarecps.anatomy import organs_of
from flarecps.batch_processing import Outcome, process_cases
from flarecps.case_names import file_name
from flarecps.datasets.label_names import LARGEST_ID
from flarecps.errors import ConfigError, DatasetError, did_you_mean
from flarecps.evaluation.overlap import dice_per_label
from flarecps.json_fields import Reader, is_whole
from flarecps.named_paths import check_output_folder
from flarecps.text_files import read_json
from flarecps.typing import LabelArray
from flarecps.volumes.discovery import by_case, label_maps
from flarecps.volumes.io import is_segmentation, read_labels, read_labels_on, write_labels
from flarecps.volumes.label_tables import SEGMENTATION

Dsc: TypeAlias = dict[int, float]  # by label; NaN where prediction and reference both lack it
Pair: TypeAlias = tuple[Path, Path]  # a prediction and its reference
RISE = 1e-12  # a mean that rises by less has not risen: rounding
FILE_NAME = "postprocessing.json"  # beside a checkpoint, this is what --postprocess auto applies
SCHEMA_VERSION = 1
BESIDE = "auto"  # the rules that lie beside the checkpoint
EVERY_ORGAN = "all"
OUTSIDE = 0  # what lies around the scan, for the neighbours of a hole


@dataclass(frozen=True)
class Rules:
    """What is done to a label map, in this order; none of it by default.

    ``evidence`` says how the rules were found; it does nothing.
    """

    labels: dict[str, int]
    whole_foreground: bool = False  # keep only the largest component of all organs together
    largest: tuple[int, ...] = ()  # organs that keep only their largest component
    filled: tuple[int, ...] = ()  # organs whose holes are filled
    evidence: dict[str, Any] = field(default_factory=dict)

    def __call__(self, labels: LabelArray) -> LabelArray:
        """Labels (slice, row, column) by these rules; a copy when they change anything."""
        if self.whole_foreground:
            labels = largest_foreground(labels)
        if self.largest:
            labels = largest_of_each(labels, self.largest)
        return filled(labels, self.filled) if self.filled else labels

    def __bool__(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.whole_foreground or self.largest or self.filled)

    def describe(self) -> str:
        """The rules for people."""
        name = {label: organ for organ, label in self.labels.items()}
        parts = ["largest component of all organs together"] if self.whole_foreground else []
        if self.largest:
            parts.append(f"largest component of {', '.join(name[label] for label in self.largest)}")
        if self.filled:
            parts.append(f"holes filled in {', '.join(name[label] for label in self.filled)}")
        return "; ".join(parts) or "nothing: no step made the validation scans better"


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a boolean (S, H, W) mask; components of equal size are all kept.

    Voxels are connected by faces (six neighbours), as in nnU-Net v1.
    """
    components, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    return (sizes == sizes.max())[components]


def largest_foreground(labels: LabelArray) -> LabelArray:
    """``labels`` without what is not connected with the largest component of all organs together."""
    return np.where(largest_component(labels > 0), labels, 0).astype(labels.dtype, copy=False)


def largest_of_each(labels: LabelArray, organs: tuple[int, ...]) -> LabelArray:
    """``labels`` in which every one of ``organs`` keeps its largest component only; the rest becomes background."""
    result = labels
    boxes = ndimage.find_objects(labels)  # around each organ: everything about it can be done inside
    for organ in organs:
        box = boxes[organ - 1] if organ <= len(boxes) else None
        if box is None:
            continue
        mask = labels[box] == organ
        stray = mask & ~largest_component(mask)
        if stray.any():
            result = labels.copy() if result is labels else result
            result[box][stray] = 0
    return result


def filled(labels: LabelArray, organs: tuple[int, ...]) -> LabelArray:
    """``labels`` in which the holes of ``organs`` are filled.

    A hole is a connected piece of background (by faces) that touches one organ alone, and not the scan's border. So
    no organ's hole is another's, and nothing but background changes.
    """
    owners, holes = _enclosing_labels(labels)
    fill = np.where(np.isin(owners, organs), owners, 0).astype(labels.dtype)
    if not fill.any():
        return labels
    return np.where(labels == 0, fill[holes], labels)


def _enclosing_labels(labels: LabelArray) -> tuple[np.ndarray, np.ndarray]:
    """For every piece of background the organ whose hole it is, 0 for none; and the number of the piece per voxel."""
    holes, count = ndimage.label(labels == 0)
    lowest = np.full(count + 1, np.iinfo(np.int16).max, np.int16)
    highest = np.full(count + 1, -1, np.int16)
    for axis in range(labels.ndim):
        ahead, behind = [slice(None)] * labels.ndim, [slice(None)] * labels.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        for piece, other in ((tuple(ahead), tuple(behind)), (tuple(behind), tuple(ahead))):
            met = (holes[piece] > 0) & (labels[other] > 0)
            np.minimum.at(lowest, holes[piece][met], labels[other][met])
            np.maximum.at(highest, holes[piece][met], labels[other][met])
        for end in (0, -1):
            border = np.unique(holes.take(end, axis=axis))
            lowest[border] = OUTSIDE
    owners = np.where(lowest == highest, lowest, 0)
    owners[0] = 0
    return owners, holes


def write_rules(path: Path, rules: Rules) -> None:
    """Write ``rules`` as JSON, atomically."""
    content = {
        "schema": SCHEMA_VERSION,
        "labels": rules.labels,
        "largest_component_of_all_organs": rules.whole_foreground,
        "largest_component_of": list(rules.largest),
        "holes_filled_in": list(rules.filled),
        "evidence": rules.evidence,
    }
    atomic.write_json(path, content)


def read_rules(path: Path, labels: dict[str, int] | None = None) -> Rules:
    """The rules in ``path``; ConfigError when it is no such file, or made for another label set than ``labels``."""
    expected = f"'flarecps postprocess determine PREDICTIONS REFERENCES --out {path}' makes it from validation scans"
    reader = Reader(read_json(path, ConfigError, expected), str(path), kind=ConfigError, again=expected)
    if reader.integer("schema") != SCHEMA_VERSION:
        raise reader.error("schema", f"{SCHEMA_VERSION}, which this version reads")
    organs = reader.mapping("labels")
    if not all(is_whole(label) and label <= LARGEST_ID for label in organs.values()):
        raise reader.error("labels", "ids by name, whole numbers from 0 to 255")
    rules = Rules(
        organs,
        reader.boolean("largest_component_of_all_organs"),
        reader.ids("largest_component_of"),
        reader.ids("holes_filled_in"),
        reader.mapping("evidence"),
    )
    if strange := (set(rules.largest) | set(rules.filled)) - (set(rules.labels.values()) - {0}):
        raise ConfigError(f"{path}: structures {sorted(strange)} are not in its own label set")
    if labels is not None and _organs(rules.labels) != _organs(labels):
        raise ConfigError(
            f"{path}: made for the labels {_organs(rules.labels)}, the checkpoint's are {_organs(labels)}"
        )
    return rules


def rules_beside(checkpoints: tuple[Path, ...]) -> Path:
    """The postprocessing.json in the checkpoints' folders; ConfigError when there is none, or several differ."""
    found = [path for folder in dict.fromkeys(one.parent for one in checkpoints)
             if (path := folder / FILE_NAME).is_file()]  # fmt: skip
    if not found:
        raise ConfigError(
            f"{checkpoints[0].parent / FILE_NAME}: no such file; 'flarecps postprocess determine PREDICTIONS "
            f"REFERENCES --out {checkpoints[0].parent}' makes it from validation scans"
        )
    first = read_rules(found[0])
    for other in found[1:]:
        theirs = read_rules(other)
        if (theirs.whole_foreground, theirs.largest, theirs.filled) != (
            first.whole_foreground, first.largest, first.filled,
        ):  # fmt: skip
            raise ConfigError(f"{other}: other rules than {found[0]}; name the file to be applied")
    return found[0]


def rules_for(
    labels: dict[str, int], checkpoints: Sequence[Path], file: Path | str | None, largest: Sequence[str] = ()
) -> Rules:
    """The rules of ``file`` ("auto": the one beside the checkpoints; None: none), or the largest component of each of
    the organs ``largest`` ("all": of every one). ConfigError for both together, and for a name that is no organ."""
    if file is not None and largest:
        raise ConfigError(f"rules from {file} and the largest component of {', '.join(largest)}: name one of the two")
    if file is not None:
        return read_rules(rules_beside(tuple(checkpoints)) if str(file) == BESIDE else Path(file), labels)
    organs = _organs(labels)
    named = list(organs) if list(largest) == [EVERY_ORGAN] else list(largest)
    if strange := [name for name in named if name not in organs]:
        known = f"expected one of {', '.join(organs)}, or {EVERY_ORGAN}"
        raise ConfigError(f"no organ {strange[0]!r}; {known}{did_you_mean(strange[0], organs)}")
    return Rules(labels, largest=tuple(sorted({organs[name] for name in named})))


def _organs(labels: dict[str, int]) -> dict[str, int]:
    return {name: label for name, label in labels.items() if label}


def pairs_of(predictions: Path, references: Path) -> dict[str, Pair]:
    """The predictions that have a reference of the same name. DatasetError when a folder is missing, or none has."""
    maps = label_maps(predictions), label_maps(references)
    found, expected = by_case(*maps), by_case(*reversed(maps))
    pairs = {name: (path, expected[name]) for name, path in found.items() if name in expected}
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
    check_output_folder(output)
    found = label_maps(predictions, leave_out=(output,))
    apply = partial(_applied, output=output, rules=rules, overwrite=overwrite)
    cases = [(name, (name, path)) for name, path in found.items()]
    return process_cases(apply, cases, workers, "Post-processing", progress)


def _applied(prediction: tuple[str, Path], output: Path, rules: Rules, overwrite: bool) -> bool:
    name, source = prediction
    result = output / file_name(name, SEGMENTATION if is_segmentation(source) else ".nii.gz")
    if result.exists() and not overwrite:
        return False
    volume = read_labels(source)
    labels = rules(volume.array[0])
    write_labels(result, labels, volume.source, organs_of(rules.labels))
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
    reference = read_labels(pair[1])
    return read_labels_on(pair[0], reference.space, "its reference"), reference.array[0]


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
