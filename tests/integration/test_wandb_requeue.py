"""wandb under real stops by signals: in the middle of an epoch, and of its validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import TinyStores, fit_words
from test_requeue import interrupted
from test_wandb import VALIDATED, steps, synced

from flarecps import metric_names


def test_stops_within_epochs_leave_one_run_with_every_epoch_once(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    words = fit_words("phantom_2d.yaml", tiny_stores, run, *VALIDATED, "--data.iterations_per_epoch", 3, epochs=3)
    interrupted(words, "{epoch: 0, step: 1}", "{epoch: 1, place: validation}")
    assert len(list((run / "wandb").glob("offline-run-*"))) == 3
    (found,) = synced(run)[1].values()
    assert steps(found) == [(1, 1), (2, 2), (3, 3)]
    assert found.states == ["ended with 0"] * 3, "a stop is no failure"
    assert all(metric_names.DSC_MEAN in row and metric_names.LOSS_TOTAL in row for row in found.history)
    assert all(metric_names.overlay("labelled_001") in row for row in found.history)
    sessions = json.loads((run / "environment.json").read_text())["sessions"]
    assert [one.get("ended_by") for one in sessions] == ["StoppedBySignal", "StoppedBySignal", None]
    assert [one["first_epoch"] for one in sessions] == [1, 1, 2]
    assert [one["finished"] is not None for one in sessions] == [False, False, True]
