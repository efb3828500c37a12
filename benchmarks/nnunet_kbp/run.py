"""nnU-Net v2 and flarecps, trained on the same labelled scans of kbp for the same number of seen patches.

    export FLARECPS_PEER_PYTHON=.peers/bin/python
    python benchmarks/nnunet_kbp/run.py DATASET OUT [--methods equal-network supervised] [--steps 2000 --batch 2]

DATASET is the folder with splits.json. Every stage runs on one thread under `flarecps efficiency` and is left out when
its result stands, so an interrupted run goes on (a training from its last checkpoint; its time is then that of the last
part only, which the table says). OUT/results.csv and OUT/results.md are the table; OUT/METHOD/ holds the rest.

Methods: `planned` is nnU-Net as it plans by itself; `equal-patch` has our patch and batch, with the network nnU-Net
builds for that patch; `equal-network` has our network's features and strides, too; `equal-recipe` also Dice over the
batch, our share of forced patches, learning rate and momentum. `supervised` and `cps` are ours, trained here, or taken
from elsewhere by `--ours supervised=RUN cps=RUN`: their training's time and memory are then those that
benchmarks/kbp/run.py metered, or the wall time of the run's own record.
`--pace planned equal-patch` times a few steps of variants that are too slow to train here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import yaml
from table import write_table

from flarecps.atomic import write_json
from flarecps.datasets.catalogue import read_catalogue

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
PEERS = ("planned", "equal-patch", "equal-network", "equal-recipe")
OURS = {"supervised": "kbp_3d_supervised.yaml", "cps": "kbp_3d.yaml"}
DATASET = "Dataset001_kbp"  # as peer.py's
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")
FLARECPS = (sys.executable, "-m", "flarecps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="*", choices=[*PEERS, *OURS], default=["equal-network", "equal-recipe"])
    parser.add_argument("--ours", nargs="*", default=[], help="METHOD=RUN: finished runs of supervised or cps")
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
    if {*options.methods, *options.pace} & {*PEERS}:
        prepare_peer(options)
    for variant in options.pace:
        pace(variant, options)
    for method in options.methods:
        train_ours(method, options) if method in OURS else train_peer(method, options)
    for word in options.ours:
        method, _, folder = word.partition("=")
        take_ours(method, Path(folder).resolve(), options)
    write_table(options.out)
    print(f"written: {options.out / 'results.md'}, results.csv")


def prepare_peer(options: argparse.Namespace) -> None:
    """The labelled scans as a raw data set of links, planned and preprocessed by nnU-Net."""
    raw = options.out / "nnunet" / "raw" / DATASET
    done = options.out / "nnunet" / "prepared"
    if done.is_file():
        return
    labelled = read_catalogue(options.dataset, options.split).labelled
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in labelled:
        assert case.labels is not None  # labelled
        for target, source in (("imagesTr", case.images[0]), ("labelsTr", case.labels)):
            link = raw / target / source.name
            if not link.exists():
                link.symlink_to(source)
    described = json.loads((options.dataset / "dataset.json").read_text())
    kept = {key: described[key] for key in ("channel_names", "labels", "file_ending")}
    write_json(raw / "dataset.json", kept | {"numTraining": len(labelled)})
    network = our_config("cps")["model"]["topology"]
    words = ["prepare", options.out / "nnunet", "--patch", *options.patch, "--features", *network["features"]]
    run([*peer(), *words])
    done.touch()


def pace(variant: str, options: argparse.Namespace) -> None:
    """OUT/VARIANT/pace.json: seconds of a step, and the hours it would take."""
    target = options.out / variant / "pace.json"
    if target.is_file():
        return
    target.parent.mkdir(exist_ok=True)
    words = ["pace", options.out / "nnunet", variant, "--patches", options.steps * options.batch]
    said = run([*peer(), *words, "--batch", options.batch], capture=True)
    write_json(target, json.loads(said.splitlines()[-1]))


def train_peer(variant: str, options: argparse.Namespace) -> None:
    """Train one of nnU-Net's variants, segment with and without mirroring, score."""
    folder = options.out / variant
    if not (folder / "trained.json").is_file():
        words = ["train", options.out / "nnunet", variant, "--patches", options.steps * options.batch]
        words += ["--batch", options.batch, "--steps-per-epoch", options.steps_per_epoch, "--seed", options.seed]
        ours = our_config("cps")
        optimiser = ours["model"]["optimizer"]["init_args"]
        words += ["--foreground", ours["data"]["foreground_share"], "--lr", optimiser["lr"]]
        words += ["--momentum", optimiser["momentum"]]
        said = run([*metered("training", folder), *peer(), *words], capture=True)
        write_json(folder / "trained.json", json.loads(said.splitlines()[-1]))
    names = [name for name in options.segment if (variant, name) != ("equal-recipe", "mirrored")]  # trained without
    for name in names:
        predictions, more = folder / name, ["--no-mirroring"] if name == "plain" else []
        words = ["predict", options.out / "nnunet", variant, options.dataset / "imagesTs", predictions, *more]
        segment_and_score(folder, name, [*peer(), *words], options)


def train_ours(method: str, options: argparse.Namespace) -> None:
    """Train one of our configs for as many steps, segment without mirroring, score."""
    plan, store = options.out / "plan.json", options.out / "store"
    if not plan.is_file():
        run([*FLARECPS, "plan", options.dataset, "--split", options.split, "--out", plan, "--no-progress"])
    run([*FLARECPS, "preprocess", options.dataset, plan, "--out", store, "--no-progress"])
    folder = options.out / method
    config = our_config(method)
    epochs = options.steps // options.steps_per_epoch
    if config["trainer"]["max_epochs"] != epochs:
        raise SystemExit(f"{OURS[method]} is a recipe of {config['trainer']['max_epochs']} epochs, not of {epochs}")
    last = folder / "run" / "checkpoints" / "last.ckpt"
    if not (folder / "trained.json").is_file():
        words = ["fit", "--config", CONFIGS / OURS[method], "--data.store", store, "--data.split", options.split]
        words += ["--trainer.default_root_dir", folder / "run", "--seed_everything", options.seed]
        words += ["--data.global_batch.labelled", options.batch, "--trainer.enable_progress_bar", "false"]
        words += ["--data.iterations_per_epoch", options.steps_per_epoch, "--trainer.accelerator", "cpu"]
        words += ["--data.patch_voxels", str(options.patch)]
        words += ["--ckpt_path", "last"] if last.is_file() else []
        run([*metered("training", folder), *FLARECPS, *words])
        write_json(folder / "trained.json", facts(method, last, options))
    segment_ours(folder, last, options)


def take_ours(method: str, run_folder: Path, options: argparse.Namespace) -> None:
    """A run of ours that was trained elsewhere: its meter or else its own record, segmentation and scores as here."""
    folder, last = options.out / method, run_folder / "checkpoints" / "last.ckpt"
    folder.mkdir(exist_ok=True)
    known, meter = facts(method, last, options), Path("efficiency", "cases", "training.json")
    if (run_folder / meter).is_file():
        (folder / meter).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_folder / meter, folder / meter)
    else:
        written = json.loads((run_folder / "environment.json").read_text())
        seconds = datetime.fromisoformat(written["finished"]) - datetime.fromisoformat(written["started"])
        known["wall_s"] = seconds.total_seconds()
    write_json(folder / "trained.json", known)
    segment_ours(folder, last, options)


def segment_ours(folder: Path, checkpoint: Path, options: argparse.Namespace) -> None:
    """Label maps by sibling 1 without mirroring, as in benchmarks/kbp."""
    words = ["segment", checkpoint, options.dataset / "imagesTs", folder / "plain", "--device", "cpu"]
    segment_and_score(folder, "plain", [*FLARECPS, *words], options)


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


def segment_and_score(folder: Path, name: str, words: list, options: argparse.Namespace) -> None:
    """FOLDER/NAME: label maps of the test scans; FOLDER/scores_NAME: their scores by the strict protocol."""
    if not (folder / "efficiency" / "cases" / f"{name}.json").is_file():
        run([*metered(name, folder), *words])
    scores = ["score", folder / name, options.dataset / "labelsTs", "--protocol", "strict", "--labels", options.dataset]
    run([*FLARECPS, *scores, "--out", folder / f"scores_{name}", "--workers", 1])


def metered(name: str, folder: Path) -> list:
    """The words before a command that is measured."""
    return [*FLARECPS, "efficiency", "--name", name, "--out", folder / "efficiency", "--"]


def peer() -> list:
    """The words before an action of peer.py."""
    python = os.environ.get("FLARECPS_PEER_PYTHON")
    if not python:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    return [python, HERE / "peer.py"]


def run(words: list, capture: bool = False) -> str:
    """Run a command on one thread; what it printed, when captured. Ends this program when it fails."""
    print("$", " ".join(map(str, words)), flush=True)
    environment = {**os.environ, **ONE_THREAD, "WANDB_MODE": "disabled"}
    done = subprocess.run([*map(str, words)], env=environment, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {done.stdout or ''}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
