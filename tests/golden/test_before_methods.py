"""A run from before methods were classes: its checkpoint is read, and its training goes on as it would have then.

The files in ``before_methods/`` were written by commit 9fccf2c, the last before ``model.method``: config.yaml and
last.ckpt by one epoch on the tiny phantom, losses.csv by the same training when it went on to three.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from runs import assert_identical
from stores import TinyStores

from flarecps.checkpoint import load_plain, read_checkpoint
from flarecps.cli.main import main

FORMER = Path(__file__).with_name("before_methods")
CHECKPOINT = FORMER / "last.ckpt"
RELATIVE = 1e-3  # what processors round differently grows so far: see test_golden_curve.py


def test_the_files_are_of_the_former_layout() -> None:
    content = load_plain(CHECKPOINT)
    assert "inference_networks" not in content["flarecps"]
    assert not any(name.startswith("method.") for name in content["state_dict"])
    model = yaml.safe_load((FORMER / "config.yaml").read_text())["model"]
    assert model["cross_pseudo_supervision"] is True
    assert "method" not in model


def test_it_segments_with_both_siblings(tiny_stores: TinyStores, tmp_path: Path) -> None:
    state = load_plain(CHECKPOINT)["state_dict"]
    siblings = read_checkpoint(CHECKPOINT).siblings
    assert len(siblings) == 2
    for number, sibling in enumerate(siblings):
        for name, weights in sibling.network.state_dict().items():
            assert torch.equal(weights, state[f"siblings.{number}.{name}"].to(weights.dtype)), name
    images, out = tiny_stores.dataset / "imagesTs", tmp_path / "labels"
    assert main(["segment", str(CHECKPOINT), str(images), str(out), "--device", "cpu"]) == 0
    assert len(list(out.glob("*.nii.gz"))) == len(list(images.glob("*.nii.gz")))
    assert main(["summary", str(CHECKPOINT)]) == 0


def test_its_training_goes_on_as_it_did(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Weights, momenta, rates, the hold of λ and the draws: the losses of the next two epochs tell them all."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(CHECKPOINT, run / "checkpoints")
    words = ["fit", "--config", FORMER / "config.yaml", "--data.store", tiny_stores.three, "--ckpt_path", "last"]
    words += ["--trainer.default_root_dir", run, "--trainer.max_epochs", 3]
    assert main([str(word) for word in words]) == 0
    with (FORMER / "losses.csv").open() as file:
        former = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    with (run / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    found = [{name: float(row[name]) for name in former[0]} for row in rows]
    assert [row["epoch"] for row in former] == [0, 1, 2], "indices, as tables had them then"
    assert [row["epoch"] for row in found] == [2, 3], "completed epochs"
    for ours, theirs in zip(found, former[1:], strict=True):
        assert ours == pytest.approx(theirs | {"epoch": theirs["epoch"] + 1}, rel=RELATIVE)
    before, after = (load_plain(path) for path in (CHECKPOINT, run / "checkpoints" / "last.ckpt"))
    assert after["flarecps"]["inference_networks"] == ["siblings.0.", "siblings.1."], "the present layout from here on"
    assert_identical(after["flarecps"]["network"], before["flarecps"]["network"], "the network")
