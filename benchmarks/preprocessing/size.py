"""Bytes per case on disk, patch-read time and exactness of a case store, on real data.

    python benchmarks/preprocessing/size.py OUT NAME=DATASET [NAME=SCAN,LABELS ...] [NAME=DATASET@MM ...]

Every data set (or single scan) is planned and preprocessed by the command line; ``@MM`` sets an isotropic spacing.
Raw float32 is 4 bytes per voxel of the result, what nnU-Net v2 hands to its own compression. Patches of 112×160×128
are read and normalised at random places by one thread, first with the file in the page cache and unopened.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from flarecps.datasets.catalogue import read_catalogue
from flarecps.preprocessing.case import prepare_case
from flarecps.preprocessing.intensity import dequantise
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import read_channels

PATCH = (112, 160, 128)
READS = 60


def main() -> None:
    """Preprocess, measure, write OUT/size.json, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+", help="NAME=FOLDER or NAME=SCAN,LABELS, either with @MM")
    options = parser.parse_args()
    rows = []
    for entry in options.data:
        name, _, source = entry.partition("=")
        source, _, spacing = source.partition("@")
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        dataset = single_scan(folder / "data", *map(Path, source.split(","))) if "," in source else Path(source)
        store = preprocessed(dataset, folder, ["--spacing", f"[{spacing}, {spacing}, {spacing}]"] if spacing else [])
        rows.append({"name": name, **sizes(store), **patch_times(store), **round_trip(dataset, store)})
        print(json.dumps(rows[-1]), flush=True)
    (options.out / "size.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(
        "\n| data | cases | MB per case | bytes per voxel | raw / disk | patch, ms: median, 95 % | stored | worst, SD |"
    )
    print("|---|--:|--:|--:|--:|--:|---|--:|")
    for row in rows:
        size = f"{row['mb_per_case']:.2f} | {row['bytes_per_voxel']:.2f} | {row['ratio']:.1f}"
        times = f"{row['patch_ms']:.1f}, {row['patch_ms_95']:.1f}"
        print(f"| {row['name']} | {row['cases']} | {size} | {times} | {row['stored']} | {row['worst_sd']:.1e} |")


def single_scan(folder: Path, scan: Path, labels: Path) -> Path:
    """A data set of one scan, made of links."""
    for name, source in (("imagesTr/scan_0000.nii.gz", scan), ("labelsTr/scan.nii.gz", labels)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(source.resolve())
    labels_of = {"background": 0, "liver": 1}
    content = {"channel_names": {"0": "CT"}, "labels": labels_of, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def preprocessed(dataset: Path, folder: Path, words: list[str]) -> Path:
    """The store of ``dataset`` in ``folder``, by the commands that users type; continued if it is there."""
    plan = folder / "plan.json"
    command = [sys.executable, "-m", "flarecps"]
    if not plan.exists():
        subprocess.run([*command, "plan", str(dataset), "--out", str(plan), *words], check=True)
    subprocess.run([*command, "preprocess", str(dataset), str(plan), "--out", str(folder / "store")], check=True)
    return folder / "store"


def sizes(path: Path) -> dict[str, float]:
    """Everything in the case folders against 4 bytes per voxel and channel of the image."""
    store = CaseStore(path)
    on_disk = sum(file.stat().st_size for file in (path / "cases").rglob("*") if file.is_file())
    voxels = sum(math.prod(store.record(name).shape) * len(store.plan.channels) for name in store.names)
    return {
        "cases": len(store.names),
        "mb_per_case": on_disk / len(store.names) / 1e6,
        "bytes_per_voxel": on_disk / voxels,
        "ratio": 4 * voxels / on_disk,
    }


def patch_times(path: Path) -> dict[str, float]:
    """Milliseconds per patch and its labels; every read opens its case anew."""
    generator = np.random.default_rng(0)
    labelled = [name for name in CaseStore(path).names if CaseStore(path).record(name).has_labels]
    times = []
    for name in generator.choice(labelled, READS):
        store = CaseStore(path)
        store.plan  # noqa: B018  # read before the clock starts, as in training
        room = [max(0, edge - size) for edge, size in zip(store.record(name).shape, PATCH, strict=True)]
        lower = tuple(int(generator.integers(0, edge + 1)) for edge in room)
        started = time.perf_counter()
        store.read_patch(str(name), lower, PATCH, labels=True)
        times.append(1000 * (time.perf_counter() - started))
    return {"patch_ms": statistics.median(times), "patch_ms_95": float(np.percentile(times, 95))}


def round_trip(dataset: Path, path: Path) -> dict[str, float | str]:
    """The largest difference, in SD of the scan, between a stored voxel and the same computed in float32: 20 cases."""
    store = CaseStore(path)
    worst, stored = 0.0, Counter()
    for case in read_catalogue(dataset).cases[:20]:
        record = store.record(case.name)
        array = store._read(record.folder / "image.b2nd", (slice(None),))
        kind = str(array.dtype)
        if store.plan.intensity.scheme == "ct":
            stored[f"{kind} HU"] += 1
            continue  # whole HU by contract
        if record.scaling is not None:
            kind += " exact" if set(record.scaling.scale) == {1.0} else " scaled"
            array = dequantise(array, record.scaling)
        stored[kind] += 1
        truth = prepare_case(read_channels(case.images), store.plan).image
        for one, other, sd in zip(array, truth, record.statistics["sd"], strict=True):
            worst = max(worst, float(np.abs(one.astype(np.float64) - other).max()) / sd)
    return {"stored": ", ".join(f"{count} {kind}" for kind, count in stored.most_common()), "worst_sd": worst}


if __name__ == "__main__":
    main()
