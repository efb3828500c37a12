"""What a training writes about itself: its sessions, and how far a dashboard has been told of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from lightning.pytorch import Trainer
from tiny_training import tiny_plan

from flarecps.planning.plan import plan_from_json
from flarecps.reporting.curves import read_metrics
from flarecps.training.callbacks import record
from flarecps.training.callbacks.record import RunRecord, earlier_sessions, is_complete
from flarecps.training.dashboards.metrics_table import LoggedEpochs, MetricsTable, logged_run_id, rows_between
from flarecps.training.module import SegmentationModule


def a_trainer(epoch: int = 0, resumed: bool = False, epochs: int | None = 3, steps: int = -1) -> Mock:
    return Mock(
        spec=Trainer, is_global_zero=True, world_size=1, precision="32-true", current_epoch=epoch, max_epochs=epochs,
        max_steps=steps, global_step=8, ckpt_path="last.ckpt" if resumed else None,
    )  # fmt: skip


@pytest.fixture
def module() -> Mock:
    return Mock(spec=SegmentationModule, plan=plan_from_json(tiny_plan(2), where="a test"))


def content(run: Path) -> dict:
    return json.loads((run / "environment.json").read_text())


def test_every_session_is_kept(tmp_path: Path, module: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is killed after an epoch, one stopped by an error, one trains to the end; then the run begins anew."""
    clock = iter(f"2026-01-01T00:00:{second:02d}+00:00" for second in range(60))
    monkeypatch.setattr(record, "now", lambda: next(clock))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    killed = RunRecord(tmp_path, ["flarecps", "fit"])
    killed.on_fit_start(a_trainer(), module)
    assert not (tmp_path / "environment.json").exists(), "nothing has been trained yet"
    killed.on_train_start(a_trainer(), module)
    killed.on_train_epoch_end(a_trainer(0), module)
    monkeypatch.delenv("SLURM_JOB_ID")
    broken = RunRecord(tmp_path, ["flarecps", "fit", "--ckpt_path", "last"])
    broken.on_fit_start(a_trainer(resumed=True), module)
    broken.on_train_start(a_trainer(1, resumed=True), module)
    broken.on_exception(a_trainer(1), module, ValueError())
    last = RunRecord(tmp_path, ["flarecps", "fit", "--ckpt_path", "last"])
    last.on_fit_start(a_trainer(resumed=True), module)
    last.on_train_start(a_trainer(1, resumed=True), module)
    last.on_train_epoch_end(a_trainer(1), module)
    last.on_train_epoch_end(a_trainer(2), module)
    last.on_train_end(a_trainer(3), module)
    found = content(tmp_path)
    one, two, three = found["sessions"]
    assert (one["first_epoch"], one["completed_epochs"], one["finished"], one["slurm_job"]) == (1, 1, None, "17")
    assert (two["first_epoch"], two.get("completed_epochs"), two["ended_by"]) == (2, None, "ValueError")
    assert (three["first_epoch"], three["completed_epochs"]) == (2, 3)
    assert three["started"] < three["finished"]
    assert "slurm_job" not in three
    assert {name: found[name] for name in three} == three
    again = RunRecord(tmp_path, ["flarecps", "fit"])
    again.on_fit_start(a_trainer(), module)
    again.on_train_start(a_trainer(), module)
    assert len(content(tmp_path)["sessions"]) == 1


def test_a_stop_before_the_last_epoch_is_no_end(tmp_path: Path, module: Mock) -> None:
    stopped = RunRecord(tmp_path, ["flarecps", "fit"])
    stopped.on_fit_start(a_trainer(), module)
    stopped.on_train_start(a_trainer(), module)
    stopped.on_train_end(a_trainer(2), module)
    assert content(tmp_path)["finished"] is None
    assert content(tmp_path)["ended_by"] == "a stop before the last epoch"


@pytest.mark.parametrize(
    ("trainer", "complete"),
    [
        (a_trainer(3), True), (a_trainer(2), False), (a_trainer(2, steps=8), True), (a_trainer(2, steps=9), False),
        (a_trainer(2, epochs=-1), True),
    ],
)  # fmt: skip
def test_what_is_complete(trainer: Mock, complete: bool) -> None:
    assert is_complete(trainer) is complete


def test_a_record_of_one_session_and_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    assert earlier_sessions(path) == []
    path.write_text(json.dumps({"command": "flarecps fit", "started": "a"}))
    assert earlier_sessions(path) == [{"command": "flarecps fit", "started": "a"}]
    for damaged in ("", "{", "[1]"):
        path.write_text(damaged)
        assert earlier_sessions(path) == []


# -- how far a dashboard has been told


def test_what_was_logged_is_known_to_the_next_session(tmp_path: Path) -> None:
    first = LoggedEpochs(tmp_path, "a1")
    assert (first.last, first.is_new(1)) == (0, True)
    first.note(3, offline=True)
    assert [LoggedEpochs(tmp_path, "a1").is_new(epoch) for epoch in (2, 3, 4)] == [False, False, True]
    assert logged_run_id(tmp_path) == "a1"
    assert LoggedEpochs(tmp_path, "another run").last == 0
    for damaged in ("", "[]", '{"id": "a1", "logged_epochs": "many"}'):
        first.path.write_text(damaged)
        assert LoggedEpochs(tmp_path, "a1").last == 0


def test_a_server_is_believed_but_for_what_waits_to_be_sent(tmp_path: Path) -> None:
    """Epochs 1 to 3 offline, 4 to 6 sent, of which the server has all, or some, or none."""
    logged = LoggedEpochs(tmp_path, "a1")
    for epoch in range(1, 7):
        logged.note(epoch, offline=epoch <= 3)
    for known, last in ((6, 6), (5, 5), (3, 3), (0, 3), (8, 8)):
        again = LoggedEpochs(tmp_path, "a1")
        assert again.last == 6
        again.sync_with_server(known)
        assert again.last == last


def test_rows_of_the_table_that_a_dashboard_lacks(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    assert rows_between(table, 0, 9) == {}
    table.write_text("a,b,epoch,step\n1,,0,3\n,2,0,3\n3,4,1,7\n5,,2,11\nnan,x,3,15\n6,7,4,19\n8")
    assert rows_between(table, after=0, before=3) == {1: {"a": 1, "b": 2}, 2: {"a": 3, "b": 4}}
    assert rows_between(table, after=1, before=6) == {2: {"a": 3, "b": 4}, 3: {"a": 5}, 4: {}, 5: {"a": 6, "b": 7}}


def test_one_row_an_epoch_counted_from_one_and_older_tables_go_on_so(tmp_path: Path) -> None:
    path = tmp_path / "csv" / "metrics.csv"
    path.parent.mkdir()
    path.write_text("dsc,epoch,loss,step\n,0,3.5,9\n0.25,0,,9\n,1,2.5,19\n")
    old = read_metrics(path)
    table = MetricsTable(save_dir=tmp_path, name=None, version="csv")
    table.log_metrics({"epoch": 1, "dsc": 0.5}, step=20)  # the second epoch is repeated
    table.save()
    table.log_metrics({"epoch": 1, "loss": 2.0, "new": 7.0}, step=19)
    table.save()
    head, *rows = csv.reader(path.read_text().splitlines())
    assert head == ["epoch", "steps", "dsc", "loss", "new"]
    assert rows == [["1", "10", "0.25", "3.5", ""], ["2", "20", "0.5", "2.0", "7.0"]]
    new = read_metrics(path)
    assert set(new) == {"dsc", "loss", "new"}
    assert (new["loss"].epochs.tolist(), new["loss"].values.tolist()) == ([1, 2], [3.5, 2.0])
    assert (old["loss"].epochs.tolist(), old["loss"].values.tolist()) == ([1, 2], [3.5, 2.5])
    assert rows_between(path, after=0, before=2) == {1: {"dsc": 0.25, "loss": 3.5}}
