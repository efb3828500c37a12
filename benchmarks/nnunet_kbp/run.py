"""nnU-Net v2 and flarecps, trained on the same labelled scans of kbp for the same number of seen patches.

    export FLARECPS_PEER_PYTHON=.peers/bin/python
    python benchmarks/nnunet_kbp/run.py DATASET OUT [--methods equal-network supervised] [--steps 2000 --batch 2]

DATASET is the folder with splits.json. Every stage runs on one thread under `flarecps efficiency` and is left out when
its result stands, so an interrupted run goes on (a training from its last checkpoint; its time is then that of the last
part only, which the table says). OUT/results.csv and OUT/results.md are the table; OUT/METHOD/ holds the rest.

Methods: `planned` is nnU-Net as it plans by itself; `equal-patch` has our patch and batch, with the network nnU-Net
builds for that patch; `equal-network` has our network's features and strides, too; `equal-recipe` also Dice over the
batch, our share of forced patches, learning rate and momentum. `supervised` and `cps` are ours: trainings of kbp
(configs/studies/kbp.yaml) under the same meter.
`--pace planned equal-patch` times a few steps of variants that are too slow to train here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml
from table import write_table

from flarecps.atomic import write_json
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.layouts import link_cases
from flarecps.errors import FlarecpsError
from flarecps.experiments.runner import FLARECPS, run_experiment
from flarecps.experiments.stages import Stage, command_stage, fit_stage, last_checkpoint, store_stages
from flarecps.experiments.study.stages import SEEDS_APART

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
PEERS = ("planned", "equal-patch", "equal-network", "equal-recipe")
OURS = {"supervised": "kbp_3d_supervised.yaml", "cps": "kbp_3d.yaml"}
DATASET = "Dataset001_kbp"  # as peer.py's
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")
TRAINED = "trained.json"  # of a method's folder: what was trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="*", choices=[*PEERS, *OURS], default=["equal-network", "equal-recipe"])
    parser.add_argument("--pace", nargs="*", choices=PEERS, default=["planned", "equal-patch"])
    parser.add_argument("--segment", nargs="+", choices=["plain", "mirrored"], default=["plain", "mirrored"],
                        help="nnU-Net's test time: without mirroring, as ours; with its 8 mirrors")  # fmt: skip
    parser.add_argument("--split", default="10_labelled")
    parser.add_argument("--steps", type=int, default=2000, help="of ours")
    parser.add_argument("--batch", type=int, default=2, help="labelled patches a step of ours")
    parser.add_argument("--steps-per-epoch", type=int, default=50)
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 32, 32], help="voxels: slice, row, column")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.dataset, options.out = options.dataset.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.update({**ONE_THREAD, "WANDB_MODE": "disabled"})
    run_experiment(stages_of(options), options.out / "stages")
    print(f"written: {options.out / 'results.md'}, results.csv")


def stages_of(options: argparse.Namespace) -> list[Stage]:
    """What is needed of nnU-Net's preparation, paces and trainings; the table."""
    found: list[Stage] = []
    if {*options.methods, *options.pace} & {*PEERS}:
        done = options.out / "nnunet" / "prepared"
        found = [Stage("prepare", (), (done,), action=partial(prepare_peer, options, done), is_finished=done.is_file,
                       description=f"{options.split} by nnU-Net, patch {options.patch}")]  # fmt: skip
    for variant in options.pace:
        words = ["pace", options.out / "nnunet", variant, "--patches", options.steps * options.batch]
        words += ["--batch", options.batch]
        found.append(peer_stage(f"pace_{variant}", words, options.out / variant / "pace.json", options))
    for method in options.methods:
        found += our_stages(method, options) if method in OURS else peer_stages(method, options)
    table = Stage("table", action=partial(write_table, options.out), always=True, description="results.md, results.csv")
    return [*found, table]


def prepare_peer(options: argparse.Namespace, done: Path) -> None:
    """The labelled scans as a raw data set of links, planned and preprocessed by nnU-Net."""
    raw = options.out / "nnunet" / "raw" / DATASET
    labelled = read_catalogue(options.dataset, options.split).labelled
    link_cases(labelled, raw / "imagesTr", raw / "labelsTr")
    described = json.loads((options.dataset / "dataset.json").read_text())
    kept = {key: described[key] for key in ("channel_names", "labels", "file_ending")}
    write_json(raw / "dataset.json", kept | {"numTraining": len(labelled)})
    network = our_config("cps")["model"]["topology"]
    words = ["prepare", options.out / "nnunet", "--patch", *options.patch, "--features", *network["features"]]
    ask([*peer(), *words])
    done.touch()


def peer_stages(variant: str, options: argparse.Namespace) -> list[Stage]:
    """Train one of nnU-Net's variants, segment with and without mirroring, score."""
    folder, optimiser = options.out / variant, our_config("cps")["model"]["optimizer"]["init_args"]
    words = ["train", options.out / "nnunet", variant, "--patches", options.steps * options.batch]
    words += ["--batch", options.batch, "--steps-per-epoch", options.steps_per_epoch, "--seed", options.seed]
    words += ["--foreground", our_config("cps")["data"]["foreground_share"], "--lr", optimiser["lr"]]
    words += ["--momentum", optimiser["momentum"]]
    found = [peer_stage(f"train_{variant}", words, folder / TRAINED, options, metered("training", folder))]
    for name in options.segment:
        if (variant, name) != ("equal-recipe", "mirrored"):  # trained without
            words = ["predict", options.out / "nnunet", variant, options.dataset / "imagesTs", folder / name]
            words += ["--no-mirroring"] if name == "plain" else []
            found += segment_and_score(variant, name, [*peer(), *words], f"train_{variant}", options)
    return found


def peer_stage(
    name: str, words: list, output: Path, options: argparse.Namespace, meter: Sequence[object] = ()
) -> Stage:
    """An action of peer.py that ends by printing JSON, which is kept in ``output``."""

    def act() -> None:
        output.parent.mkdir(exist_ok=True)
        write_json(output, json.loads(ask([*(FLARECPS if meter else ()), *meter, *peer(), *words]).splitlines()[-1]))

    said = " ".join(map(str, words)).replace(str(options.out), "OUT")
    return Stage(name, (), (output,), ("prepare",), action=act, description=f"peer.py {said}", protected=True,
                 is_finished=output.is_file)  # fmt: skip


def our_stages(method: str, options: argparse.Namespace) -> list[Stage]:
    """Train one of our configs for as many steps, segment by sibling 1 without mirroring, score."""
    store, folder, config = options.out / "store", options.out / method, our_config(method)
    run = folder / "run"
    epochs = options.steps // options.steps_per_epoch
    if config["trainer"]["max_epochs"] != epochs:
        raise SystemExit(f"{OURS[method]} is a recipe of {config['trainer']['max_epochs']} epochs, not of {epochs}")
    words = ["fit", "--config", CONFIGS / OURS[method], "--data.store", store, "--data.split", options.split]
    words += ["--trainer.default_root_dir", run, "--seed_everything", options.seed, "--data.seed", options.seed]
    words += ["--model.initial_seed", SEEDS_APART * options.seed]
    words += ["--data.global_batch.labelled", options.batch, "--trainer.enable_progress_bar", "false"]
    words += ["--data.iterations_per_epoch", options.steps_per_epoch, "--trainer.accelerator", "cpu"]
    words += ["--data.patch_voxels", str(options.patch)]
    last, trained = last_checkpoint(run), folder / TRAINED
    segment = [*FLARECPS, "segment", last, options.dataset / "imagesTs", folder / "plain", "--device", "cpu"]
    return [
        *store_stages(options.dataset, options.out / "plan.json", store, ("--split", options.split), ["--no-progress"]),
        fit_stage(f"train_{method}", [*metered("training", folder), *FLARECPS, *words], CONFIGS / OURS[method], run,
                  "preprocess"),
        Stage(f"facts_{method}", (), (trained,), (f"train_{method}",), description=f"{TRAINED} of {method}",
              action=lambda: write_json(trained, facts(method, last, options)), is_finished=trained.is_file),
        *segment_and_score(method, "plain", segment, f"train_{method}", options),
    ]  # fmt: skip


def our_config(method: str) -> dict:
    """The content of our config."""
    content: dict = yaml.safe_load((CONFIGS / OURS[method]).read_text())
    return content


def facts(method: str, checkpoint: Path, options: argparse.Namespace) -> dict:
    """What was trained, as peer.py says it of nnU-Net."""
    from flarecps.checkpoint import read_checkpoint

    model, config = read_checkpoint(checkpoint), our_config(method)
    patches, unlabelled = options.steps * options.batch, 0
    if method == "cps":  # unlabelled patches are used from the first epoch with λ > 0, the one after the ramp's start
        ramp = config["model"]["method"]["init_args"]["ramp"]
        batch = config["data"]["global_batch"]["unlabelled"]
        unlabelled = (options.steps - (ramp["start"] + 1) * options.steps_per_epoch) * batch
    voxels = (patches + unlabelled) * options.patch[0] * options.patch[1] * options.patch[2]
    return {
        "variant": method,
        "patch": options.patch,
        "batch": options.batch,
        "batch_dice": True,
        "features": config["model"]["topology"]["features"],
        "parameters": sum(value.numel() for value in model.siblings[0].parameters()),
        "patches_seen": patches,
        "unlabelled_patches_seen": unlabelled,
        "voxels_seen": voxels,
    }


def segment_and_score(method: str, name: str, words: list, after: str, options: argparse.Namespace) -> list[Stage]:
    """METHOD/NAME: label maps of the test scans; METHOD/scores_NAME: their scores by the strict protocol."""
    folder, dataset = options.out / method, options.dataset
    meter, scores = folder / "efficiency" / "cases" / f"{name}.json", folder / f"scores_{name}"
    scoring = ("score", folder / name, dataset / "labelsTs", "--protocol", "strict", "--labels", dataset,
               "--out", scores, "--workers", 1)  # fmt: skip
    segment, score = f"segment_{method}_{name}", f"score_{method}_{name}"
    return [
        command_stage(segment, [*metered(name, folder), *words], meter, *([after] if after else []),
                      is_finished=meter.is_file),
        command_stage(score, scoring, scores / "scores.csv", segment),
    ]  # fmt: skip


def metered(name: str, folder: Path) -> list:
    """The words of flarecps before a command that is measured."""
    return ["efficiency", "--name", name, "--out", folder / "efficiency", "--"]


def peer() -> list:
    """The words before an action of peer.py."""
    python = os.environ.get("FLARECPS_PEER_PYTHON")
    if not python:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    return [python, HERE / "peer.py"]


def ask(words: list) -> str:
    """What a command printed. Raises FlarecpsError when it fails."""
    done = subprocess.run([*map(str, words)], check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise FlarecpsError(f"{words[0]} … {words[-1]}: exit code {done.returncode}: {done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
