"""One side of `compare.py`: flarecps prepares its store, or measures its labelled stream."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

WARM_UP = 4
BATCH = 2


def main() -> None:
    """Prepare, or print one line of JSON: seconds per patch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["prepare", "measure"])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patch", type=int, nargs=3)
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.dataset, options.out, options.patch)
    else:
        print(json.dumps(measure(options.out / "store", options.patch, options.patches, options.seed)))


def prepare(dataset: Path, out: Path, patch: list[int]) -> None:
    """Plan and preprocess by the command line."""
    flarecps = [sys.executable, "-m", "flarecps"]
    plan = [*flarecps, "plan", dataset, "--out", out / "plan.json", "--patch", str(patch)]
    subprocess.run([str(word) for word in plan], check=True, stdout=sys.stderr)
    preprocess = [*flarecps, "preprocess", dataset, out / "plan.json", "--out", out / "store", "--workers", "1"]
    subprocess.run([str(word) for word in preprocess], check=True, stdout=sys.stderr)


def measure(store: Path, patch: list[int], patches: int, seed: int) -> dict[str, float]:
    """CPU and wall seconds per augmented labelled patch, everything in this process."""
    from flarecps.data.datamodule import ScanDataModule

    torch.set_num_threads(1)
    data = ScanDataModule(
        str(store),
        patch_voxels=patch,
        global_batch={"labelled": BATCH},
        iterations_per_epoch=(WARM_UP + patches) // BATCH,
        unlabelled=False,
        seed=seed,
    )
    batches = iter(data.train_dataloader())
    for _ in range(WARM_UP // BATCH):
        next(batches)
    cpu, wall = time.process_time(), time.perf_counter()
    taken = sum(len(next(batches)[0]["labelled"]["image"]) for _ in range(patches // BATCH))
    return {
        "cpu_s_per_patch": (time.process_time() - cpu) / taken,
        "wall_s_per_patch": (time.perf_counter() - wall) / taken,
        "patches": taken,
    }


if __name__ == "__main__":
    main()
