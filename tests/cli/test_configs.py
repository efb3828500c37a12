"""Every config in ``configs/``: driven through the real command line, equal to its control, and what the paper says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stores import CONFIGS, TinyStores, fit

from flarecps.checkpoint import load_plain, read_checkpoint
from flarecps.networks import PlainUNet
from flarecps.networks.cost import network_cost

ALL = sorted(path.name for path in CONFIGS.glob("*.yaml"))
CONTROLS = [name for name in ALL if name.endswith("_supervised.yaml")]
METHODS = [name for name in ALL if name not in CONTROLS]
SMALL_TOPOLOGY = {
    2: "{features: [4, 8], strides: [[1, 1], [2, 2]], kernels: [[3, 3], [3, 3]]}",
    3: "{features: [4, 8], strides: [[1, 1, 1], [2, 2, 2]], kernels: [[3, 3, 3], [3, 3, 3]]}",
}
PAPER = [name for name in ALL if name.startswith("flare22_")]
MILLIONS, GMACS = {"2d": 41.29, "3d": 30.79}, {"2d": 65.55, "3d": 585.43}  # the paper's Table 2


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


def overrides(name: str) -> list[str]:
    """What must differ on a tiny store and a CPU; everything else is the config's own."""
    crossed = name in METHODS
    words = ["--model.method.init_args.ramp.start", "0"] if crossed else []  # so that epoch 2 has pseudo-labels
    if name in PAPER or name.startswith("la"):  # too large for a CPU
        words += ["--model.topology", SMALL_TOPOLOGY[2 if "_2d" in name else 3]]
    if name in PAPER:  # first validated after 50 epochs
        words += ["--trainer.check_val_every_n_epoch", "1"]
        words += ["--trainer.strategy", "auto", "--data.workers", "0"]  # of one process
    if name.startswith(("kbp", "la")):
        words += ["--data.split", "default"]
    return words


@pytest.mark.parametrize("name", ALL)
def test_every_config_trains_at_the_command_line(name: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    run = fit(name, tiny_stores, tmp_path / "run", *overrides(name))
    model = read_checkpoint(run / "checkpoints" / "last.ckpt")
    crossed = name in METHODS
    assert (len(model.siblings), model.epoch) == (1 + crossed, 2)
    assert model.plan.dimensions == (2 if "_2d" in name else 3)
    assert all(parameter.isfinite().all() for sibling in model.siblings for parameter in sibling.parameters())
    with (run / "csv" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["train/loss"]][-1]
    assert (float(last["train/lambda"]) > 0) == (float(last["train/loss_cps/sibling_1"]) != 0) == crossed
    assert (run / "checkpoints" / "best.ckpt").exists() == (content(name)["data"]["fold"] != "all")
    if name in PAPER:
        check_paper_optimisation(load_plain(run / "checkpoints" / "last.ckpt"), siblings=1 + crossed)


def check_paper_optimisation(checkpoint: dict[str, Any], siblings: int) -> None:
    """What the optimisers and schedulers really were (facts: SGD, Nesterov 0.99, a plateau in absolute steps)."""
    assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == siblings
    for state, scheduler in zip(checkpoint["optimizer_states"], checkpoint["lr_schedulers"], strict=True):
        (group,) = state["param_groups"]
        wanted = {"lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
        assert {key: group[key] for key in wanted} == wanted
        plateau = {"factor": 0.2, "patience": 30, "threshold": 1e-3, "threshold_mode": "abs", "mode": "min"}
        assert {key: scheduler[key] for key in plateau} == plateau


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_control(name: str) -> None:
    assert name.replace(".yaml", "_supervised.yaml") in CONTROLS


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_differs_in_the_method_alone(name: str) -> None:
    """Equal but for the method's class and ramp, the unlabelled patches that it does not use, and the run's folder."""
    control, method = content(name), content(name.replace("_supervised", ""))
    assert method["model"]["method"].pop("class_path") == "flarecps.methods.CrossPseudoSupervision"
    assert control["model"]["method"].pop("class_path") == "flarecps.methods.Supervised"
    del method["model"]["method"]["init_args"]["ramp"]
    control["model"]["method"].setdefault("init_args", {})
    assert "unlabelled" not in method["data"]
    assert control["data"].pop("unlabelled") is False
    folders = [one["trainer"].pop("default_root_dir") for one in (method, control)]
    assert folders[1] == folders[0] + "_supervised"
    assert control == method


def test_every_run_has_a_folder_of_its_own() -> None:
    folders = [content(name)["trainer"]["default_root_dir"] for name in ALL]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", PAPER)
def test_flare22_configs_are_the_papers(name: str) -> None:
    """Table 2 and section 2.2, and for what they leave open the authors' code (ramp of 500 epochs)."""
    config = content(name)
    kind = name.split("_")[1].removesuffix(".yaml")
    topology, patch = config["model"]["topology"], config["data"]["patch_voxels"]
    with torch.device("meta"):
        network = PlainUNet(1, 14, topology["features"], topology["strides"], topology["kernels"])
    cost = network_cost(network, 1, patch)
    assert round(cost.parameters / 1e6, 2) == MILLIONS[kind]
    assert round(cost.macs_table_2 / 1e9, 2) == GMACS[kind]
    assert patch == ([512, 512] if kind == "2d" else [112, 160, 128])
    batch = {"2d": 12, "3d": 2, "3d_8gpu": 16}[name.removeprefix("flare22_").split("_supervised")[0].split(".")[0]]
    assert config["trainer"]["devices"] == (8 if batch == 16 else 1)
    assert config["data"]["global_batch"] == {"labelled": batch, "unlabelled": batch}
    assert (config["trainer"]["max_epochs"], config["data"]["iterations_per_epoch"]) == (1000, 250)
    method = config["model"]["method"]
    if method["class_path"] == "flarecps.methods.CrossPseudoSupervision":
        assert method["init_args"].pop("ramp") == {"final": 0.5, "length": 500, "start": 0}
    loss = {"class_path": "flarecps.losses.DiceCrossEntropy", "init_args": {"batch_dice": True}}
    assert method["init_args"] == {"loss": loss}, "nothing else differs from the paper's method"
    assert config["model"]["clip_norm"] == 12
    assert config["data"]["max_unlabelled"] == 1000


@pytest.mark.parametrize("name", [name for name in METHODS if name in PAPER or name.startswith("la")])
def test_the_comment_states_the_patches_that_a_training_sees(name: str) -> None:
    text, config = (CONFIGS / name).read_text(), content(name)
    steps = config["trainer"]["max_epochs"] * config["data"]["iterations_per_epoch"]
    assert f"{steps * config['data']['global_batch']['labelled']:,} labelled" in " ".join(text.split())


def test_left_atrium_config_is_the_literatures_protocol() -> None:
    """The protocol of UA-MT and its successors: 112×112×80, 2 + 2 patches, 6000 steps, 8 of 80 scans labelled."""
    config = content("la_3d.yaml")
    assert sorted(config["data"]["patch_voxels"]) == [80, 112, 112]
    assert config["data"]["patch_voxels"][0] == 80, "the slice axis is the short one"
    assert config["data"]["global_batch"] == {"labelled": 2, "unlabelled": 2}
    assert config["trainer"]["max_epochs"] * config["data"]["iterations_per_epoch"] == 6000
    assert (config["data"]["split"], config["data"]["fold"]) == ("8_labelled", "all")
