"""Time and memory of scoring one real pair of 13-organ label maps: flarecps against DeepMind's surface-distance.

    python benchmarks/scoring/speed.py REFERENCE.nii.gz OUT [--rounds 3]

The prediction is the reference, bent by a smooth random field (``deform.py``). Every run is a process of its own with
one thread; the sides take turns. Memory is the peak of resident memory above the imports, both label maps included.
DSC must be equal and NSD equal to 1e-6, otherwise exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from deform import deformed

from flarecps.volumes.io import read_labels, scan_name

HERE = Path(__file__).resolve().parent
SIDES = ("flarecps", "surface-distance", "surface-distance-cropped")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main() -> None:
    """Run the sides alternately, write OUT/speed.json, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    volume = read_labels(options.reference)
    reference, spacing_mm = volume.array[0], volume.space.spacing_mm
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, f"{name}.npy") for name in ("prediction", "reference")]
        for file, labels in zip(files, (deformed(reference, spacing_mm, options.seed), reference), strict=True):
            np.save(file, labels)
        for number in range(options.rounds):
            for side in SIDES:
                command = [sys.executable, HERE / "one_case.py", side, *files, *spacing_mm]
                done = subprocess.run(
                    list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
                )
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
                run = runs[side][-1]
                print(f"round {number + 1}: {side}: {run['wall_s']:.2f} s, {run['peak_mb']:.0f} MB", flush=True)
    scores = {side: runs[side][0].pop("scores") for side in SIDES}
    for of in runs.values():
        for run in of:
            run.pop("scores", None)
    result = {
        "case": scan_name(options.reference),
        "shape": list(reference.shape),
        "spacing_mm": [round(step, 4) for step in spacing_mm],
        "seed": options.seed,
        "largest_difference": {
            side: dict(zip(("dsc", "nsd"), differences(scores["flarecps"], scores[side]), strict=True))
            for side in SIDES[1:]
        },
        "runs": runs,
        "scores": scores["flarecps"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    if any(found["dsc"] > 0 or found["nsd"] > 1e-6 for found in result["largest_difference"].values()):
        sys.exit("the scores differ")


def differences(ours: dict, theirs: dict) -> list[float]:
    """The largest difference over organs, of DSC and of NSD."""
    return [max(abs(ours[organ][place] - theirs[organ][place]) for organ in ours) for place in (0, 1)]


def show(result: dict) -> None:
    """The medians as a Markdown table, and their ratios to flarecps."""
    medians = {
        side: {what: statistics.median(run[what] for run in of) for what in ("wall_s", "cpu_s", "peak_mb")}
        for side, of in result["runs"].items()
    }
    ours = medians["flarecps"]
    print("\n| | wall s | CPU s | peak MB | times flarecps' wall | times its peak | NSD apart |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for side, of in medians.items():
        apart = result["largest_difference"].get(side, {"nsd": 0.0})["nsd"]
        print(
            f"| {side} | {of['wall_s']:.2f} | {of['cpu_s']:.2f} | {of['peak_mb']:.0f} | "
            f"{of['wall_s'] / ours['wall_s']:.1f} | {of['peak_mb'] / ours['peak_mb']:.2f} | {apart:.1e} |"
        )
    print(f"\n{result['case']}: {result['shape']} voxels; of the peak, the label maps are "
          f"{result['runs']['flarecps'][0]['maps_mb']:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
