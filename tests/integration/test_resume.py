"""A training that is stopped and resumed ends bit-identical to one that ran through."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stores import TinyStores, fit

from flarecps import metric_names
from flarecps.checkpoint import load_plain

RAMP = ["--model.ramp.start", 0, "--model.ramp.length", 3]  # λ differs in every epoch
PLATEAU = [  # no epoch is good enough: the rate falls after the 3rd, if the first two have not been forgotten
    "--model.scheduler",
    "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {patience: 2, factor: 0.5, threshold: 100}}",
]
VALIDATED = ["--data.fold", 0, "--trainer.check_val_every_n_epoch", 2]
SMALL_BATCH = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
CASES = {
    "cps": ("phantom_3d.yaml", RAMP),
    "control": ("phantom_3d_supervised.yaml", RAMP),
    "plateau, validated every 2 epochs": ("phantom_2d.yaml", [*RAMP, *PLATEAU, *VALIDATED, *SMALL_BATCH]),
}


def assert_identical(ours: Any, theirs: Any, where: str) -> None:
    """Equal in every bit, down to the leaves of nested dicts and lists."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_identical(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_identical(one, other, f"{where}[{number}]")
    else:
        assert ours == theirs, where


def table(run: Path) -> list[dict[str, str]]:
    with (run / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", CASES)
def test_two_and_two_epochs_are_four(case: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    config, more = CASES[case]
    through = fit(config, tiny_stores, tmp_path / "through", *more, epochs=4)
    halves = fit(config, tiny_stores, tmp_path / "halves", *more, epochs=2)
    assert len([row for row in table(halves) if row[metric_names.LOSS_TOTAL]]) == 2
    fit(config, tiny_stores, halves, *more, "--ckpt_path", "last", epochs=4)
    ours, theirs = (load_plain(run / "checkpoints" / "last.ckpt") for run in (halves, through))
    for entry in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "flarecps"):
        assert_identical(ours[entry], theirs[entry], entry)
    assert ours["flarecps"]["completed_epochs"] == 4
    assert ours["state_dict"]["smoothed_loss._extra_state"].isfinite().all()
    momentum = [state["momentum_buffer"] for state in ours["optimizer_states"][-1]["state"].values()]
    assert all(buffer.any() for buffer in momentum[:4])
    assert table(halves) == table(through), "λ, losses and rates of all four epochs, in one table"
    if "plateau" in case:
        initial = yaml.safe_load((through / "config.yaml").read_text())["model"]["optimizer"]["init_args"]["lr"]
        final = [state["param_groups"][0]["lr"] for state in ours["optimizer_states"]]
        assert final == [initial / 2] * len(final), "the schedulers did something that a resume could lose"
        best = [load_plain(run / "checkpoints" / "best.ckpt") for run in (halves, through)]
        assert_identical(best[0]["state_dict"], best[1]["state_dict"], "best")
        scores = [float(row[metric_names.DSC_MEAN]) for row in table(halves) if row[metric_names.DSC_MEAN]]
        (known,) = (one for name, one in ours["callbacks"].items() if metric_names.DSC_MEAN in name)
        assert float(known["best_model_score"]) == pytest.approx(max(scores)), "the last epoch's own score included"


def test_rows_of_epochs_that_were_lost_are_logged_anew(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """A run killed after an epoch's row was written and before its checkpoint repeats that epoch, and has it once."""
    run = fit("phantom_2d_supervised.yaml", tiny_stores, tmp_path / "run", epochs=1)
    first = (run / "csv" / "metrics.csv").read_text()
    with (run / "csv" / "metrics.csv").open("a") as file:
        file.write("1" + first.splitlines()[-1][1:] + "\n")
    fit("phantom_2d_supervised.yaml", tiny_stores, run, "--ckpt_path", "last", epochs=2)
    assert [row["epoch"] for row in table(run)] == ["0", "1"]
    assert (run / "csv" / "metrics.csv").read_text().startswith(first)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tiny_stores: TinyStores, tmp_path: Path) -> None:
    run = fit("phantom_2d_supervised.yaml", tiny_stores, tmp_path / "run", epochs=1)
    before, rows = load_plain(run / "checkpoints" / "last.ckpt"), table(run)
    fit("phantom_2d_supervised.yaml", tiny_stores, run, "--ckpt_path", "last", epochs=1)
    assert_identical(load_plain(run / "checkpoints" / "last.ckpt")["state_dict"], before["state_dict"], "state_dict")
    assert table(run) == rows
