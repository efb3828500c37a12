"""One scan with labels from its files into a case store, as ``flarecps preprocess`` does it; for speed.py.

python ours.py SCAN LABELS PLAN.json STORE
"""

from __future__ import annotations

import sys
from pathlib import Path

from measure import measured, one_core, timed

one_core()

from flarecps.datasets.catalogue import Case, Catalogue  # noqa: E402  # after one_core
from flarecps.planning.plan import read_plan  # noqa: E402
from flarecps.preprocessing import dataset  # noqa: E402
from flarecps.preprocessing.store_writing import prepare_store  # noqa: E402


def main() -> None:
    scan, labels, plan_path, store = map(Path, sys.argv[1:])
    plan = read_plan(plan_path)
    case = Case("scan", "labelled", (scan,), labels, None)
    catalogue = Catalogue(scan.parent, "one scan", dict(plan.labels), plan.channels, (), (case,))
    prepare_store(store, plan, catalogue)  # once per data set
    laps: dict[str, float] = {}
    for name, step in (
        ("read_channels", "read scan"),
        ("read_labels", "read labels"),
        ("prepare_case", "crop and resample"),
        ("write_case", "compress and write"),
    ):
        timed(dataset, name, laps, step)
    measured(lambda: dataset.preprocess_case((case, plan, store)), laps)


if __name__ == "__main__":
    main()
