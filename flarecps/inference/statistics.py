"""Volume and mean intensity of every organ of a segmented scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flarecps.inference.case_records import Record, number
from flarecps.typing import LabelArray

KIND = "statistics"


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
            row |= {f"{organ}_{key}": number(value, 3) for key, value in values.items() if key != "voxels"}
        rows.append(row)
    return rows
