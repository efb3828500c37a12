"""Preprocessing one real CT with labels on one core: flarecps against nnU-Net v2, wall time and peak memory.

    FLARECPS_PEER_PYTHON=.peers/bin/python python benchmarks/preprocessing/speed.py CT LABELS OUT [--spacing 1 1 1]

From the files to what each writes for training, in alternating runs, each in a process of its own that is kept on one
logical core with one thread: ours `flarecps preprocess` does per case; nnU-Net's `DefaultPreprocessor.run_case_save`
with its own reader. Memory is the kernel's high-water mark of the process minus what it held after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from flarecps.dice import dice_coefficient
from flarecps.planning.plan import Intensity, Plan, Topology, read_plan, write_plan
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import read_labels

HERE = Path(__file__).resolve().parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")


def main() -> None:
    """Run both sides alternately, write OUT/speed.json, print the tables; exit 1 below 5 times or above half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="mm: slice, row, column")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    options.out.mkdir(parents=True, exist_ok=True)
    ids = [int(label) for label in np.unique(read_labels(options.labels).array)]
    write_plans(options.out, tuple(options.spacing), ids)
    sides = {
        "nnunetv2": (peer, "peer.py", "nnunet_plans.json", "nnunetv2"),
        "flarecps": (sys.executable, "ours.py", "plan.json", "flarecps"),
    }
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, (python, script, plan, folder) in sides.items():
            shutil.rmtree(options.out / folder, ignore_errors=True)
            words = [python, HERE / script, options.scan, options.labels, options.out / plan, options.out / folder]
            environment = {**os.environ, **ONE_THREAD}
            done = subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, env=environment)
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
            one = runs[side][-1]
            print(f"round {number + 1}: {side}: {one['wall_s']:.2f} s, {one['peak_mb']:.0f} MB", flush=True)
    result = {"spacing_mm": list(options.spacing), "runs": runs, "medians": medians(runs)}
    result["agreement"] = agreement(options.out, peer)
    (options.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    ours, theirs = result["medians"]["flarecps"], result["medians"]["nnunetv2"]
    sys.exit(0 if theirs["wall_s"] >= 5 * ours["wall_s"] and ours["peak_mb"] <= theirs["peak_mb"] / 2 else 1)


def medians(runs: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """The median of every figure of each side."""
    return {
        side: {figure: statistics.median(run[figure] for run in of) for figure in ("wall_s", "cpu_s", "peak_mb")}
        | {f"{step}_s": statistics.median(run["steps_s"][step] for run in of) for step in of[0]["steps_s"]}
        for side, of in runs.items()
    }


def write_plans(out: Path, spacing_mm: tuple[float, float, float], ids: list[int]) -> None:
    """The same grid as a plan of ours and as nnU-Net plans; both CT, with limits so wide that HU are only shifted."""
    labels = {"background": 0, **{f"organ {label}": label for label in range(1, max(ids) + 1)}}
    plan = Plan(
        dataset="one scan",
        dimensions=3,
        labels=labels,
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=spacing_mm,
        axis_order=(0, 1, 2),
        median_shape_voxels=(200, 400, 400),
        patch_voxels=(112, 160, 128),
        topology=Topology((32, 64), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=False,
        intensity=Intensity("ct", -1024.0, 3071.0, 0.0, 1.0),
        fingerprint={},
        memory_gb=1.0,
    )
    write_plan(out / "plan.json", plan)
    module = "nnunetv2.preprocessing"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [112, 160, 128],
        "spacing": list(spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {"network_class_name": module, "arch_kwargs": {}, "_kw_requires_import": []},
    }
    intensity = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1024.0, "percentile_99_5": 3071.0}
    plans = {
        "dataset_name": "Dataset001_OneScan",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": intensity},
        "label_manager": "LabelManager",
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    content = json.dumps({"plans": plans, "dataset": dataset}, indent=1)
    (out / "nnunet_plans.json").write_text(content, encoding="utf-8")


def agreement(out: Path, peer: str) -> dict[str, float | list[int] | bool]:
    """How far what both wrote agrees: HU of all voxels, Dice of each label, in the same (stored) orientation."""
    unpack = "import blosc2,numpy,sys; [numpy.save(p[:-5], blosc2.open(p)[:]) for p in sys.argv[1:]]"
    files = [str(out / "nnunetv2" / name) for name in ("scan.b2nd", "scan_seg.b2nd")]
    subprocess.run([peer, "-c", unpack, *files], check=True)
    theirs, their_labels = (np.load(name[:-5] + ".npy")[0] for name in files)
    image, labels = CaseStore(out / "flarecps").read_case("scan")
    plan = read_plan(out / "plan.json")
    assert plan.intensity.sd == 1.0
    assert labels is not None
    best: dict[str, float | list[int] | bool] = {"same_shape": False}
    for flips in np.ndindex(2, 2, 2):  # ours is in RAS order, theirs as stored: the flip that fits is the right one
        senses = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        if image.shape[1:] != theirs.shape:
            return best
        difference = np.abs(np.clip(image[0], -1024, 3071)[senses] - theirs)
        if best.get("mean_hu", np.inf) > difference.mean():
            dice = [
                dice_coefficient(
                    ((labels[senses] == label) & (their_labels == label)).sum(),
                    (labels == label).sum() + (their_labels == label).sum(),
                )
                for label in np.unique(their_labels[their_labels > 0])
            ]  # fmt: skip
            best = {
                "same_shape": True,
                "shape": list(theirs.shape),
                "mean_hu": float(difference.mean()),
                "largest_hu": float(difference.max()),
                "share_above_1_hu": float((difference > 1).mean()),
                "dice": [float(value) for value in dice],
            }
    return best


def show(result: dict) -> None:
    """Medians, ratios, steps and agreement, in Markdown."""
    ours, theirs = result["medians"]["flarecps"], result["medians"]["nnunetv2"]
    print("\n| median of alternating runs | nnunetv2 | flarecps | ratio |\n|---|--:|--:|--:|")
    for figure, name in (("wall_s", "wall, s"), ("cpu_s", "CPU, s"), ("peak_mb", "peak RAM above imports, MB")):
        print(f"| {name} | {theirs[figure]:.2f} | {ours[figure]:.2f} | {theirs[figure] / ours[figure]:.1f} |")
    for side, figures in result["medians"].items():
        steps = ", ".join(f"{name[:-2]} {value:.2f} s" for name, value in figures.items() if " " in name)
        print(f"\n{side}: {steps}")
    print(f"\nagreement: {json.dumps(result['agreement'])}")


if __name__ == "__main__":
    main()
