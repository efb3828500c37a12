"""What is known of each finished scan beside its labels: a small file per scan, and tables of all of them.

Statistics are volumes and mean intensities. Agreement is how far two networks that were trained beside each other draw
the same: a quality score that needs no reference. Where siblings that saw the same data from different beginnings draw
an organ differently, at least one is wrong; so scans of low agreement are those to look at, or to annotate, first.

The files are the truth; the tables are made of them, so any number of jobs may work on one folder, and a table that a
killed run left behind is made anew by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flarecps import atomic
from flarecps.case_names import file_name
from flarecps.errors import DatasetError
from flarecps.evaluation.overlap import dice_per_label
from flarecps.json_fields import Reader, is_number
from flarecps.text_files import csv_text, read_json
from flarecps.typing import LabelArray

Record: TypeAlias = dict[str, Any]  # plain types; "case" is the scan's name
SUFFIX = ".json"
AGREEMENT, STATISTICS = "agreement", "statistics"  # kinds of records


def record_path(output: Path, kind: str, name: str) -> Path:
    """Where the record of scan ``name`` is kept: ``OUTPUT/KIND/NAME.json``."""
    return output / kind / file_name(name, SUFFIX)


def write_record(output: Path, kind: str, record: Record) -> None:
    """Keep the record of one scan, atomically."""
    path = record_path(output, kind, record["case"])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, record)


def write_tables(
    output: Path,
    kind: str,
    rows: Callable[[Sequence[Record]], Sequence[Mapping[str, object]]],
    arrange: Callable[[Sequence[Record]], list[Record]] = list,
) -> None:
    """``OUTPUT/KIND.json``, all records as ``arrange`` orders them, and ``KIND.csv``, made of them by ``rows``.

    Every job of an array may do this at any time: whoever is last has seen every record.
    """
    there = _records(output, kind)
    while there:
        records = arrange([_read_record(path, kind) for path in there])
        atomic.write_json(output / f"{kind}.json", records)
        atomic.write_text(output / f"{kind}.csv", _csv(rows(records)))
        before, there = there, _records(output, kind)
        if there == before:
            return


def organ_statistics(
    name: str,
    image: np.ndarray,
    labels: LabelArray,
    voxel_mm3: float,
    label_set: Mapping[str, int],
    is_hu: bool = True,
) -> Record:
    """Per organ its voxels, millilitres, and the mean of the scan's values in it (None when it is empty).

    ``image`` (first channel) and ``labels`` are (slice, row, column) on the scan's grid. The mean is called
    ``mean_hu`` for CT, ``mean`` otherwise.
    """
    size = max(label_set.values()) + 1
    counts, sums = np.zeros(size, np.int64), np.zeros(size)
    for section, drawn in zip(image, labels, strict=True):  # a slice at a time: float64 of the whole would be eightfold
        flat = drawn.reshape(-1)
        counts += np.bincount(flat, minlength=size)
        sums += np.bincount(flat, weights=section.reshape(-1), minlength=size)
    mean = "mean_hu" if is_hu else "mean"
    organs = {
        organ: {
            "voxels": int(counts[label]),
            "ml": round(float(counts[label]) * voxel_mm3 / 1000, 3),
            mean: round(float(sums[label] / counts[label]), 3) if counts[label] else None,
        }
        for organ, label in label_set.items()
        if label
    }
    return {"case": name, "organs": organs}


def statistics_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """A row per scan: ``liver_ml``, ``liver_mean_hu``, …; an empty organ has 0 ml and no mean."""
    rows = []
    for record in records:
        row: dict[str, object] = {"case": record["case"]}
        for organ, values in record["organs"].items():
            row |= {f"{organ}_{key}": _number(value, 3) for key, value in values.items() if key != "voxels"}
        rows.append(row)
    return rows


def sibling_agreement(name: str, first: LabelArray, second: LabelArray, label_set: Mapping[str, int]) -> Record:
    """The Dice coefficient between two label maps of one scan, per organ, and its mean over organs.

    An organ that neither map has is None and left out of the mean; one that only one has is 0. With no organ at all the
    mean is None.

    >>> maps = np.array([[[1, 1, 0]]], np.uint8), np.array([[[1, 0, 0]]], np.uint8)
    >>> sibling_agreement("scan", *maps, {"background": 0, "liver": 1, "spleen": 2})
    {'case': 'scan', 'mean': 0.666667, 'organs': {'liver': 0.666667, 'spleen': None}}
    """
    overlaps = dice_per_label(first, second, [label for label in label_set.values() if label])
    organs = {organ: overlaps[label].dsc for organ, label in label_set.items() if label}
    present = [dsc for dsc in organs.values() if not np.isnan(dsc)]
    plain = {organ: None if np.isnan(dsc) else round(dsc, 6) for organ, dsc in organs.items()}
    return {"case": name, "mean": round(float(np.mean(present)), 6) if present else None, "organs": plain}


def lowest_first(records: Sequence[Record]) -> list[Record]:
    """The scans to look at first, first: none of the organs found, then by rising mean agreement."""
    return sorted(records, key=lambda record: (-1.0 if record["mean"] is None else record["mean"], record["case"]))


def agreement_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """A row per scan in the order given, with its rank; an organ that neither network found is left empty."""
    return [
        {"rank": rank, "case": record["case"], "mean_dsc": _number(record["mean"], 4)}
        | {organ: _number(dsc, 4) for organ, dsc in record["organs"].items()}
        for rank, record in enumerate(records, start=1)
    ]


def _number(value: float | None, decimals: int) -> str:
    """A number for a table's cell; empty for None."""
    return "" if value is None else f"{value:.{decimals}f}"


def _records(output: Path, kind: str) -> list[Path]:
    found = (output / kind).glob(f"*{SUFFIX}")
    return sorted(path for path in found if not path.name.startswith(atomic.PARTIAL_PREFIX))


def _read_record(path: Path, kind: str) -> Record:
    expected = "expected the record of a scan: remove it, and the scan will be segmented again"
    record = Reader(read_json(path, DatasetError, expected), str(path), kind=DatasetError, again=expected)
    record.string("case")
    means = [] if kind == STATISTICS else [record.content.get("mean", "missing")]
    organs = [one for value in record.mapping("organs").values() for one in (value.values() if isinstance(value, dict)
              else [value])]  # fmt: skip
    if not all(value is None or is_number(value) for value in (*means, *organs)):
        raise record.error("organs", "numbers")
    return record.content


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return csv_text([columns, *([row.get(column, "") for column in columns] for row in rows)])
