"""CPS against its supervised control on real head-and-neck CT: every run of ``protocol.py``, one after another.

    python benchmarks/kbp/run.py DATASET OUT [--screen] [--runs 10_labelled/*] [--limit 3] [--results FOLDER]

DATASET is OpenKBP in nnU-Net v2's layout with splits.json. OUT receives stores, checkpoints and segmentations; the
small files that the tables are made of (scores, curves, a record of the run) go to RESULTS/runs as soon as a run is
done. A run whose record stands there is left out and an interrupted training continues, so this command may be stopped
at any time and given again. ``table.py`` makes the tables.

Nothing is chosen on test scans: fold all, the last checkpoint, the protocol's settings for all. What had to be chosen,
``--screen`` compares on training scans whose labels are withheld and which no training sees (OUT/screen,
RESULTS/screen).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from protocol import ALL_LABELS, CPS, SCREEN, SCREEN_SCANS, Run, ordered_runs, screen_runs

from flarecps import __version__
from flarecps.atomic import write_json
from flarecps.datasets.layouts import Case, link_cases
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.runner import FLARECPS, processor_name, run_experiment
from flarecps.experiments.stages import (
    Stage,
    command_stage,
    fit_stage,
    last_checkpoint,
    scoring_stages,
    store_stages,
    training_is_finished,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kbp"
SNAPSHOT_EVERY = 5  # epochs; kept of CPS from seed 0, for pseudo_labels.py
RECORDS = "stages"  # folder of OUT
SEEDS = 3  # of an arm; the last one's neighbour is the first
SEEDS_APART = 10  # initial seeds of two runs: a run's siblings take two


def stages_of(run: Run, dataset: Path, out: Path) -> list[Stage]:
    """Plan and store, then the run's training, and the test scans judged by each sibling that counts.

    One grid serves all splits: the plan is made for ten labelled scans; what it says of spacing and intensity is used,
    patch and network are the config's.
    """
    folder, name, intensity = out / "runs" / run.folder, run.folder.replace("/", "."), run.arm.intensity
    store = out / f"store_{intensity}"
    found = store_stages(dataset, out / f"plan_{intensity}.json", store,
                         ("--split", "10_labelled", "--intensity", intensity), suffix=f"_{intensity}")  # fmt: skip
    more: tuple[str, ...] = ()
    if run.arm.teachers:
        teachers = [replace(run, arm=SCREEN[run.arm.teachers], seed=(run.seed + step) % SEEDS) for step in (0, 1)]
        found += [training_stage(one, store, out) for one in teachers]
        labels = folder.with_name(f"{folder.name}_pseudo_labels")
        checkpoints = [last_checkpoint(out / "runs" / one.folder) for one in teachers]
        words = ("pseudo-label", *checkpoints, store, labels, "--split", f"{run.labels}_labelled", "--largest", "all")
        found.append(command_stage(f"label_{name}", words, labels, *(stage.name for stage in found[-2:])))
        more = ("--data.pseudo_labels", str(labels))
    found.append(training_stage(run, store, out, more, found[-1].name))
    for sibling in run.arm.siblings:
        found += scoring_stages(f"{name}.{sibling}", [last_checkpoint(folder)], dataset,
                                folder / f"segmentations_{sibling}", folder / f"scores_{sibling}", f"train_{name}",
                                ("--sibling", sibling), ("--workers", "1"))  # fmt: skip
    return found


def training_stage(run: Run, store: Path, out: Path, more: Sequence[str] = (), after: str = "") -> Stage:
    """The run's training, metered, after the store or another stage."""
    folder = out / "runs" / run.folder
    meter = ("efficiency", "--name", "training", "--interval", "1", "--out", folder / "efficiency", "--", *FLARECPS)
    return fit_stage(f"train_{run.folder.replace('/', '.')}", (*meter, *fit_words(run, store, folder), *more),
                     ROOT / "configs" / run.arm.config, folder, after or f"preprocess_{run.arm.intensity}")  # fmt: skip


def fit_words(run: Run, store: Path, folder: Path) -> list[str]:
    """The training's command."""
    words = ["fit", "--config", str(ROOT / "configs" / run.arm.config)]
    words += ["--data.store", str(store), "--trainer.default_root_dir", str(folder)]
    words += ["--data.split", f"{run.labels}_labelled", "--seed_everything", str(run.seed)]
    words += ["--data.seed", str(run.seed), "--model.initial_seed", str(run.seed * SEEDS_APART), *run.arm.overrides]
    if run.labels == ALL_LABELS:
        words += ["--data.unlabelled", "false"]
    if run.arm == CPS and run.seed == 0:
        words += snapshot_words(folder)
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


def averaged_controls(run: Run, dataset: Path, out: Path, results: Path) -> None:
    """Two controls of neighbouring seeds averaged: what stands beside the average of two siblings."""
    arm = (out / "runs" / run.folder).parent
    trained = [folder for folder in sorted(arm.glob("seed_*")) if training_is_finished(folder)]
    pairs = list(zip(trained, trained[1:] + trained[:1], strict=True))
    for first, second in pairs if len(pairs) > 2 else pairs[:-1]:
        two = Path("runs", arm.parent.name, f"{arm.name}_two", first.name)
        if (results / two / "scores_1.csv").is_file():
            continue
        checkpoints = [last_checkpoint(folder) for folder in (first, second)]
        stages = scoring_stages(".".join(two.parts[1:]), checkpoints, dataset, out / two / "segmentations_1",
                                out / two / "scores_1", score_words=("--workers", "1"))  # fmt: skip
        run_experiment(stages, out / RECORDS)
        keep_scores(out / two, results / two)


def keep_scores(folder: Path, kept: Path) -> None:
    """The tables of a run's scores, as scores_SIBLING.csv."""
    kept.mkdir(parents=True, exist_ok=True)
    for table in folder.glob("scores_*/scores.csv"):
        shutil.copyfile(table, kept / f"{table.parent.name}.csv")


def keep_record(
    run: Run, folder: Path, kept: Path, training: Stage, trained: dict[str, Any], places: dict[Path, str]
) -> None:
    """The curves, and a record of command, version, machine and cost; the record comes last: it says "done"."""
    shutil.copyfile(folder / "csv" / "metrics.csv", kept / "metrics.csv")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    meter = json.loads((folder / "efficiency" / "cases" / "training.json").read_text(encoding="utf-8"))
    sessions = environment["sessions"]  # one that was killed, or has no record, was of unknown length
    counted = all(session["finished"] for session in sessions) and len(trained.get("starts", [])) >= len(sessions)
    command = " ".join(["flarecps", *training.words[training.words.index("fit") :]])
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
        "processor": f"{processor_name()}, {os.cpu_count()} cores, no GPU",
        "threads": torch.get_num_threads(),
        "sessions": len(sessions),
        "training_cpu_minutes": round(trained["cpu_s"] / 60, 1) if counted else None,
        "peak_ram_mb": round(meter["figures"]["tree_ram_mb_max"]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    (kept / "run.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def screen_dataset(dataset: Path, folder: Path) -> Path:
    """Links to the training scans; the last unlabelled ones of ``splits.json``, with labels, are its test scans."""
    split = json.loads((dataset / "splits.json").read_text(encoding="utf-8"))["10_labelled"]
    unlabelled = sorted(split["unlabelled"])
    seen, withheld = unlabelled[:-SCREEN_SCANS], unlabelled[-SCREEN_SCANS:]
    for names, images, labels in (
        (split["labelled"] + seen, "imagesTr", "labelsTr"),
        (withheld, "imagesTs", "labelsTs"),
    ):
        cases = [Case(name, "labelled", (dataset / "imagesTr" / f"{name}_0000.nii.gz",),
                      dataset / "labelsTr" / f"{name}.nii.gz") for name in names]  # fmt: skip
        link_cases(cases, folder / images, folder / labels)
    shutil.copyfile(dataset / "dataset.json", folder / "dataset.json")
    found = {"10_labelled": {"labelled": split["labelled"], "unlabelled": seen, "test": withheld}}
    write_json(folder / "splits.json", found)
    return folder


def do(run: Run, dataset: Path, out: Path, results: Path) -> None:
    """One run from store to record."""
    folder, kept = out / "runs" / run.folder, results / "runs" / run.folder
    records = run_experiment(stages_of(run, dataset, out), out / RECORDS)
    keep_scores(folder, kept)
    training = records.stages[f"train_{run.folder.replace('/', '.')}"]
    places = {out: "OUT", dataset: "DATASET", ROOT: "."}
    keep_record(run, folder, kept, training, records.read(training), places)
    if run.arm.name.startswith("control"):
        averaged_controls(run, dataset, out, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--screen", action="store_true", help="the runs that settings are chosen by")
    parser.add_argument("--runs", default="*", help="only those that match, such as '10_labelled/*/seed_0'")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--limit", type=int, help="stop after so many runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "disabled")
    out, results, dataset = arguments.out.resolve(), arguments.results, arguments.dataset.resolve()
    runs = ordered_runs
    if arguments.screen:
        out, results, runs = out / "screen", results / "screen", screen_runs
        dataset = screen_dataset(dataset, out / "dataset")
    out.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in runs(arguments.seeds) if fnmatch.fnmatch(run.folder, arguments.runs)]
    missing = [run for run in wanted if not (results / "runs" / run.folder / "run.json").is_file()]
    for number, run in enumerate(missing[: arguments.limit], start=1):
        began = time.monotonic()
        print(f"run {number} of {len(missing)}: {run.folder}", flush=True)
        do(run, dataset, out, results)
        dsc = read_scores(results / "runs" / run.folder / "scores_1.csv").mean()
        print(f"{run.folder}: DSC {dsc:.4f}, {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
