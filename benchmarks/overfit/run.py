"""CPS and its supervised control on two labelled scans, until they know them by heart: DSC above 0.95.

    python benchmarks/overfit/run.py OUT [--epochs 60]

Without augmentation a network that can't learn two scans has a defect somewhere between store and optimiser. Trains
``configs/phantom_3d.yaml`` and its control by the real command line, on two labelled scans (and for CPS two unlabelled
ones), then labels the two scans by sliding window on the network's grid. Writes OUT/overfit.md; exit 1 when a mean DSC
is not above 0.95. About ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from flarecps import __version__
from flarecps.anatomy import organs_of
from flarecps.checkpoint import read_checkpoint
from flarecps.preprocessing.store import CaseStore
from flarecps.training.validation import sibling_labels

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WANTED = 0.95
STEPS_PER_EPOCH = 25


def settings(epochs: int) -> list[str]:
    """What differs from the config: no augmentation, and a schedule of its own; λ rises in the third quarter."""
    return [
        *("--trainer.max_epochs", str(epochs), "--data.iterations_per_epoch", str(STEPS_PER_EPOCH)),
        *("--data.augmentation", "false", "--data.split", "default"),
        *("--model.ramp", f"{{final: 0.5, length: {epochs // 4}, start: {epochs // 2}}}"),
        *("--model.scheduler.init_args.total_iters", str(epochs)),
    ]


def flarecps(*words: object) -> None:
    """Run the program; its failure is ours."""
    subprocess.run([sys.executable, "-m", "flarecps", *map(str, words)], check=True)


def make_store(out: Path) -> Path:
    """A store of two labelled and two unlabelled phantom scans."""
    phantom, store = out / "phantom", out / "store"
    if not store.exists():
        flarecps("phantom", phantom, "--labelled", 2, "--unlabelled", 2, "--test", 1)
        flarecps("plan", phantom, "--spacing", "[10, 10, 10]", "--out", out / "plan.json")
        flarecps("preprocess", phantom, out / "plan.json", "--out", store, "--workers", 1)
    return store


def dsc_by_source(checkpoint: Path, store: CaseStore, names: list[str]) -> dict[str, dict[str, float]]:
    """DSC per source (sibling, average) and organ, over the voxels of the named cases together."""
    model = read_checkpoint(checkpoint)
    sums: dict[str, dict[str, list[float]]] = {}
    for name in names:
        image, labels = store.read_case(name)
        truth = torch.from_numpy(labels)
        predicted = sibling_labels(model.siblings, torch.from_numpy(image), model.plan, step=0.5)
        for source, found in predicted.items():
            for organ in organs_of(model.labels):
                ours, theirs = found == organ.id, truth == organ.id
                both = sums.setdefault(source, {}).setdefault(organ.name, [0.0, 0.0])
                both[0] += float(2 * (ours & theirs).sum())
                both[1] += float(ours.sum() + theirs.sum())
    return {
        source: {organ: both[0] / both[1] for organ, both in organs.items() if both[1]}
        for source, organs in sums.items()
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=60, help=f"of {STEPS_PER_EPOCH} steps")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    store = CaseStore(make_store(out))
    names = [name for name in store.names if store.record(name).role == "labelled"]
    rows, worst = [], 1.0
    for method, config in (("CPS", "phantom_3d.yaml"), ("control", "phantom_3d_supervised.yaml")):
        run = out / method.lower()
        began = time.monotonic()
        more = ["--data.store", store.path, "--trainer.default_root_dir", run, "--overwrite", "true"]
        flarecps("fit", "--config", CONFIGS / config, *more, *settings(arguments.epochs))
        minutes = (time.monotonic() - began) / 60
        for source, scores in dsc_by_source(run / "checkpoints" / "last.ckpt", store, names).items():
            mean = sum(scores.values()) / len(scores)
            lowest = min(scores, key=scores.__getitem__)
            worst = min(worst, mean)
            rows.append(f"| {method} | {source} | {mean:.4f} | {lowest} {scores[lowest]:.4f} | {minutes:.1f} |")
    text = "\n".join(
        [
            "# Two scans by heart",
            "",
            f"`python benchmarks/overfit/run.py OUT --epochs {arguments.epochs}`, flarecps {__version__}, torch "
            f"{torch.__version__}, {processor()}.",
            f"{arguments.epochs * STEPS_PER_EPOCH} steps on {len(names)} labelled phantom scans without augmentation.",
            "DSC on the network's grid over the voxels of the training scans together, mean over organs.",
            "",
            "| method | labels of | DSC | worst organ | minutes of training |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (out / "overfit.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if worst > WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
