"""A training that is stopped and resumed ends bit-identical to one that ran through."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from runs import assert_identical, assert_same_training, table
from stores import TinyStores, fit, fit_words

from flarecps import metric_names
from flarecps.checkpoint import load_plain
from flarecps.cli.main import main
from flarecps.training.checkpoint_files import WholeCheckpoints

RAMP = ["--model.method.init_args.ramp", "{start: 0, length: 3}"]  # λ differs in every epoch
PLATEAU = [  # no epoch is good enough: the rate falls after the 3rd, if the first two have not been forgotten
    "--model.scheduler",
    "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {patience: 2, factor: 0.5, threshold: 100}}",
]
HELD = ["--model.on_collapse", "hold", "--model.vanished_below", 100]  # every class counts as vanished: λ stays
VALIDATED = ["--data.fold", 0, "--trainer.check_val_every_n_epoch", 2, "--data.validation_patches", 2]
SMALL_BATCH = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
CASES = {
    "cps": ("phantom_3d.yaml", [*RAMP, *SMALL_BATCH]),
    "control": ("phantom_3d_supervised.yaml", SMALL_BATCH),
    "plateau, validated every 2 epochs": ("phantom_2d.yaml", [*RAMP, *PLATEAU, *VALIDATED, *SMALL_BATCH]),
    "control, validated every 2 epochs": ("phantom_2d_supervised.yaml", [*PLATEAU, *VALIDATED, *SMALL_BATCH]),
    "λ held": ("phantom_2d.yaml", [*RAMP, *HELD, *SMALL_BATCH]),
}


@pytest.mark.parametrize("case", CASES)
def test_two_and_two_epochs_are_four(case: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    config, more = CASES[case]
    through = fit(config, tiny_stores, tmp_path / "through", *more, epochs=4)
    halves = fit(config, tiny_stores, tmp_path / "halves", *more, epochs=2)
    assert len([row for row in table(halves) if row[metric_names.LOSS_TOTAL]]) == 2
    fit(config, tiny_stores, halves, *more, "--ckpt_path", "last", epochs=4)
    ours = assert_same_training(halves, through)
    assert ours["flarecps"]["completed_epochs"] == 4
    assert ours["state_dict"]["smoothed_loss._extra_state"].isfinite().all()
    momentum = [state["momentum_buffer"] for state in ours["optimizer_states"][-1]["state"].values()]
    assert all(buffer.any() for buffer in momentum[:4])
    if case == "λ held":
        assert ours["state_dict"]["collapse_watch._extra_state"]["held_epochs"] == 3, "not in epoch 0, where λ is 0"
        assert [float(row[metric_names.LAMBDA]) for row in table(halves)] == pytest.approx([0, 1 / 6, 1 / 6, 1 / 6])
    if "every 2 epochs" in case:
        initial = yaml.safe_load((through / "config.yaml").read_text())["model"]["optimizer"]["init_args"]["lr"]
        final = [state["param_groups"][0]["lr"] for state in ours["optimizer_states"]]
        assert final == [initial / 2] * len(final), "the schedulers did something that a resume could lose"
        best = [load_plain(run / "checkpoints" / "best.ckpt") for run in (halves, through)]
        assert_identical(best[0]["state_dict"], best[1]["state_dict"], "best")
        scores = [float(row[metric_names.DSC_MEAN]) for row in table(halves) if row[metric_names.DSC_MEAN]]
        (known,) = (one for name, one in ours["callbacks"].items() if metric_names.DSC_MEAN in name)
        assert float(known["best_model_score"]) == pytest.approx(max(scores)), "the last epoch's own score included"


@pytest.mark.parametrize("case", ["cps", "control"])
def test_a_killed_run_resumes_where_it_was(case: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """``kill -9`` whenever it comes: in a step, while a checkpoint is written, between table and checkpoint."""
    config, more = CASES[case]
    killed, last = tmp_path / "killed", tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = multiprocessing.get_context("fork").Process(
        target=fit, args=(config, tiny_stores, killed, *more), kwargs={"epochs": 1000}
    )
    process.start()
    give_up = time.monotonic() + 60
    while not (last.is_file() and load_plain(last)["flarecps"]["completed_epochs"] >= 2):  # a file is always whole
        assert process.is_alive()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (killed / "checkpoints" / ".partial-0123abcd-last.ckpt").write_bytes(b"as a process killed while writing leaves it")
    completed = load_plain(last)["flarecps"]["completed_epochs"]
    fit(config, tiny_stores, killed, *more, "--ckpt_path", "last", epochs=completed + 2)
    through = fit(config, tiny_stores, tmp_path / "through", *more, epochs=completed + 2)
    assert_same_training(killed, through)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_checkpoint_is_written_beside_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies leaves the old file untouched and nothing of the new one; the disk has it before the name."""
    files, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    files.save_checkpoint({"epoch": 1}, path)
    order = []
    monkeypatch.setattr(os, "fsync", lambda _: order.append("disk"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: (order.append(Path(other).name), rename(one, other)))
    files.save_checkpoint({"epoch": 2}, path)
    assert order == ["disk", "previous.ckpt", "last.ckpt"]
    assert torch.load(path, weights_only=True) == {"epoch": 2}
    with pytest.raises(Exception, match="pickle"):
        files.save_checkpoint({"epoch": lambda: 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 2}
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True) == {"epoch": 1}
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "previous.ckpt"]


def test_a_run_is_repeated_from_its_own_config(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """config.yaml is complete even where the first config left the optimiser and the scheduler out."""
    short = tmp_path / "short.yaml"
    topology = {"features": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "kernels": [[3, 3, 3], [3, 3, 3]]}
    short.write_text(yaml.safe_dump({"model": {"topology": topology}}))
    first = fit(short, tiny_stores, tmp_path / "first", *SMALL_BATCH, epochs=1)
    again = ["fit", "--config", first / "config.yaml", "--trainer.default_root_dir", tmp_path / "again"]
    assert main([str(word) for word in again]) == 0
    content = assert_same_training(tmp_path / "again", first)
    configs = [(run / "config.yaml").read_text() for run in (first, tmp_path / "again")]
    assert configs[0].replace(str(first), str(tmp_path / "again")) == configs[1]
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.99, True)


def test_rows_of_epochs_that_were_lost_are_logged_anew(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """A run killed after an epoch's row was written and before its checkpoint repeats that epoch, and has it once."""
    run = fit("phantom_2d_supervised.yaml", tiny_stores, tmp_path / "run", epochs=1)
    first = (run / "csv" / "metrics.csv").read_text()
    with (run / "csv" / "metrics.csv").open("a") as file:
        file.write("2" + first.splitlines()[-1][1:] + "\n")
    fit("phantom_2d_supervised.yaml", tiny_stores, run, "--ckpt_path", "last", epochs=2)
    assert [row["epoch"] for row in table(run)] == ["1", "2"]
    assert (run / "csv" / "metrics.csv").read_text().startswith(first)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tiny_stores: TinyStores, tmp_path: Path) -> None:
    run = fit("phantom_2d_supervised.yaml", tiny_stores, tmp_path / "run", epochs=1)
    before, rows = load_plain(run / "checkpoints" / "last.ckpt"), table(run)
    fit("phantom_2d_supervised.yaml", tiny_stores, run, "--ckpt_path", "last", epochs=1)
    assert_identical(load_plain(run / "checkpoints" / "last.ckpt")["state_dict"], before["state_dict"], "state_dict")
    assert table(run) == rows


def test_auto_begins_then_resumes_and_never_begins_anew(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A job script's start: a damaged last costs an epoch, and damage everywhere is the user's to decide on."""
    run = tmp_path / "run"
    auto = ["--ckpt_path", "auto"]
    config = "phantom_2d_supervised.yaml"
    fit(config, tiny_stores, run, *auto, epochs=2)
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    last.write_bytes(last.read_bytes()[:-1000])
    fit(config, tiny_stores, run, *auto, epochs=3)
    assert f"{last}: damaged" in caplog.text
    assert [row["epoch"] for row in table(run)] == ["1", "2", "3"]
    through = fit(config, tiny_stores, tmp_path / "through", epochs=3)
    assert_same_training(run, through)
    assert main(fit_words(config, tiny_stores, run, *auto, "--overwrite", "true")) == 2
    assert "give one of them" in capsys.readouterr().err.splitlines()[-1]
    for path in (last, previous):
        path.write_bytes(b"")
    before = (run / "csv" / "metrics.csv").read_text()
    for given in ("auto", "last"):
        assert main(fit_words(config, tiny_stores, run, "--ckpt_path", given)) == 2
        assert "none of its checkpoints (last.ckpt, previous.ckpt) is whole" in capsys.readouterr().err.splitlines()[-1]
    assert main(fit_words(config, tiny_stores, run)) == 2, "damaged or not, they are not overwritten unasked"
    assert (run / "csv" / "metrics.csv").read_text() == before
