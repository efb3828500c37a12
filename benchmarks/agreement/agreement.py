"""How well the siblings' agreement predicts the true DSC of a scan, on scans whose labels the training never saw.

    python benchmarks/agreement/agreement.py CHECKPOINT DATASET OUT [--split NAME]

CHECKPOINT has two siblings (3D CPS); DATASET is a folder in nnU-Net v2's layout with splits.json. Two pools are judged:
the test scans, and the split's unlabelled training scans, if their labels are there (the training did not read them):
the pool from which one would choose what to annotate next. OUT gets segmentations, scores, agreement.json and .png.

Both numbers are those of 'flarecps segment --agreement' and 'flarecps score --protocol strict'. Intervals are the
bootstrap's over scans (percentiles, 10 000 resamples, seed 0). Of n scans to choose, "found" is how many of the n worst
by true DSC are among the n of lowest agreement.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import rankdata

import flarecps
from flarecps.datasets.layouts import Case, link_cases
from flarecps.experiments.runner import call_flarecps

RESAMPLES = 10_000
CHOSEN_SHARE = 0.2  # of a pool, to be annotated next


def pool(name: str, scans: list[Path], references: Path, checkpoint: Path, out: Path) -> list[dict[str, object]]:
    """Agreement and true DSC of every scan and organ of a pool: a row per scan."""
    folder = out / name
    inputs, truth = folder / "scans", folder / "references"
    names = [scan.name.removesuffix("_0000.nii.gz") for scan in scans]
    link_cases([Case(name, "labelled", (scan,), references / f"{name}.nii.gz")
                for name, scan in zip(names, scans, strict=True)], inputs, truth)  # fmt: skip
    call_flarecps("segment", checkpoint, inputs, folder / "segmentations", "--agreement", "--device", "cpu")
    call_flarecps(
        "score", folder / "segmentations", truth, "--protocol", "strict", "--out", folder / "scores", "--workers", 1
    )
    with (folder / "scores" / "scores.csv").open() as file:
        scores = {row.pop("Name").removesuffix(".nii.gz"): row for row in csv.DictReader(file)}
    rows = []
    for record in json.loads((folder / "segmentations" / "agreement.json").read_text()):
        true = {organ: scores[record["case"]][organ.replace(" ", "_") + "_DSC"] for organ in record["organs"]}
        dsc = {organ: float(value) for organ, value in true.items() if value not in ("", "nan")}
        if record["mean"] is not None and dsc:
            rows.append({**record, "dsc": dsc, "mean_dsc": float(np.mean(list(dsc.values())))})
    return rows


def correlations(agreement: list[float], dsc: list[float]) -> dict[str, object]:
    """Spearman's and Pearson's coefficient, each with its 95 % interval over resampled scans."""
    x, y = np.array(agreement), np.array(dsc)
    draws = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    found: dict[str, object] = {"scans": len(x)}
    for name, of in (("spearman", rankdata), ("pearson", np.asarray)):
        whole = float(pearson(of(x), of(y)))
        with np.errstate(invalid="ignore"):
            resampled = pearson(*(np.apply_along_axis(of, 1, values[draws]) for values in (x, y)))
        low, high = np.nanquantile(resampled, (0.025, 0.975))  # a draw of one scan alone has no correlation
        found[name] = round(whole, 3)
        found[f"{name}_95"] = [round(float(low), 3), round(float(high), 3)]
    return found


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient along the last axis; NaN where nothing varies."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def judged(rows: list[dict]) -> dict[str, object]:
    """What a pool's rows say: correlations of means and per organ, and what choosing by agreement would find."""
    agreement, dsc = [row["mean"] for row in rows], [row["mean_dsc"] for row in rows]
    n = max(1, round(CHOSEN_SHARE * len(rows)))
    by_agreement, by_dsc = set(np.argsort(agreement)[:n].tolist()), set(np.argsort(dsc)[:n].tolist())
    organs = {}
    for organ in rows[0]["organs"]:
        pairs = [(row["organs"][organ], row["dsc"][organ]) for row in rows
                 if row["organs"][organ] is not None and organ in row["dsc"]]  # fmt: skip
        organs[organ] = correlations(*(list(side) for side in zip(*pairs, strict=True)))
    return {
        "mean": correlations(agreement, dsc),
        "organs": organs,
        "mean_agreement": round(float(np.mean(agreement)), 4),
        "mean_dsc": round(float(np.mean(dsc)), 4),
        "chosen": n,
        "found": len(by_agreement & by_dsc),
        "found_by_chance": round(n * n / len(rows), 1),
        "mean_dsc_of_chosen": round(float(np.mean([dsc[i] for i in by_agreement])), 4),
        "mean_dsc_of_worst": round(float(np.mean([dsc[i] for i in by_dsc])), 4),
    }


def draw(pools: dict[str, list[dict]], verdicts: dict[str, dict], path: Path) -> None:
    """A scatter plot per pool: each scan's means, and its structures in pale."""
    figure, grid = plt.subplots(1, len(pools), figsize=(5.2 * len(pools), 5), sharex=True, sharey=True, squeeze=False)
    for axes, (name, rows) in zip(grid[0], pools.items(), strict=True):
        for index, organ in enumerate(rows[0]["organs"]):
            pairs = [(row["organs"][organ], row["dsc"][organ]) for row in rows
                     if row["organs"][organ] is not None and organ in row["dsc"]]  # fmt: skip
            axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.35, color=f"C{index}", linewidths=0, label=organ)
        axes.scatter([row["mean"] for row in rows], [row["mean_dsc"] for row in rows], s=30, color="black",
                     edgecolors="white", linewidths=0.6, label="mean of a scan")  # fmt: skip
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, zorder=0)
        mean = verdicts[name]["mean"]
        low, high = mean["spearman_95"]
        axes.set_title(
            f"{len(rows)} {name} scans: Spearman {mean['spearman']:.2f} ({low:.2f} to {high:.2f})", fontsize=10
        )
        axes.set_xlabel("agreement of the siblings (Dice)")
        axes.set(xlim=(-0.02, 1), ylim=(-0.02, 1), aspect="equal")
    grid[0][0].set_ylabel("true DSC")
    grid[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="10_labelled")
    given = parser.parse_args()
    split = json.loads((given.dataset / "splits.json").read_text())[given.split]
    wanted = {
        "test": (sorted((given.dataset / "imagesTs").glob("*_0000.nii.gz")), given.dataset / "labelsTs"),
        "unlabelled": (
            [given.dataset / "imagesTr" / f"{name}_0000.nii.gz" for name in sorted(split["unlabelled"])
             if (given.dataset / "labelsTr" / f"{name}.nii.gz").is_file()],
            given.dataset / "labelsTr",
        ),
    }  # fmt: skip
    pools = {name: pool(name, *files, given.checkpoint, given.out) for name, files in wanted.items() if files[0]}
    verdicts = {name: judged(rows) for name, rows in pools.items()}
    draw(pools, verdicts, given.out / "agreement.png")
    versions = {"python": platform.python_version(), "flarecps": flarecps.__version__}
    scans = {name: [{k: row[k] for k in ("case", "mean", "mean_dsc")} for row in rows] for name, rows in pools.items()}
    content = {"versions": versions, "split": given.split, "pools": verdicts, "scans": scans}
    (given.out / "agreement.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(verdicts, indent=1))


if __name__ == "__main__":
    main()
