"""A training that signals stop within its epochs, and that is resumed each time, ends as an uninterrupted one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import psutil
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from runs import assert_same_training, on_two_ranks, table
from stores import TinyStores, fit, fit_words
from test_resume import HELD, PLATEAU, RAMP, SMALL_BATCH

from flarecps import metric_names
from flarecps.checkpoint import load_plain
from flarecps.cli.main import main
from flarecps.training.callbacks.requeue import RUNNING

STEPS = ["--data.iterations_per_epoch", 4]
VALIDATED = ["--data.fold", 0, "--data.validation_patches", 2]
STOPPED_BY_USR1 = 128 + signal.SIGUSR1


class SignalAt(Callback):
    """Sends this process and its data workers a signal once, in the middle of a step or of a validation, as SLURM does.

    ``place``: "step" (before the step's gradients are made), "validation" or "patches" (at the epoch's end).
    """

    waits_s = 0.3  # for what the signal does to the workers

    def __init__(self, epoch: int, step: int = 0, place: str = "step", number: int = int(signal.SIGUSR1)) -> None:
        self.epoch, self.step, self.place, self.number = epoch, step, place, number

    def _send(self, trainer: Trainer, place: str, step: int) -> None:
        if (trainer.current_epoch, place, step) == (self.epoch, self.place, self.step):
            everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
            words = ["kill", f"-{self.number}", *(str(one.pid) for one in everyone)]
            subprocess.run(words, check=True)  # from outside: workers obey their parent
            time.sleep(self.waits_s)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._send(trainer, "step", batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._send(trainer, "validation", batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send(trainer, "patches", 0)


def interrupted(words: list[str], *stops: str) -> None:
    """Run ``words`` as a job script would, again and again; each session but the last is sent one of ``stops``."""
    for stop in stops:
        callback = f"[{{class_path: test_requeue.SignalAt, init_args: {stop}}}]"
        assert main([*words, "--ckpt_path", "auto", "--trainer.callbacks", callback]) == STOPPED_BY_USR1
    assert main([*words, "--ckpt_path", "auto"]) == 0


CASES = {
    "cps": ("phantom_3d.yaml", [*RAMP, *SMALL_BATCH]),
    "control": ("phantom_3d_supervised.yaml", SMALL_BATCH),
    "plateau, λ held": ("phantom_2d.yaml", [*RAMP, *PLATEAU, *HELD, *SMALL_BATCH, "--data.workers", 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_three_stops_within_epochs_change_nothing(case: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    config, more = CASES[case]
    through = fit(config, tiny_stores, tmp_path / "through", *STEPS, *more, epochs=3)
    run = tmp_path / "stopped"
    words = fit_words(config, tiny_stores, run, *STEPS, *more, epochs=3)
    interrupted(words, "{epoch: 0, step: 1}", "{epoch: 1, step: 0}", "{epoch: 1, step: 2}")
    ours = assert_same_training(run, through)
    assert ours["global_step"] == 3 * 4 * len(ours["optimizer_states"])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_stops_around_validation_change_nothing(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """In an epoch's last step, in its validation (which begins anew), while patches are scored, in its first step."""
    more = [*RAMP, *SMALL_BATCH, *VALIDATED, "--data.iterations_per_epoch", 3]
    more += ["--trainer.check_val_every_n_epoch", 2, "--data.split", "validated"]
    through = fit("phantom_2d.yaml", two_validated(tiny_stores, tmp_path), tmp_path / "through", *more, epochs=4)
    run = tmp_path / "stopped"
    words = fit_words("phantom_2d.yaml", two_validated(tiny_stores, tmp_path), run, *more, epochs=4)
    stops = [
        "{epoch: 0, step: 2}",  # no validation follows: the epoch ends first
        "{epoch: 1, step: 2}",  # seen before the validation's first scan
        "{epoch: 1, place: validation, step: 0}",
        "{epoch: 1, place: patches}",
        "{epoch: 3, place: validation, step: 1}",
    ]
    interrupted(words, *stops)
    assert_same_training(run, through)
    best = [load_plain(one / "checkpoints" / "best.ckpt") for one in (run, through)]
    assert best[0]["flarecps"] == best[1]["flarecps"]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def two_validated(stores: TinyStores, folder: Path) -> TinyStores:
    """The 2D store with a split that has two validation cases, so that a validation has a middle."""
    two = folder / "two"
    if not two.is_dir():
        shutil.copytree(stores.two, two)
        splits = json.loads((two / "splits.json").read_text())
        (default,) = splits.values()
        labelled = default["labelled"]
        splits["validated"] = default | {"labelled": labelled[2:], "validation": labelled[:2]}
        (two / "splits.json").write_text(json.dumps(splits))
    return replace(stores, two=two)


def test_a_training_that_is_ended_can_be_resumed_but_nothing_takes_it_for_done(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM saves as SIGUSR1 does; what is scored meanwhile is the last whole epoch."""
    run = tmp_path / "run"
    words = fit_words(
        "phantom_2d.yaml", tiny_stores, run, *STEPS, *SMALL_BATCH, "--data.fold", 0, "--data.workers", 2, epochs=2
    )
    callback = f"[{{class_path: test_requeue.SignalAt, init_args: {{epoch: 1, step: 1, number: {int(SIGTERM)}}}}}]"
    assert main([*words, "--trainer.callbacks", callback]) == 128 + SIGTERM
    said = capsys.readouterr().err.splitlines()[-1]
    assert "stopped in epoch 1 after step 2" in said
    assert "--ckpt_path auto" in said
    saved = load_plain(run / "checkpoints" / "requeue.ckpt")
    assert (saved["flarecps"]["completed_epochs"], saved["global_step"]) == (1, 2 * (4 + 2))
    assert saved[RUNNING][0][metric_names.LOSS_TOTAL]["updates"] == 2
    validate = ["validate", "--config", str(run / "config.yaml"), "--trainer.default_root_dir", str(run)]
    assert main([*validate, "--ckpt_path", "last", "--trainer.callbacks", "null"]) == 0
    shown = capsys.readouterr().out
    (score,) = [float(row[metric_names.DSC_MEAN]) for row in table(run) if row[metric_names.DSC_MEAN]]
    assert f"{score:.4f}"[:6] in shown
    assert main([*words, "--ckpt_path", "last"]) == 0
    assert not (run / "checkpoints" / "requeue.ckpt").exists()
    assert [row["epoch"] for row in table(run) if row[metric_names.LOSS_TOTAL]] == ["1", "2"]


class SignalRankOne(SignalAt):
    """The signal reaches rank 1 alone, which is then behind: rank 0 waits for it in the gradients' all-reduce."""

    def _send(self, trainer: Trainer, place: str, step: int) -> None:
        if trainer.global_rank == 1:
            if trainer.current_epoch == self.epoch and place == self.place:
                time.sleep(0.2)
            super()._send(trainer, place, step)


def test_two_ranks_stop_together_though_one_was_asked(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Each rank goes on from its own running means: bit-identical, and the rank without a scan of its own as well."""
    more = [*RAMP, *SMALL_BATCH, *STEPS, *VALIDATED, "--trainer.devices", 2, "--trainer.strategy", "ddp"]

    def run(name: str, *words: object) -> list[int]:
        return on_two_ranks(fit_words("phantom_2d.yaml", tiny_stores, tmp_path / name, *more, *words), tmp_path)

    assert run("through") == [0, 0]
    for stop in ("{epoch: 0, step: 2}", "{epoch: 1, place: validation}"):
        callback = f"[{{class_path: test_requeue.SignalRankOne, init_args: {stop}}}]"
        codes = run("stopped", "--ckpt_path", "auto", "--trainer.callbacks", callback)
        assert codes == [STOPPED_BY_USR1, STOPPED_BY_USR1]
    saved = load_plain(tmp_path / "stopped" / "checkpoints" / "requeue.ckpt")
    assert len(saved[RUNNING]) == 2
    assert run("stopped", "--ckpt_path", "auto") == [0, 0]
    assert_same_training(tmp_path / "stopped", tmp_path / "through")
