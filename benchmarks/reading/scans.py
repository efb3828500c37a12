"""Time and memory of reading scans, beside SimpleITK alone and, with --former, another version of this program.

    python benchmarks/reading/scans.py SCAN... [--former FOLDER] [--rounds N]

SCAN is a DICOM folder or any other scan; FOLDER holds the other version's ``flarecps/``. Every reading is a process of
its own, the readers in turn, with all their processes counted: medians of N readings. Time is that of reading alone,
and of the whole process with its imports; memory is the peak of their resident set sizes together, libraries included,
from readings that aren't timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

OURS = "from flarecps.volumes.io import read_volume as read"
SIMPLEITK = """
import os, SimpleITK as sitk
def read(path):
    if os.path.isfile(path):
        return sitk.GetArrayFromImage(sitk.ReadImage(path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(path))
    return sitk.GetArrayFromImage(reader.Execute())
"""
# In the folder of its ``flarecps/``, which Python finds there first
READING = """
import json, sys, time
{imports}
def cpu():
    import psutil
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))
before, began = cpu(), time.perf_counter()
kept = read(sys.argv[1])
seconds, after = time.perf_counter() - began, cpu()
print(json.dumps([seconds, after - before, after]))
"""


def timed(words: list[str], folder: Path) -> tuple[float, ...]:
    """Seconds and CPU seconds of reading, then of the whole process."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True, check=True, text=True)
    whole = time.perf_counter() - began
    seconds, cpu, whole_cpu = json.loads(done.stdout)
    return seconds, cpu, whole, whole_cpu


def peak_mb(words: list[str], folder: Path) -> float:
    """The largest memory of a process and its children; pages that they share count twice."""
    process, peak = psutil.Popen(words, cwd=folder, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        now = 0
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                now += one.memory_info().rss
        peak = max(peak, now)
        time.sleep(0.005)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+")
    parser.add_argument("--former", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    readers: dict[str, tuple[str, Path]] = {"flarecps": (OURS, here), "SimpleITK": (SIMPLEITK, here)}
    if options.former:
        readers["former"] = (OURS, options.former.resolve())
    print("| scan | reader | reading, s | CPU s | whole process, s | CPU s | peak MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for scan in options.scans:
        found: dict[str, list[Any]] = {name: [] for name in readers}
        for _ in range(options.rounds):
            for name, (imports, folder) in readers.items():
                words = [sys.executable, "-c", READING.format(imports=imports), str(Path(scan).resolve())]
                found[name].append((*timed(words, folder), peak_mb(words, folder)))
        medians = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
        for name, (*seconds, mb) in medians.items():
            cells = [Path(scan).name, name, *(f"{one:.2f}" for one in seconds), f"{mb:.0f}"]
            print("| " + " | ".join(cells) + " |")
        for name in medians.keys() - {"flarecps"}:
            ratios = (ours / theirs for ours, theirs in zip(medians["flarecps"], medians[name], strict=True))
            cells = [Path(scan).name, f"flarecps / {name}", *(f"{one:.2f}" for one in ratios)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
