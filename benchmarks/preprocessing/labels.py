"""Label maps on another grid: flarecps against nnU-Net v2's own resampling, Dice per structure.

    FLARECPS_PEER_PYTHON=.peers/bin/python python benchmarks/preprocessing/labels.py OUT LABELS.nii.gz ...

Each map is brought to several spacings by both (nnU-Net's ``resample_data_or_seg_to_shape`` in its own environment).
Structures of more than 1000 voxels in nnU-Net's result count; the smallest Dice of each spacing is shown. Maps that
OUT/labels.csv holds already stay in it, so a long list can be done in parts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from flarecps.dice import dice_coefficient
from flarecps.volumes.io import read_labels, scan_name
from flarecps.volumes.resampling import coarse_axis, resample_labels, resampled_shape

HERE = Path(__file__).resolve().parent
FEWEST_VOXELS = 1000
# Factors on the map's own spacing (slice, row, column), or mm: finer, coarser, exactly half, anisotropic, separate z.
TARGETS = {
    "1 mm isotropic": (1.0, 1.0, 1.0),
    "1.5 mm isotropic": (1.5, 1.5, 1.5),
    "own x 0.8": (-0.8, -0.8, -0.8),
    "own x 1.37": (-1.37, -1.37, -1.37),
    "own x 2": (-2.0, -2.0, -2.0),
    "slices x 0.6, in plane x 1.2": (-0.6, -1.2, -1.2),
    "5 mm slices, 0.9 mm in plane": (5.0, 0.9, 0.9),
}


def main() -> None:
    """Resample with both, write OUT/labels.csv, print a table; exit 1 when a structure is below 0.999."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("maps", type=Path, nargs="+")
    parser.add_argument("--only", choices=list(TARGETS), nargs="+", default=list(TARGETS), help="these spacings")
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = kept(
        options.out / "labels.csv", {(name_of(path), target) for path in options.maps for target in options.only}
    )
    rows += [row for path in options.maps for row in compare(path, peer, options.only)]
    with open(options.out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    show(rows)
    if min(row["dice"] for row in rows) < 0.999:
        sys.exit(1)


def name_of(path: Path) -> str:
    """A map's name with its folder's, which tells maps of the same name apart."""
    return f"{path.resolve().parent.name}/{scan_name(path)}"


def kept(table: Path, again: set[tuple[str, str]]) -> list[dict]:
    """The rows of an earlier run, but for maps at spacings that are done again."""
    if not table.exists():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["map"], row["target"]) not in again]
    numbers = {"label": int, "voxels": int, "voxels_that_differ": int, "dice": float}
    return [row | {key: kind(row[key]) for key, kind in numbers.items()} for row in rows]


def compare(path: Path, peer: str, only: list[str]) -> list[dict]:
    """A row per spacing and structure of one map."""
    volume = read_labels(path)
    labels, spacing = volume.array[0], volume.space.spacing_mm
    jobs, ours = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "labels.npy", labels)
        for number, (name, factors) in enumerate((name, TARGETS[name]) for name in only):
            target = tuple(-value * own if value < 0 else value for value, own in zip(factors, spacing, strict=True))
            shape = resampled_shape(labels.shape, spacing, target)
            coarse = coarse_axis(spacing, target)
            ours[name] = resample_labels(labels, shape, coarse)
            job = {"labels": "labels.npy", "out": f"{number}.npy", "shape": shape, "spacing_mm": spacing}
            jobs.append({**job, "target_mm": target, "name": name, "separate": coarse is not None})
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        subprocess.run([peer, str(HERE / "peer_labels.py"), scratch], check=True, stdout=subprocess.DEVNULL)
        rows = []
        for job in jobs:
            theirs = np.load(folder / job["out"])
            mine = ours[job["name"]]
            for label in np.unique(theirs[theirs > 0]):
                a, b = mine == label, theirs == label
                if b.sum() <= FEWEST_VOXELS:
                    continue
                dice = dice_coefficient(int((a & b).sum()), int(a.sum() + b.sum()))
                row = {"map": name_of(path), "target": job["name"], "separate_z": "yes" if job["separate"] else ""}
                row |= {"label": int(label), "voxels": int(b.sum()), "voxels_that_differ": int((a != b).sum())}
                rows.append({**row, "dice": round(dice, 6)})
    print(f"{name_of(path)}: worst {min(row['dice'] for row in rows):.5f} of {len(rows)}", flush=True)
    return rows


def show(rows: list[dict]) -> None:
    """The smallest Dice of each spacing, as a Markdown table."""
    print(
        "\n| target | structures | separate z | smallest Dice | its size, voxels | below 0.999 | voxels that differ |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in TARGETS:
        of = [row for row in rows if row["target"] == name]
        if not of:
            continue
        worst = min(of, key=lambda row: row["dice"])
        apart = len({row["map"] for row in of if row["separate_z"]})
        differ = sum(row["voxels_that_differ"] for row in of)
        below = sum(row["dice"] < 0.999 for row in of)
        print(f"| {name} | {len(of)} | {apart} maps | {worst['dice']:.5f} | {worst['voxels']} | {below} | {differ} |")


if __name__ == "__main__":
    main()
