"""CPS against its supervised control on real head-and-neck CT: every run of ``protocol.py``, one after another.

    python benchmarks/kbp/run.py DATASET OUT [--runs 10_labelled/*] [--limit 3] [--results FOLDER]

DATASET is OpenKBP in nnU-Net v2's layout with splits.json. OUT receives stores, checkpoints and segmentations; the
small files that the tables are made of (scores, curves, a record of the run) go to RESULTS/runs as soon as a run is
done. A run whose record stands there is left out and an interrupted training continues, so this command may be stopped
at any time and given again. ``table.py`` makes the tables.

Nothing is chosen on test scans: fold all, the last checkpoint, the protocol's settings for all.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from protocol import CPS, Run, ordered_runs

from flarecps import __version__
from flarecps.reporting.run_folder import read_scores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kbp"
SNAPSHOT_EVERY = 5  # epochs; kept of CPS from seed 0, for pseudo_labels.py
SEEDS_APART = 10  # initial seeds of two runs: a run's siblings take two


def flarecps(*words: object) -> None:
    """Run the program; its failure is ours."""
    subprocess.run([sys.executable, "-m", "flarecps", *map(str, words)], check=True)


def make_store(dataset: Path, out: Path, intensity: str) -> Path:
    """The case store with intensities of all voxels or of labelled structures. One grid serves all splits.

    The plan is made for ten labelled scans; what it says of spacing and intensity is used, patch and network are the
    config's.
    """
    plan, store = out / f"plan_{intensity}.json", out / f"store_{intensity}"
    if not plan.is_file():
        flarecps("plan", dataset, "--split", "10_labelled", "--intensity", intensity, "--out", plan)
    flarecps("preprocess", dataset, plan, "--out", store)
    return store


def train(run: Run, store: Path, folder: Path) -> list[str]:
    """Train, or go on with it; what comes back are the command's words."""
    words = ["fit", "--config", str(ROOT / "configs" / run.arm.config)]
    words += ["--data.store", str(store), "--trainer.default_root_dir", str(folder)]
    words += ["--data.split", f"{run.labels}_labelled", "--seed_everything", str(run.seed)]
    words += ["--data.seed", str(run.seed), "--model.initial_seed", str(run.seed * SEEDS_APART), *run.arm.overrides]
    if run.labels == max_labels(store):
        words += ["--data.unlabelled", "false"]
    if run.arm == CPS and run.seed == 0:
        words += snapshot_words(folder)
    last = folder / "checkpoints" / "last.ckpt"
    if not (folder / "trained").exists():
        meter = ["efficiency", "--name", "training", "--interval", "1", "--out", folder / "efficiency", "--"]
        go_on = ["--ckpt_path", "last"] if last.is_file() else []
        flarecps(*meter, sys.executable, "-m", "flarecps", *words, *go_on)
        (folder / "trained").touch()
    return words


def snapshot_words(folder: Path) -> list[str]:
    """A checkpoint every few epochs, beside ``last``."""
    settings = {
        "dirpath": folder / "checkpoints",
        "filename": "{epoch}",
        "every_n_epochs": SNAPSHOT_EVERY,
        "save_top_k": -1,
        "save_on_train_epoch_end": "true",
    }
    chosen = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    return chosen + [f"--trainer.callbacks.{name}={value}" for name, value in settings.items()]


def max_labels(store: Path) -> int:
    """How many training scans there are in all."""
    splits = json.loads((store / "splits.json").read_text(encoding="utf-8"))
    return max(len(split["labelled"]) for split in splits.values())


def test(run: Run, dataset: Path, folder: Path, results: Path) -> None:
    """Segment and score the test scans with each sibling that counts."""
    for sibling in run.arm.siblings:
        found = folder / f"segmentations_{sibling}"
        flarecps("segment", folder / "checkpoints" / "last.ckpt", dataset / "imagesTs", found, "--sibling", sibling)
        score(found, dataset, results, f"scores_{sibling}.csv")


def score(segmentations: Path, dataset: Path, results: Path, name: str) -> None:
    """Score a folder and keep its table."""
    scores = segmentations.with_name(segmentations.name.replace("segmentations", "scores"))
    flarecps("score", segmentations, dataset / "labelsTs", "--protocol", "strict", "--out", scores, "--workers", 1)
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scores / "scores.csv", results / name)


def ensembles(dataset: Path, out: Path, results: Path, arm: str, labels: int = 10) -> None:
    """Two controls of neighbouring seeds averaged: what stands beside the average of two siblings."""
    folders = sorted((out / "runs" / f"{labels}_labelled" / arm).glob("seed_*"))
    trained = [folder for folder in folders if (folder / "trained").exists()]
    for first, second in zip(trained, trained[1:] + trained[:1], strict=True):
        if len(trained) < 2 or (len(trained) == 2 and first != trained[0]):
            continue
        kept = results / "runs" / f"{labels}_labelled" / f"{arm}_two" / first.name
        if (kept / "scores_1.csv").is_file():
            continue
        found = out / "runs" / f"{labels}_labelled" / f"{arm}_two" / first.name / "segmentations_1"
        checkpoints = [folder / "checkpoints" / "last.ckpt" for folder in (first, second)]
        flarecps("segment", *checkpoints, dataset / "imagesTs", found)
        score(found, dataset, kept, "scores_1.csv")


def keep(run: Run, folder: Path, results: Path, words: list[str], cpu_s: float, places: dict[Path, str]) -> None:
    """The curves, and a record of command, version, machine and cost; the record comes last: it says "done"."""
    shutil.copyfile(folder / "csv" / "metrics.csv", results / "metrics.csv")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    meter = json.loads((folder / "efficiency" / "cases" / "training.json").read_text(encoding="utf-8"))
    counted = all(session["finished"] for session in environment["sessions"])  # else one was killed, its time unknown
    command = " ".join(["flarecps", *words])
    for place, name in places.items():
        command = command.replace(str(place), name)
    record = {
        "arm": run.arm.title,
        "labels": run.labels,
        "seed": run.seed,
        "command": command,
        "git": environment["git"],
        "flarecps": __version__,
        "torch": torch.__version__,
        "processor": f"{processor()}, {os.cpu_count()} cores, no GPU",
        "threads": torch.get_num_threads(),
        "sessions": len(environment["sessions"]),
        "training_cpu_minutes": round(cpu_s / 60, 1) if counted else None,
        "peak_ram_mb": round(meter["figures"]["tree_ram_mb_max"]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    (results / "run.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def spent(folder: Path, more: float) -> float:
    """CPU seconds of a run's training over all its sessions."""
    meter = folder / "cpu_seconds.txt"
    total = (float(meter.read_text()) if meter.is_file() else 0.0) + more
    folder.mkdir(parents=True, exist_ok=True)
    meter.write_text(str(total))
    return total


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def do(run: Run, dataset: Path, out: Path, results: Path) -> None:
    """One run from store to record."""
    store = make_store(dataset, out, run.arm.intensity)
    folder, kept = out / "runs" / run.folder, results / "runs" / run.folder
    began = children_cpu_s()
    try:
        words = train(run, store, folder)
    finally:
        cpu_s = spent(folder, children_cpu_s() - began)
    test(run, dataset, folder, kept)
    keep(run, folder, kept, words, cpu_s, {out: "OUT", dataset: "DATASET", ROOT: "."})
    if run.arm.name.startswith("control"):
        ensembles(dataset, out, results, run.arm.name, run.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", default="*", help="only those that match, such as '10_labelled/*/seed_0'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="stop after so many runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "disabled")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in ordered_runs(arguments.seeds) if fnmatch.fnmatch(run.folder, arguments.runs)]
    missing = [run for run in wanted if not (arguments.results / "runs" / run.folder / "run.json").is_file()]
    for number, run in enumerate(missing[: arguments.limit], start=1):
        began = time.monotonic()
        print(f"run {number} of {len(missing)}: {run.folder}", flush=True)
        do(run, arguments.dataset.resolve(), out, arguments.results)
        dsc = read_scores(arguments.results / "runs" / run.folder / "scores_1.csv").mean()
        print(f"{run.folder}: DSC {dsc:.4f}, {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
