"""wandb: one run however often a training is resumed, no point twice, rank 0 alone; no failure of it ends a training.

Runs are read back with wandb's own reader: ``wandb sync`` sends an offline run's file to a stand-in for its server.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from stores import TinyStores, fit, fit_words
from tiny_training import TinyData, batches, module_of
from wandb_server import StoredRun, WandbServer, wandb_server

from flarecps import metric_names
from flarecps.checkpoint import load_plain
from flarecps.cli.training import _say_written
from flarecps.reporting.dashboard_layout import layout, logged_names
from flarecps.training.checkpoint_files import checkpoint_callbacks
from flarecps.training.dashboards import DashboardSession, MetricsTable, WandbDashboard, loggers_of, wandb_run
from flarecps.training.dashboards.metrics_table import WANDB_RUN_FILE

KEY = "0" * 40
VALIDATED = ("--data.fold", 0, "--data.validation_patches", 2)
AT_ONCE = ("--model.method.init_args.ramp", "{start: 0, length: 0}")


def stop_service() -> None:
    """Let go of this process's wandb service, which remembers a server's address; other tests may have killed it."""
    import wandb

    with contextlib.suppress(ConnectionError):
        wandb.teardown()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_service()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb with little patience; its service is stopped before and after."""
    stop_service()
    for name, value in {
        "MODE": "online", "API_KEY": KEY, "INIT_TIMEOUT": "3", "_GRAPHQL_RETRY_MAX": "0", "FINISH_TIMEOUT": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    stop_service()


def session(run: Path, epochs: int, *more: Callback, resume: bool = False, logger: Any = None) -> WandbDashboard | None:
    """One start of a small training in the folder ``run``, as the command line puts it together."""
    loggers = loggers_of(logger, run)
    dashboard = next((one for one in loggers if isinstance(one, WandbDashboard)), None)
    trainer = Trainer(
        max_epochs=epochs, logger=loggers, default_root_dir=run, accelerator="cpu", precision="64-true",
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, log_every_n_steps=1,
        callbacks=[DashboardSession(run, dashboard), *more, *checkpoint_callbacks(run, with_best=False)],
    )  # fmt: skip
    trainer.fit(module_of(2), TinyData(batches(2)), ckpt_path=last(run) if resume else None)
    return dashboard


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def synced(run: Path) -> tuple[WandbServer, dict[str, StoredRun]]:
    """What a server has after ``wandb sync`` of all the run's offline sessions, in one call, as the docs say."""
    with wandb_server() as server:
        environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
        program = [sys.executable, "-c", "from wandb.cli.cli import cli; cli()", "sync", "--yes"]
        folders = sorted(map(str, (run / "wandb").glob("offline-run-*")))
        done = subprocess.run([*program, *folders], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert server.unknown == []
    return server, server.runs


def steps(run: StoredRun) -> list[tuple[int, int]]:
    return [(row["_step"], row["epoch"]) for row in run.history]


# -- the same run


def test_three_sessions_are_one_run_without_a_point_twice(
    tiny_stores: TinyStores, tmp_path: Path, offline: None
) -> None:
    """Stopped after epoch 1; then after epoch 2, whose checkpoints are lost, so that the third session repeats it."""
    run = tmp_path / "run"
    words = ("phantom_3d.yaml", tiny_stores, run, *VALIDATED, *AT_ONCE)
    fit(*words, epochs=1)
    kept = shutil.copy(last(run), tmp_path)
    fit(*words, "--ckpt_path", "last", epochs=2)
    for lost in last(run).parent.iterdir():
        lost.unlink()
    shutil.copy(kept, last(run))
    fit(*words, "--ckpt_path", "last", epochs=3)
    folders = list((run / "wandb").glob("offline-run-*"))
    states = load_plain(last(run))["callbacks"]
    (run_id,) = {state["run_id"] for state in states.values() if "run_id" in state}
    assert len(folders) == 3
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {run_id}

    record = json.loads((run / "environment.json").read_text())
    assert [(one["first_epoch"], one["completed_epochs"]) for one in record["sessions"]] == [(1, 1), (2, 2), (2, 3)]
    assert [one["started"] <= one["finished"] for one in record["sessions"]] == [True] * 3
    assert {**record["sessions"][-1], "sessions": record["sessions"]} == record, "what stands outside is the last one's"
    assert ["--ckpt_path last" in one["command"] for one in record["sessions"]] == [False, True, True]

    _, runs = synced(run)
    (found,) = runs.values()
    assert list(runs) == [run_id]
    assert steps(found) == [(1, 1), (2, 2), (3, 3)]
    assert found.states[-1] == "ended with 0"
    hidden = {one["1"] for one in found.config["_wandb"]["m"] if "1" in one and 2 in one["6"]}
    assert metric_names.dsc("sibling_1", "liver") in hidden
    assert hidden.isdisjoint({metric_names.LOSS_TOTAL, metric_names.DSC_MEAN, metric_names.dsc("average", "liver")})
    groups = {"train", "learning_rate", "validation", "validation_patches", "health", "throughput", "overlays"}
    names = set(found.history[-1])
    assert groups <= {name.split("/")[0] for name in names}
    assert {metric_names.LOSS_TOTAL, metric_names.LAMBDA, metric_names.DSC_MEAN} <= names
    assert {metric_names.supervised_loss(2), metric_names.learning_rate(1), metric_names.learning_rate(2)} <= names
    assert {metric_names.dsc(source, "liver") for source in ("sibling_1", "sibling_2", "average")} <= names
    assert {metric_names.health_agreement("liver"), metric_names.PATCHES_PER_SECOND, metric_names.DATA_WAIT} <= names
    with (run / "csv" / "metrics.csv").open() as file:
        losses = [row[metric_names.LOSS_TOTAL] for row in csv.DictReader(file)]
    assert [row[metric_names.LOSS_TOTAL] for row in found.history] == pytest.approx([float(x) for x in losses if x])

    shown = [metric for section in layout(logged_names(run)) for panel in section.panels for metric in panel.metrics]
    logged = {name for row in found.history for name in row if "/" in name}
    assert sorted(shown) == sorted(logged), "the layout has each metric in one panel"

    pictures = [row[metric_names.overlay("labelled_001")] for row in found.history]
    assert [picture["_type"] for picture in pictures] == ["image-file"] * 3
    assert all(picture["path"] in found.files for picture in pictures)
    drawn = sorted((run / "overlays" / "labelled_001").iterdir())
    assert [path.name for path in drawn] == ["epoch_0001.jpg", "epoch_0002.jpg", "epoch_0003.jpg"]
    assert found.files[pictures[0]["path"]] == drawn[0].read_bytes()
    table = found.history[-1][metric_names.CASES]
    assert (table["_type"], table["ncols"]) == ("table-file", 6)
    assert table["nrows"] == 13

    assert found.config["plan"]["labels"]["liver"] == 1
    assert found.config["git"] is None or len(found.config["git"]["commit"]) == 40
    assert found.config["trainer"]["max_epochs"] == 3
    assert found.config["versions"]["torch"]


def test_what_an_earlier_session_could_not_log_is_sent_later(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs 1 and 2 with wandb switched off, 3 offline: the table beside the run has what is missing."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert session(tmp_path, 2) is None
    assert not (tmp_path / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    session(tmp_path, 3, resume=True)
    (found,) = synced(tmp_path)[1].values()
    assert steps(found) == [(1, 1), (2, 2), (3, 3)]
    assert all(row[metric_names.LOSS_TOTAL] > 0 for row in found.history)


def test_a_session_without_wandb_hands_the_id_on(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session(tmp_path, 1)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    session(tmp_path, 2, resume=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    third = session(tmp_path, 3, resume=True)
    assert first is not None
    assert third is not None
    assert first.version == third.version


def test_another_folder_and_a_new_start_are_other_runs(tmp_path: Path, offline: None) -> None:
    first = session(tmp_path / "one", 1)
    (tmp_path / "two" / "checkpoints").mkdir(parents=True)
    run = tmp_path / "two"
    dashboard = WandbDashboard()
    trainer = Trainer(
        max_epochs=2, logger=loggers_of(dashboard, run), default_root_dir=run, accelerator="cpu", precision="64-true",
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[DashboardSession(run, dashboard), *checkpoint_callbacks(run, with_best=False)],
    )  # fmt: skip
    trainer.fit(module_of(2), TinyData(batches(2)), ckpt_path=last(tmp_path / "one"))
    assert first is not None
    assert dashboard.version not in (None, first.version)
    (found,) = synced(run)[1].values()
    assert steps(found) == [(2, 2)]
    assert found.config["continued_from"]["run_id"] == first.version
    again = session(tmp_path / "one", 1)  # as with --overwrite true
    assert again is not None
    assert again.version != first.version


def test_online_the_server_knows_what_it_has(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three sessions against one server; before the third, the run's folder forgets what was logged."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "20")
        session(tmp_path, 1)
        kept = shutil.copy(last(tmp_path), tmp_path / "kept.ckpt")
        session(tmp_path, 2, resume=True)
        shutil.copy(kept, last(tmp_path))
        (tmp_path / WANDB_RUN_FILE).unlink()
        dashboard = session(tmp_path, 3, resume=True)
    capsys.readouterr()
    _say_written(tmp_path, [dashboard, WandbDashboard()])
    said = [line for line in capsys.readouterr().out.splitlines() if "dashboard" in line]
    assert said == [f"once per wandb project, next: flarecps dashboard someone/flarecps --like {tmp_path}"]
    (found,) = server.runs.values()
    assert steps(found) == [(1, 1), (2, 2), (3, 3)]
    assert not list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("offline_run", "sessions", "stays"),
    [(False, (), False), (True, (), True), (False, ("run-a.wandb",), True), (False, ("run-a.wandb.synced",), False)],
)
def test_what_was_sent_is_left_nowhere(
    offline_run: bool, sessions: tuple[str, ...], stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb leaves copies of what it sent; what waits for ``wandb sync`` stays. ``sessions``: an offline one's file."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    copy = tmp_path / "wandb" / "artifacts" / "staging" / "tmp1"
    for file in (copy, *(tmp_path / "wandb" / "offline-run-1" / name for name in sessions)):
        file.parent.mkdir(parents=True)
        file.touch()
    dashboard = WandbDashboard()
    dashboard.folder, dashboard._places = tmp_path, ["WANDB_DATA_DIR"]
    dashboard._run = SimpleNamespace(offline=offline_run, finish=lambda exit_code: None)
    dashboard.finalize("success")
    assert copy.exists() == stays


def test_a_wandb_run_stays_in_its_folder(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    dashboard = WandbDashboard()
    dashboard.begin(tmp_path / "run", "abc", {"one": 1})
    dashboard.add_table(1, metric_names.CASES, ["case"], [["a"]])
    dashboard.log_metrics({"epoch": 0, metric_names.LOSS_TOTAL: 1.0})
    dashboard.complete = True
    dashboard.finalize("success")
    stop_service()
    server, runs = synced(tmp_path / "run")
    assert (runs["abc"].config["one"], runs["abc"].history[0][metric_names.LOSS_TOTAL]) == (1, 1.0)
    assert len(server.artifacts) == 1, "wandb sync found what it needs"
    left = [path for name in ("HOME", "TMPDIR") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert not [path for path in left if "wandb" in str(path.relative_to(tmp_path)) and path.suffix != ".log"]


def test_one_run_of_two_processes(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Rank 0 alone logs, draws and writes; the table of cases is that of both."""
    run = tmp_path / "run"
    more = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.global_batch", "{labelled: 2, unlabelled: 2}"]
    words = fit_words("phantom_2d.yaml", tiny_stores, run, *more, *VALIDATED, epochs=1)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    (found,) = synced(run)[1].values()
    assert steps(found) == [(1, 1)]
    assert len(list((run / "overlays").glob("*/*.jpg"))) == 1
    with (run / "validation.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"labelled_001"}
    assert done.stdout.count("epoch 1/1 · loss") == 1


# -- failures


def test_with_an_unreachable_server_training_finishes(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, and logs offline."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    dashboard = session(tmp_path, 2)
    said = [record.message for record in caplog.records if record.name == "flarecps.training"]
    assert len(said) == 1
    assert "wandb can't reach its server" in said[0]
    assert "wandb sync" in said[0]
    assert last(tmp_path).is_file()
    assert dashboard is not None
    (found,) = synced(tmp_path)[1].values()
    assert steps(found) == [(1, 1), (2, 2)]


def test_a_server_that_goes_away_holds_nothing_up(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The network fails in epoch 1; at the end wandb has its two seconds and no more. The next session makes good."""
    import wandb

    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)

        class Outage(Callback):
            def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
                monkeypatch.setattr(server, "refusing", True)

        session(tmp_path, 3, Outage())
        assert load_plain(last(tmp_path))["flarecps"]["completed_epochs"] == 3
        wandb.teardown()  # as the end of the process
        assert [run.history for run in server.runs.values()] == [[]]
        monkeypatch.setattr(server, "refusing", False)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "20")
        session(tmp_path, 4, resume=True)
    (found,) = server.runs.values()
    assert steps(found) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    said = [record.message for record in caplog.records if record.name == "flarecps.training"]
    assert len(said) == 1
    assert "wandb failed at closing the run" in said[0]


class Stop(BaseException):
    """As a requeue stops a training."""


def test_a_requeue_does_not_wait_for_a_server_that_is_silent(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long wandb itself would wait at the end."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "25")
        monkeypatch.setattr(wandb_run, "STOP_S", 1.0)

        class Requeue(Callback):
            def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
                if trainer.current_epoch == 1:
                    monkeypatch.setattr(server, "refusing", True)
                    raise Stop

        with pytest.raises(Stop):
            session(tmp_path, 3, Requeue())
        said = [record.message for record in caplog.records if record.name == "flarecps.training"]
        monkeypatch.setattr(server, "refusing", False)  # so that the service's end need not be waited for
    assert [("not done after 1 s" in one) for one in said] == [True]


def test_a_wandb_that_dies_ends_no_training(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Its service is killed after epoch 1; at the command line, where nothing but one line may tell of it."""
    run = tmp_path / "run"
    logger = "{class_path: flarecps.training.dashboards.WandbDashboard, init_args: {group: seeds, checkpoints: true}}"
    more = ["--trainer.callbacks", "[{class_path: test_wandb.KilledService}]", "--trainer.logger", logger]
    words = fit_words("phantom_2d_supervised.yaml", tiny_stores, run, *more, epochs=3)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    path = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wandb failed at logging epoch 2") == 1
    assert done.stderr.count("warning: wandb") == 1
    assert "Traceback" not in done.stderr
    with (run / "csv" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_service_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    """wandb would wait for it without a limit, at the interpreter's end."""
    program = tmp_path / "wandb-core"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "600"]) as service:
        service.send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="not done after 0 s"):
            wandb_run.finish_within(0.1, lambda: time.sleep(60))
        assert service.wait(20) == -signal.SIGKILL


class KilledService(Callback):
    """Kills wandb's service, a child of this process, when epoch 2 begins."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            (service,) = (one for one in psutil.Process().children() if "wandb-core" in one.name())
            service.kill()
            service.wait(10)


def test_a_session_that_is_interrupted_drops_the_row_it_was_in(tmp_path: Path, offline: None) -> None:
    """As at a requeue: the epoch is not complete, the next session completes it."""

    class Requeue(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module.log("validation/of_an_epoch_that_breaks_off", 1.0)
            if trainer.current_epoch == 1:
                raise Stop

    with pytest.raises(Stop):
        session(tmp_path, 3, Requeue())
    session(tmp_path, 3, resume=True)
    (found,) = synced(tmp_path)[1].values()
    assert steps(found) == [(1, 1), (2, 2), (3, 3)]
    assert found.states == ["ended with 0", "ended with 0"]


# -- settings


def test_checkpoints_are_sent_when_asked_for(tmp_path: Path, offline: None) -> None:
    session(tmp_path / "plain", 1)
    session(tmp_path / "asked", 1, logger=WandbDashboard(checkpoints=True, project="mine", tags=["a"]))
    assert {one["artifactTypeName"] for one in synced(tmp_path / "plain")[0].artifacts} == set()
    server, runs = synced(tmp_path / "asked")
    (sent,) = server.artifacts
    (run_id,) = runs
    assert (sent["projectName"], sent["artifactTypeName"]) == ("mine", "model")
    assert sent["artifactCollectionName"] == f"last-{run_id}"
    assert "last" in [one["alias"] for one in sent["aliases"]]


def test_the_table_stands_beside_whatever_the_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    kinds = {
        None: [MetricsTable, WandbDashboard],
        True: [MetricsTable, WandbDashboard],
        False: [],
    }
    for given, expected in kinds.items():
        assert [type(one) for one in loggers_of(given, tmp_path)] == expected
    lightnings = WandbLogger(project="p", name="n", tags=["t"], offline=True, id="kept out")
    table, dashboard = loggers_of([lightnings, CSVLogger(tmp_path)], tmp_path)
    assert isinstance(table, MetricsTable)
    assert isinstance(dashboard, WandbDashboard)
    assert dashboard.settings == {"project": "p", "name": "n", "tags": ["t"]}
    assert dashboard.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert WandbDashboard(mode="offline").mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert [type(one) for one in loggers_of(None, tmp_path)] == [MetricsTable]


def test_wandb_is_imported_late() -> None:
    program = "import sys, flarecps.cli.training; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
