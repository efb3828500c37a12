"""Where the mistakes lie: on scans never seen or on scans learned, at the border of an organ or far away from it.

    python benchmarks/kbp/mistakes.py OUT [--labels 10] [--results FOLDER]

For every training whose segmentations stand in OUT, the folder of ``flarecps study``: DSC on the scans that judge as
it is, of the largest piece of each organ, and without all that lies farther than 20 mm from the reference (which no
program can know); the predicted volume as a multiple of the true one; and the DSC on the labelled training scans,
which are segmented for this. Adds to RESULTS/mistakes.csv, one row per training; rows that stand there are not made
again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from arms import RESULTS
from scipy import ndimage

from flarecps.datasets.layouts import Case, link_cases
from flarecps.evaluation.overlap import dice_per_label
from flarecps.experiments.runner import call_flarecps
from flarecps.experiments.stages import last_checkpoint, training_is_finished
from flarecps.inference.postprocessing import largest_of_each

FAR_MM = 20.0
COLUMNS = ("arm", "labels", "seed", "dsc", "dsc_largest_piece", "dsc_near_reference", "volume_ratio", "dsc_on_labelled")


def judge(segmentation: Path, reference: Path) -> Iterator[tuple[float, float, float, float]]:
    """For each organ of the reference: DSC, that of the largest piece, that near the reference, volume ratio."""
    image = sitk.ReadImage(str(reference))
    true, found = (sitk.GetArrayFromImage(one).astype(np.uint8) for one in (image, sitk.ReadImage(str(segmentation))))
    organs = tuple(int(organ) for organ in np.unique(true[true > 0]))
    near = found.copy()
    for organ in organs:
        far = ndimage.distance_transform_edt(true != organ, sampling=image.GetSpacing()[::-1]) > FAR_MM
        near[(found == organ) & far] = 0
    scores = [dice_per_label(labels, true, organs) for labels in (found, largest_of_each(found, organs), near)]
    for organ in organs:
        as_is, largest, close = (one[organ].dsc for one in scores)
        yield as_is, largest, close, float((found == organ).sum() / (true == organ).sum())


def mean_rows(folder: Path, references: Path) -> np.ndarray:
    """The four measures of a folder of segmentations: mean over organs and scans."""
    rows = [row for path in sorted(folder.glob("*.nii.gz")) for row in judge(path, references / path.name)]
    return np.mean(rows, axis=0)


def segment_labelled(data: Path, folder: Path, split: str) -> Path:
    """Segmentations of the training scans that counted as labelled."""
    names = json.loads((data / "splits.json").read_text(encoding="utf-8"))[split]["labelled"]
    scans, found = folder / "labelled_scans", folder / "segmentations_labelled"
    link_cases([Case(name, "labelled", (data / "imagesTr" / f"{name}_0000.nii.gz",)) for name in names], scans)
    call_flarecps("segment", last_checkpoint(folder), scans, found, "--sibling", "1")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    out, table, split = arguments.out.resolve(), arguments.results / "mistakes.csv", f"{arguments.labels}_labelled"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.is_file() else []
    done = {(row["arm"], row["labels"], row["seed"]) for row in rows}
    for folder in sorted((out / "runs" / split).glob("*/fold_0/seed_*")):
        key = (folder.parents[1].name, str(arguments.labels), folder.name.removeprefix("seed_"))
        segmented = out / "labels" / "none" / folder.relative_to(out / "runs") / "1"
        if key in done or not training_is_finished(folder) or not segmented.is_dir():
            continue
        judged = mean_rows(segmented, out / "held_out" / split / "labels")
        learned = mean_rows(segment_labelled(out / "data", folder, split), out / "data" / "labelsTr")
        rows.append(dict(zip(COLUMNS, (*key, *(f"{value:.4f}" for value in (*judged, learned[0]))), strict=True)))
        print(rows[-1], flush=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (int(row["labels"]), row["arm"], int(row["seed"]))))


if __name__ == "__main__":
    main()
