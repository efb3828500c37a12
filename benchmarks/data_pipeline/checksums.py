"""What checking bytes costs: a store's files on their first read by a process, a checkpoint before it is used.

    python benchmarks/data_pipeline/checksums.py STORE [--checkpoint FILE] [--patches 200] [--augmentation-ms 100]

Prints a table (Markdown): seconds per case and checkpoint, and the share of a training's data work. The files are read
once before, so that the disk is not measured but the checksums.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from flarecps.checkpoint import load_plain
from flarecps.preprocessing import checksums
from flarecps.preprocessing.store import CaseStore
from flarecps.torch_files import check_whole


def seconds(call, times: int = 3) -> float:
    """The least of ``times`` runs."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def read_patches(store: CaseStore, count: int) -> None:
    """Patches of the plan's size in the middle of the labelled cases, in turn."""
    labelled = [name for name in store.names if store.record(name).has_labels]
    patch = tuple(store.plan.patch_voxels)
    patch = patch if len(patch) == 3 else (1, *patch)
    for index in range(count):
        name = labelled[index % len(labelled)]
        lower = tuple(np.subtract(store.record(name).shape, patch) // 2)
        store.read_patch(name, lower, patch, labels=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--patches", type=int, default=200)
    parser.add_argument("--augmentation-ms", type=float, default=100.0, help="of a patch, which is not measured here")
    given = parser.parse_args()

    store = CaseStore(given.store)
    folders = [given.store / "cases" / name for name in store.names]
    files = [path for folder in folders for path in folder.iterdir() if path.name != checksums.CHECKSUMS]
    size = sum(path.stat().st_size for path in files)

    def check_all() -> None:
        checksums._checked.clear()
        for path in files:
            checksums.check_file(path)

    check_all()  # from here on in the system's cache
    checking = seconds(check_all)
    read_patches(store, given.patches)
    patch_s = seconds(lambda: read_patches(store, given.patches)) / given.patches
    per_case = checking / len(folders)
    rows = [
        ("cases", f"{len(folders)}, {size / 1e6:.1f} MB in {len(files)} files"),
        ("checking a case, once per process", f"{per_case * 1e3:.1f} ms ({size / checking / 1e6:.0f} MB/s)"),
        ("reading a patch", f"{patch_s * 1e3:.1f} ms"),
    ]
    for draws in (1, 10, 100):
        share = per_case / (draws * (patch_s + given.augmentation_ms / 1e3))
        rows.append((f"share of a worker's time, {draws} patches of each case", f"{share:.2%}"))
    if given.checkpoint is not None:
        load_plain(given.checkpoint)
        check_s = seconds(lambda: check_whole(given.checkpoint))
        load_s = seconds(lambda: load_plain(given.checkpoint))
        megabytes = given.checkpoint.stat().st_size / 1e6
        rows.append(
            (f"checking a checkpoint of {megabytes:.0f} MB", f"{check_s * 1e3:.0f} ms of {load_s * 1e3:.0f} ms")
        )
    print("| what | cost |\n|---|---|")
    for name, cost in rows:
        print(f"| {name} | {cost} |")


if __name__ == "__main__":
    main()
