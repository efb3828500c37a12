"""How a scan was cut out: half of OpenKBP's scans show the body to the chest, the others just a tube around the cord.

    python benchmarks/kbp/views.py DATASET [OUT] [--results FOLDER]

Writes RESULTS/views.csv, the view of every scan (``table.py`` splits the scores by it), and views.png, two scans of
each view. With OUT, the folder of ``flarecps study``, adds to volumes.csv the trainings whose segmentations stand
there: DSC and predicted / true volume of each organ by view. Rows of other trainings stay.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from arms import RESULTS

from flarecps.evaluation.overlap import dice_per_label
from flarecps.volumes.io import Volume, read_labels, read_volume

BODY_HU = -500.0  # what lies outside of the body, or was blanked, is at -1024
LOWEST = 0.1  # of a scan's slices
TRUNK_SHARE = 0.05  # no scan of OpenKBP lies between 0.03 and 0.09
ORGANS = {1: "brainstem", 2: "spinal_cord", 3: "right_parotid", 4: "left_parotid"}  # as columns of scores
CORD = 2


def body_share(scan: Volume) -> float:
    """How much of the lowest slices is body, 0 to 1."""
    slices = scan.array[0]
    return float((slices[: max(1, round(LOWEST * len(slices)))] > BODY_HU).mean())


def view_of(share: float) -> str:
    """``trunk`` where the lowest slices show the body, ``tube`` where they do not."""
    return "trunk" if share > TRUNK_SHARE else "tube"


def views(dataset: Path) -> Iterator[dict[str, str]]:
    """Case, folder, share of body in the lowest slices and view, of all scans."""
    for folder in ("imagesTr", "imagesTs"):
        for path in sorted((dataset / folder).glob("*_0000.nii.gz")):
            share = body_share(read_volume(path))
            case = path.name.removesuffix("_0000.nii.gz")
            yield {"case": case, "folder": folder, "body_share": f"{share:.4f}", "view": view_of(share)}


def volumes(dataset: Path, out: Path, rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """For every training that has segmentations, view and organ: mean DSC, and mean predicted / true volume."""
    view = {row["case"]: row["view"] for row in rows}
    references = {path.name: read_labels(path).array for path in sorted((dataset / "labelsTs").glob("*.nii.gz"))}
    for folder in sorted((out / "labels" / "none").glob("*_labelled/*/fold_0/seed_*")):
        paths = sorted((folder / "1").glob("*.nii.gz"))
        if len(paths) != len(references):
            continue
        found = {path.name: dice_per_label(read_labels(path).array, references[path.name], ORGANS) for path in paths}
        for shown in ("trunk", "tube"):
            mine = [one for name, one in found.items() if view[name.removesuffix(".nii.gz")] == shown]
            for organ, name in ORGANS.items():
                ratios = [one[organ].prediction / one[organ].reference for one in mine]
                yield {
                    "labels": folder.parents[2].name.removesuffix("_labelled"),
                    "arm": folder.parents[1].name,
                    "seed": folder.name.removeprefix("seed_"),
                    "view": shown,
                    "organ": name,
                    "dsc": f"{np.mean([one[organ].dsc for one in mine]):.4f}",
                    "volume_ratio": f"{np.mean(ratios):.4f}",
                }


def key_of(row: Mapping[str, str]) -> tuple[int, str, int, str, str]:
    """What a row of volumes.csv is about, in its order."""
    return int(row["labels"]), row["arm"], int(row["seed"]), row["view"], row["organ"]


def draw(dataset: Path, rows: Sequence[Mapping[str, str]], path: Path, each: int = 2) -> None:
    """The first test scans of each view: cut along the middle of the spinal cord, and across its lower part."""
    tested = [row for row in rows if row["folder"] == "imagesTs"]
    chosen = [row for view in ("trunk", "tube") for row in [one for one in tested if one["view"] == view][:each]]
    figure, axes = plt.subplots(2, len(chosen), figsize=(2.9 * len(chosen), 6), layout="constrained")
    for column, row in zip(axes.T, chosen, strict=True):
        scan = read_volume(dataset / "imagesTs" / f"{row['case']}_0000.nii.gz")
        cord = read_labels(dataset / "labelsTs" / f"{row['case']}.nii.gz").array[0] == CORD
        z, _, x = np.nonzero(cord)
        sagittal, axial = int(np.median(x)), int(np.percentile(z, 15))
        height, depth, width = scan.space.spacing_mm
        show(column[0], scan.array[0, :, :, sagittal], cord[:, :, sagittal], height / depth)
        show(column[1], scan.array[0, axial], cord[axial], depth / width)
        column[0].set_title(f"{row['case']}: {row['view']}")
    figure.savefig(path, dpi=100)


def show(axis: plt.Axes, image: np.ndarray, cord: np.ndarray, aspect: float) -> None:
    """One slice with the outline of the reference."""
    axis.imshow(image, cmap="gray", vmin=-400, vmax=600, origin="lower", aspect=aspect)
    axis.contour(cord, [0.5], colors="red", linewidths=0.8)
    axis.axis("off")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = list(views(arguments.dataset))
    if not any(row["folder"] == "imagesTs" for row in rows):
        parser.error(f"{arguments.dataset}: no test scans; expected imagesTs/CASE_0000.nii.gz, nnU-Net v2's layout")
    write(arguments.results / "views.csv", rows)
    draw(arguments.dataset, rows, arguments.results / "views.png")
    for folder in ("imagesTr", "imagesTs"):
        shown = [row["view"] for row in rows if row["folder"] == folder]
        print(f"{folder}: {shown.count('trunk')} of {len(shown)} scans show the trunk")
    if arguments.out:
        table = arguments.results / "volumes.csv"
        known = list(csv.DictReader(table.open(encoding="utf-8"))) if table.is_file() else []
        made = {key_of(row): row for row in (*known, *volumes(arguments.dataset, arguments.out, rows))}
        write(table, [made[key] for key in sorted(made)])


if __name__ == "__main__":
    main()
