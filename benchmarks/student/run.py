"""A student for deployment beside its teachers: scores, time and memory on real head-and-neck CT.

    python benchmarks/student/run.py DATASET TEACHER_STORE OUT --teachers CHECKPOINT CHECKPOINT

DATASET is OpenKBP in nnU-Net v2's layout, TEACHER_STORE the store that the teachers were trained from. Everything is
judged on the test scans of DATASET: for choosing, those of the kbp experiment's screen (OUT/screen/dataset there),
training scans whose labels are withheld. Every stage is a flarecps command that is left out when its result stands;
a training goes on. OUT/table.md holds the table, OUT/plan.json what was chosen and why. With ``--confirm DATASET`` the
models of OUT are judged on the test scans of that dataset instead, into OUT/confirmed.
"""

from __future__ import annotations

import argparse
import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.checkpoint import read_checkpoint
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.runner import FLARECPS, run_experiment
from flarecps.experiments.stages import Stage, command_stage, fit_stage, last_checkpoint
from flarecps.reporting.tables import markdown_table

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "kbp_3d_supervised.yaml"
SPACING = "[3.03, 4.73, 4.73]"  # 1.21 times the teachers', whatever this machine's speed is while it is planned
SELF_TRAINING = (
    "--model.method=flarecps.methods.SelfTraining",
    "--model.method.init_args.loss=flarecps.losses.DiceCrossEntropy",
    "--model.method.init_args.loss.init_args.batch_dice=true",
    "--data.global_batch={labelled: 2, pseudo_labelled: 2}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("teacher_store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="checkpoints of one plan")
    parser.add_argument("--split", default="10_labelled")
    parser.add_argument("--max-seconds", default="60", help="for the largest scan, on this machine's CPU")
    parser.add_argument("--max-ram", default="1G")
    parser.add_argument("--spacing", default=SPACING, help="the student's grid; '' for what the limits ask for")
    parser.add_argument("--epochs", type=int, default=65, help="of 50 steps of 2 true and 2 pseudo-labelled patches")
    parser.add_argument("--fit-words", default="", help="more words for flarecps fit, in one word, to try things out")
    parser.add_argument("--confirm", type=Path, help="dataset on whose test scans what was trained is judged")
    parser.add_argument("--stages", nargs="+", help="only these, * and ? allowed")
    options = parser.parse_args()
    run_experiment(stages(options), options.out.resolve() / "stages", options.stages)


def stages(options: argparse.Namespace) -> list[Stage]:
    """The student's plan, store, labels and training; then every model, measured, and the table."""
    out, data = options.out.resolve(), options.dataset.resolve()
    teachers = [path.resolve() for path in options.teachers]
    plan, store, labels, run = (out / name for name in ("plan.json", "store", "labels", "run"))
    spacing = ("--spacing", options.spacing) if options.spacing else ()
    planning = ("plan", data, "--student", "--teacher", teachers[0], "--max-seconds", options.max_seconds, "--max-ram",
                options.max_ram, "--device", "cpu", "--patch", "[32,32,32]", "--split", options.split, *spacing,
                "--fingerprints", out / "fingerprints", "--out", plan)  # fmt: skip
    labelling = ("pseudo-label", *teachers, store, labels, "--teacher-store", options.teacher_store.resolve(),
                 "--split", options.split, "--largest", "all")  # fmt: skip
    found = [
        command_stage("plan", planning, plan),
        command_stage("preprocess", ("preprocess", data, plan, "--out", store), store, "plan"),
        command_stage("label", labelling, labels / "quality.csv", "preprocess"),
        Stage("config", (), (out / "config.yaml",), ("label",), action=partial(write_config, plan, out / "config.yaml"),
              description="config.yaml: that of the teachers, with the plan's network"),
    ]  # fmt: skip
    fitting = ("fit", "--config", CONFIG, "--config", out / "config.yaml", "--data.store", store, "--data.split",
               options.split, "--data.pseudo_labels", labels, "--trainer.default_root_dir", run, "--trainer.max_epochs",
               options.epochs, "--model.scheduler.init_args.total_iters", options.epochs, *SELF_TRAINING,
               *shlex.split(options.fit_words))  # fmt: skip
    found.append(fit_stage("train", fitting, CONFIG, run, "config"))
    models = {f"teacher_{number}": [path] for number, path in enumerate(teachers, 1)}
    models |= {"teachers_averaged": teachers, "student": [last_checkpoint(run)]}
    if options.confirm:
        found, data, out = [], options.confirm.resolve(), out / "confirmed"
    for name, checkpoints in models.items():
        after = () if options.confirm else ("train" if name == "student" else "plan",)
        found += judged(name, checkpoints, data, out / "models" / name, after)
    scored = tuple(f"score_{name}" for name in models)
    table = Stage("table", (), (out / "table.md",), scored, always=True, action=partial(write_table, out, models),
                  description="table.md: scores, time and memory")  # fmt: skip
    return [*found, table]


def judged(name: str, checkpoints: list[Path], data: Path, folder: Path, after: tuple[str, ...]) -> list[Stage]:
    """The test scans, one after another, under FLARE's meters; and their scores."""
    meter = ("efficiency", "--name", name, "--out", folder / "efficiency", "--", *FLARECPS)
    segment = (
        *meter,
        "segment",
        *checkpoints,
        data / "imagesTs",
        folder / "labels",
        "--sibling",
        "1",
        "--device",
        "cpu",
    )
    score = ("score", folder / "labels", data / "labelsTs", "--protocol", "strict", "--out", folder / "scores",
             "--workers", "1")  # fmt: skip
    return [
        command_stage(f"segment_{name}", segment, folder / "labels", *after),
        command_stage(f"score_{name}", score, folder / "scores" / "scores.csv", f"segment_{name}"),
    ]


def write_config(plan: Path, config: Path) -> None:
    """The plan's network, which the teachers' config would else replace by theirs."""
    topology = json.loads(plan.read_text(encoding="utf-8"))["topology"]
    write_text(config, json.dumps({"model": {"topology": topology}}) + "\n")


def write_table(out: Path, models: dict[str, list[Path]]) -> None:
    """A row for every model: size, grid, scores, and what segmenting the test scans took."""
    body = []
    for name, checkpoints in models.items():
        folder = out / "models" / name
        trained = read_checkpoint(checkpoints[0])
        parameters = sum(one.numel() for one in trained.siblings[0].parameters()) * len(checkpoints)
        scores = read_scores(folder / "scores" / "scores.csv")
        record = json.loads((folder / "efficiency" / "cases" / f"{name}.json").read_text(encoding="utf-8"))
        cost, cases = record["figures"], len(scores.cases)
        body.append([name.replace("_", " "), f"{parameters / 1e6:.3f} M",
                     "×".join(f"{edge:.3g}" for edge in trained.plan.spacing_mm),
                     *(f"{np.nanmean(scores.case_means(measure)):.4f}" for measure in ("dsc", "nsd")),
                     f"{cost['duration_s'] / cases:.2f}", f"{cost['tree_cpu_s'] / cases:.2f}",
                     f"{cost['tree_ram_mb_max']:.0f}", f"{cost['tree_ram_mb_s'] / cases:.0f}"])  # fmt: skip
    heading = [
        "model",
        "parameters",
        "mm",
        "DSC",
        "NSD",
        "s a scan",
        "CPU s a scan",
        "peak RAM, MB",
        "RAM area, MB·s a scan",
    ]
    write_text(out / "table.md", markdown_table(heading, body))


if __name__ == "__main__":
    main()
