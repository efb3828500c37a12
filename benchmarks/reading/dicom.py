"""Time and memory of reading a DICOM series, beside SimpleITK's own series reader.

    python benchmarks/reading/dicom.py SERIES_OR_FILE... [--rounds N]

Every reading is a process of its own, the two readers in turn; the best time and the highest peak count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def ours() -> Callable[[str], object]:
    from flarecps.volumes.io import read_volume

    return read_volume


def simpleitk() -> Callable[[str], object]:
    import SimpleITK as sitk

    def read(path: str) -> object:
        if Path(path).is_file():
            return sitk.GetArrayFromImage(sitk.ReadImage(path))
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(path))
        return sitk.GetArrayFromImage(reader.Execute())

    return read


READERS = {"flarecps": ours, "SimpleITK": simpleitk}


def measured(name: str, path: str) -> dict[str, float]:
    """Seconds of one reading, and MB of memory that it took on top of the libraries'."""
    read = READERS[name]()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    kept = read(path)
    seconds = time.perf_counter() - began
    del kept
    return {"seconds": seconds, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options.paths[0])))
        return
    print("| series | reader | seconds | MB |\n|---|---|---:|---:|")
    for path in options.paths:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
        for _ in range(options.rounds):
            for name, results in found.items():
                words = [sys.executable, __file__, path, "--only", name]
                results.append(json.loads(subprocess.run(words, capture_output=True, check=True).stdout))
        for name, results in found.items():
            seconds, mb = min(one["seconds"] for one in results), max(one["mb"] for one in results)
            print(f"| {Path(path).name} | {name} | {seconds:.2f} | {mb:.0f} |")


if __name__ == "__main__":
    main()
