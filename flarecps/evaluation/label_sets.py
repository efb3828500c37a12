"""What is scored: the structures of a pair of label folders (a dataset.json's or FLARE22's), and NSD's tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flarecps.anatomy import FLARE22_LABELS, Organ
from flarecps.datasets.label_names import label_names
from flarecps.errors import ConfigError, DatasetError, did_you_mean, first_few
from flarecps.text_files import read_json

DATASET_JSON = "dataset.json"
EXPECTED = 'expected millimetres for all (3), by organ (liver=5,spleen=3), or a JSON file {"liver": 5}'


def label_set(labels: Path | None, predictions: Path, references: Path) -> tuple[dict[str, int], str]:
    """The label set ``{name: id}`` to score with, ascending by id, and where it was found (for messages).

    ``labels`` (a dataset.json, or the folder that holds it) decides if given. Otherwise the dataset.json in or above
    the references' folder, then the one in the predictions' folder, then FLARE22's 13 organs. Raises DatasetError when
    ``labels`` holds none, or when references and predictions both have one and call the same id by different names.
    """
    if labels is not None:
        path = labels / DATASET_JSON if labels.is_dir() else labels
        return _read_label_set(path), str(path)
    with_references, with_predictions = (path.parent if path.is_file() else path for path in (references, predictions))
    beside = _first_file(with_references / DATASET_JSON, with_references.parent / DATASET_JSON)
    written = _first_file(with_predictions / DATASET_JSON)
    if beside is not None and written is not None:
        expected, given = _read_label_set(beside), _read_label_set(written)
        if expected != given:
            ours, theirs = ([f"{label} {name}" for name, label in names.items()] for names in (expected, given))
            raise DatasetError(
                f"{written}: its labels ({first_few(theirs, 4)}) are not those of the references "
                f"({first_few(ours, 4)}, {beside}): name the right dataset.json with --labels"
            )
    if found := beside or written:
        return _read_label_set(found), str(found)
    return dict(FLARE22_LABELS), "FLARE22's 13 organs (no dataset.json beside references or predictions)"


def _read_label_set(path: Path) -> dict[str, int]:
    """The "labels" of a dataset.json as ``{name: id}`` ascending by id, background (0) left out.

    Raises DatasetError for a missing file, no JSON, and what `label_names` refuses.
    """
    content = read_json(path, DatasetError, 'expected a dataset.json with "labels"')
    names = label_names(content.get("labels") if isinstance(content, dict) else None, str(path))
    return {name: number for name, number in names.items() if number}


def _first_file(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def read_tolerances(words: str, organs: Sequence[Organ]) -> dict[str, float]:
    """Tolerances in mm by organ name, from the user's ``words``: ``3``, ``liver=5,RK=3``, ``2,liver=5`` or a file.

    A bare number holds for every organ that is not named; the organs left unmentioned are not in the result. Organs go
    by their name or their column in FLARE's tables, in capitals or not. The file is JSON, ``{"liver": 5, "RK": 3}``.
    Raises ConfigError for an unknown organ, and a tolerance that is not a number of 0 mm or more.
    """
    names = {word.lower(): organ.name for organ in organs for word in (organ.name, organ.column)}
    found: dict[str, float] = {}
    for word, value in _tolerance_entries(words):
        try:
            tolerance_mm = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"tolerance {words!r}: {value!r} is no number of mm; {EXPECTED}") from None
        if not math.isfinite(tolerance_mm) or tolerance_mm < 0 or isinstance(value, bool):
            raise ConfigError(f"tolerance {words!r}: {value!r} is no distance; expected 0 mm or more")
        if word is None:
            found = {organ.name: tolerance_mm for organ in organs} | found
        elif word.lower() not in names:
            known = ", ".join(organ.name for organ in organs)
            likely = did_you_mean(word, names)
            raise ConfigError(f"tolerance {words!r}: no organ is called {word!r}; the label set holds {known}{likely}")
        else:
            found[names[word.lower()]] = tolerance_mm
    return found


def _tolerance_entries(words: str) -> list[tuple[str | None, Any]]:
    """(organ or None for all, what the user wrote as its value) in the order written."""
    if words.strip().lower().endswith(".json"):
        path = Path(words.strip())
        content = read_json(path, ConfigError, EXPECTED)
        if not isinstance(content, dict) or not content:
            raise ConfigError(f'{path}: expected one object with a tolerance in mm by organ, such as {{"liver": 5}}')
        return list(content.items())
    parts = [part.partition("=") for part in words.split(",")]
    return [(organ.strip(), value) if equals else (None, organ) for organ, equals, value in parts]


def with_tolerances(organs: Sequence[Organ], tolerances_mm: Mapping[str, float]) -> tuple[Organ, ...]:
    """The organs, those in ``tolerances_mm`` (by name) with that tolerance.

    >>> from flarecps.anatomy import FLARE22_ORGANS
    >>> [organ.tolerance_mm for organ in with_tolerances(FLARE22_ORGANS[:2], {"liver": 1.5})]
    [1.5, 3.0]
    """
    return tuple(replace(organ, tolerance_mm=tolerances_mm.get(organ.name, organ.tolerance_mm)) for organ in organs)
