"""Which structures a pair of label folders holds: read from a dataset.json at hand, or FLARE22's."""

from __future__ import annotations

import json
from pathlib import Path

from flarecps.anatomy import FLARE22_LABELS
from flarecps.datasets.label_names import label_names
from flarecps.errors import DatasetError

DATASET_JSON = "dataset.json"


def label_set(labels: Path | None, predictions: Path, references: Path) -> tuple[dict[str, int], str]:
    """The label set ``{name: id}`` to score with, ascending by id, and where it was found (for messages).

    ``labels`` (a dataset.json, or the folder that holds it) decides if given. Otherwise the dataset.json in or above
    the references' folder, then the one in the predictions' folder, then FLARE22's 13 organs. Raises DatasetError when
    ``labels`` holds none, or when references and predictions both have one and call the same id by different names.
    """
    if labels is not None:
        path = labels / DATASET_JSON if labels.is_dir() else labels
        return read_label_set(path), str(path)
    with_references, with_predictions = (path.parent if path.is_file() else path for path in (references, predictions))
    beside = _first_file(with_references / DATASET_JSON, with_references.parent / DATASET_JSON)
    written = _first_file(with_predictions / DATASET_JSON)
    if beside is not None and written is not None:
        expected, given = read_label_set(beside), read_label_set(written)
        if expected != given:
            raise DatasetError(
                f"{written}: its labels ({_brief(given)}) are not those of the references "
                f"({_brief(expected)}, {beside}): name the right dataset.json with --labels"
            )
    found = beside or written
    if found is not None:
        return read_label_set(found), str(found)
    return dict(FLARE22_LABELS), "FLARE22's 13 organs (no dataset.json beside references or predictions)"


def read_label_set(path: Path) -> dict[str, int]:
    """The "labels" of a dataset.json as ``{name: id}`` ascending by id, background (0) left out.

    Reads nnU-Net v2's ``{name: id}`` and MSD's ``{"id": name}``; ids may have gaps. Raises DatasetError for a missing
    file, no JSON, and what `label_names` refuses.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f'{path}: no such file; expected a dataset.json with "labels"') from None
    except (OSError, ValueError) as error:
        raise DatasetError(f'{path}: not readable as JSON ({error}); expected a dataset.json with "labels"') from error
    names = label_names(content.get("labels") if isinstance(content, dict) else None, str(path))
    return {name: number for name, number in names.items() if number}


def _first_file(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _brief(labels: dict[str, int]) -> str:
    words = [f"{number} {name}" for name, number in labels.items()]
    return ", ".join(words[:4]) + (", …" if len(words) > 4 else "")
