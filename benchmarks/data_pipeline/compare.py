"""Augmented training patches per second and core: flarecps against nnU-Net v2, each from its own store of one scan.

    FLARECPS_PEER_PYTHON=.peers/bin/python python benchmarks/data_pipeline/compare.py CT LABELS OUT

Both sides read labelled patches of 112×160×128 voxels of the same scan on its own grid, with nnU-Net's default
augmentation at the same probabilities, in one process with one thread, in alternating runs. Time is the process's own
CPU time, so that other work on the machine matters little; wall time is written beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATCH = "112 160 128"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")


def main() -> None:
    """Make both stores (once), run both sides alternately, write OUT/data_pipeline.json, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=40, help="a run, after 4 that do not count")
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    dataset = write_dataset(options.scan, options.labels, options.out / "raw" / "Dataset001_OneScan")
    sides = {"flarecps": (sys.executable, "ours.py"), "nnunetv2": (peer, "peer.py")}
    for python, script in sides.values():
        run(python, script, "prepare", dataset, options.out)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, (python, script) in sides.items():
            words = ("measure", dataset, options.out, "--patches", options.patches, "--seed", number)
            runs[side].append(json.loads(run(python, script, *words).splitlines()[-1]))
            print(f"round {number + 1}: {side}: {1 / runs[side][-1]['cpu_s_per_patch']:.2f} patches/s and core")
    medians = {side: statistics.median(one["cpu_s_per_patch"] for one in of) for side, of in runs.items()}
    result = {
        "patch_voxels": [int(edge) for edge in PATCH.split()],
        "patches_per_run": options.patches,
        "runs": runs,
        "median_cpu_s_per_patch": medians,
        "ratio": medians["nnunetv2"] / medians["flarecps"],
    }
    (options.out / "data_pipeline.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n| | CPU s per patch | patches per second and core |\n|---|--:|--:|")
    for side, seconds in medians.items():
        print(f"| {side} | {seconds:.3f} | {1 / seconds:.2f} |")
    print(f"\nratio (medians of {options.rounds} alternating runs): {result['ratio']:.1f}")


def write_dataset(scan: Path, labels: Path, dataset: Path) -> Path:
    """A data set of one scan in nnU-Net v2's raw layout, made of links."""
    if not dataset.is_dir():
        (dataset / "imagesTr").mkdir(parents=True)
        (dataset / "labelsTr").mkdir()
        (dataset / "imagesTr" / "scan_0000.nii.gz").symlink_to(scan.resolve())
        (dataset / "labelsTr" / "scan.nii.gz").symlink_to(labels.resolve())
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        (dataset / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return dataset


def run(python: str, script: str, *words: object) -> str:
    """What the script prints; its errors come through."""
    command = [python, str(HERE / script), *map(str, words), "--patch", *PATCH.split()]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD).stdout


if __name__ == "__main__":
    main()
