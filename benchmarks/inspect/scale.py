"""The doctor on thousands of scans: seconds, memory of the parent and of the largest worker, size of the page.

    python benchmarks/inspect/scale.py SCRATCH [--cases 2050] [--workers 2]

Writes tiny scans of noise in a body (120 slices, so that slice marks are as many as in real scans) with one leak among
them, inspects them with pictures, and checks that exactly the leak is found. Or, for the memory of one real scan:

    python benchmarks/inspect/scale.py SCRATCH --dataset FOLDER
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from flarecps.batch_processing import process_cases
from flarecps.datasets.inspection import Inspection, inspect_folder
from flarecps.reporting.doctor import write_doctor_page
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE = (120, 24, 24)
SPACING_MM = (2.5, 6.0, 6.0)
LABELLED_SHARE = 41  # one labelled case in so many: 50 of 2,050


def main() -> None:
    """Make the data set if it is not there, inspect it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--cases", type=int, default=2050)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dataset", type=Path)
    given = parser.parse_args()
    root = given.dataset or given.scratch / f"scans_{given.cases}"
    if given.dataset is None and not (root / "dataset.json").is_file():
        orders = [(str(index), (root, index)) for index in range(given.cases)]
        process_cases(write_case, orders, given.workers, "Writing")
        description = {"labels": {"background": 0, "spleen": 1}, "channel_names": {"0": "CT"}}
        (root / "dataset.json").write_text(json.dumps(description))
    own = peak_mb(resource.RUSAGE_SELF)
    started = time.perf_counter()
    inspection = inspect_folder(root, workers=given.workers)
    inspected = time.perf_counter()
    print(f"{len(inspection.examined)} cases inspected in {inspected - started:.1f} s with {given.workers} workers")
    print(f"peak RSS: {peak_mb(resource.RUSAGE_SELF):.0f} MB (after imports {own:.0f} MB), "
          f"largest worker {peak_mb(resource.RUSAGE_CHILDREN):.0f} MB")  # fmt: skip
    page = given.scratch / "page.html"
    write_doctor_page(page, inspection, given.workers)
    print(f"page: {time.perf_counter() - inspected:.1f} s more, {page.stat().st_size / 1e6:.2f} MB")
    report(inspection, planted=given.dataset is None)


def write_case(order: tuple[Path, int]) -> None:
    """One scan: labelled, or unlabelled, or (the last) test; the second to last is a mirrored copy of the test scan."""
    root, index = order
    generator = np.random.default_rng(index)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, 3:-3, 3:-3] = generator.normal(40, 30, (SHAPE[0], SHAPE[1] - 6, SHAPE[2] - 6))
    space = Space.canonical(SHAPE, SPACING_MM)
    if index == 0:
        write_volume(root / "imagesTs/judged_0000.nii.gz", hu, space)
        write_volume(root / "imagesUn/leaked_0000.nii.gz", hu[:, :, ::-1], space)
    elif index % LABELLED_SHARE == 1:
        labels = np.zeros(SHAPE, np.uint8)
        labels[40:60, 6:12, 5:12] = generator.random((20, 6, 7)) < 0.9  # no two alike
        write_volume(root / f"imagesTr/c{index}_0000.nii.gz", hu, space)
        write_volume(root / f"labelsTr/c{index}.nii.gz", labels, space)
    else:
        write_volume(root / f"imagesUn/c{index}_0000.nii.gz", hu, space)


def report(inspection: Inspection, planted: bool) -> None:
    """Print the findings; with the planted leak, insist that it is the only error."""
    for finding in inspection.findings:
        print(f"{finding.severity} {finding.code} {finding.case}: {finding.found}")
    errors = [(one.case, one.code) for one in inspection.findings if one.severity == "error"]
    if planted and errors != [("leaked", "leak")]:
        raise SystemExit(f"expected the leak alone, found {errors}")


def peak_mb(who: int) -> float:
    """Peak resident memory in MB of this process or of its largest ended child."""
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    main()
