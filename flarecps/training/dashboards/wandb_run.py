"""wandb behind a guard: one run per training, however often it is resumed, and no failure of it ends a training."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from flarecps import metric_names
from flarecps.errors import ConfigError
from flarecps.planning.plan import plan_to_json
from flarecps.text_files import read_yaml
from flarecps.training.callbacks.record import environment, is_complete
from flarecps.training.dashboards.metrics_table import CSV_FOLDER, TABLE, LoggedEpochs, logged_run_id, rows_between
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import warn

PROJECT = "flarecps"
FINISH_S = 60.0  # what is not uploaded by then waits on disk
FINISH_WITH_CHECKPOINTS_S = 3600.0
STOP_S = 12.0  # the same where the training is stopped to go on later: a requeue's warning time is often a minute
PLACES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")  # by default below the home folder: here it is the run's own
SERVICE = "wandb-"  # begins the names of wandb's processes
EPOCH = "epoch"  # completed epochs: the axis of all charts
ONLINE = ("online", "run", "shared")
_Result = TypeVar("_Result")


class WandbDashboard(Logger):
    """A training's wandb run: a row per epoch, on rank 0.

    It begins when a ``DashboardSession`` says so, which knows the run's id; wandb is not imported before. A row is sent
    when its epoch is complete, with the number of completed epochs as its step; rows that an earlier session sent are
    not sent again. Whatever wandb raises is said once, and the training goes on without it.

    Args:
        project: wandb's project; by default WANDB_PROJECT, or flarecps.
        entity: whose project; by default WANDB_ENTITY, or the account's own.
        name: what the run is called; by default WANDB_NAME, or its folder's name.
        group: wandb's group of runs, for example of several seeds.
        tags: wandb's tags.
        notes: a longer description.
        mode: online, offline or disabled; WANDB_MODE comes first, and without either it is offline.
        checkpoints: send the last and the best checkpoint as artifacts when the training has done all its epochs.
        more: further arguments of ``wandb.init``.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        mode: str | None = None,
        checkpoints: bool = False,
        **more: Any,
    ) -> None:
        super().__init__()
        given = {"project": project, "entity": entity, "name": name, "group": group, "tags": tags, "notes": notes}
        self.settings = more | {key: value for key, value in given.items() if value is not None}
        self.mode = os.environ.get("WANDB_MODE") or mode or "offline"
        self.checkpoints = checkpoints
        self.exit_code = 0
        self.complete = False  # the training has done all its epochs
        self.online_project: str | None = None  # ENTITY/PROJECT, once a run is logged there at once
        self.folder = Path()
        self._wandb: Any = None  # the package
        self._run: Any = None
        self._logged: LoggedEpochs | None = None
        self._epoch = 0
        self._row: dict[str, Callable[[], Any]] = {}
        self._hidden: set[str] = set()  # metrics that were said to have no panel
        self._places: list[str] = []
        self._saved: dict[str, Path] = {}  # what a checkpoint is called, and its file

    @property
    def _patience_s(self) -> float:
        return FINISH_WITH_CHECKPOINTS_S if self.checkpoints else FINISH_S

    # -- what Lightning asks

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str | None:
        return self._logged.run_id if self._logged else None

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``begin`` is given the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of an epoch, and send it when it holds the training's means, which come last."""
        epoch = int(metrics.get(EPOCH, self._epoch - 1)) + 1
        for metric, value in metrics.items():
            if metric != EPOCH:
                self._add(epoch, metric, lambda value=value: float(value))  # type: ignore[misc]  # bound now
        if metric_names.LOSS_TOTAL in metrics:
            self._send(epoch)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember the newest file of each kind."""
        path = Path(checkpoint_callback.best_model_path)
        self._saved[path.stem] = path

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run; an epoch that was broken off is not sent, for the next session repeats it."""
        if self._run is None:
            return
        if self.complete and self.checkpoints:
            self._send_checkpoints()
        run, self._run = self._run, None
        code = 0 if status == "success" else self.exit_code
        within_s: float | None = STOP_S
        if self.complete:  # wandb keeps a limit of its own, which a user may have set, unless its service is stopped
            within_s = None if "WANDB_FINISH_TIMEOUT" in os.environ else self._patience_s + STOP_S
        close = partial(finish_within, within_s, lambda: run.finish(exit_code=code))
        if _attempt("closing the run", close, self._say) is None:
            self._stop_service()
        elif not run.offline:
            self._clear_staging()
        self._leave()

    # -- what callbacks ask

    @rank_zero_only
    def begin(self, folder: Path, run_id: str, config: Mapping[str, Any], first_epoch: int = 1) -> None:
        """Make, or go on with, the wandb run ``run_id``; everything of it is written below ``folder``.

        ``first_epoch`` is the one that this session completes first. Earlier ones that were not logged are, from the
        table beside the run.
        """
        self.folder, self.exit_code, self.complete = folder, 0, False
        self._hidden.clear()
        self._logged = LoggedEpochs(folder, run_id)
        if self.mode == "disabled":
            return
        self._run = self._started(run_id, dict(config))
        if self._run is None:
            return
        if not self._run.offline:
            self._logged.sync_with_server(int(self._run.step) - 1)
            self.online_project = f"{self._run.entity}/{self._run.project}"
        if self._logged.last >= first_epoch:
            again = f"{first_epoch} to {self._logged.last}" if self._logged.last > first_epoch else f"{first_epoch}"
            rank_zero_info(f"wandb: epoch {again} was logged by an earlier session, and is not logged again")
        for epoch, row in rows_between(folder / CSV_FOLDER / TABLE, self._logged.last, first_epoch).items():
            for metric, value in row.items():
                self._add(epoch, metric, lambda value=value: value)  # type: ignore[misc]  # bound now
            self._send(epoch)

    @rank_zero_only
    def add_picture(self, epoch: int, name: str, path: Path, caption: str) -> None:
        """Add a picture to the row of ``epoch`` (completed epochs)."""
        self._add(epoch, name, lambda: self._wandb.Image(str(path), caption=caption))

    @rank_zero_only
    def add_table(self, epoch: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to the row of ``epoch`` (completed epochs)."""
        data = [list(row) for row in rows]
        self._add(epoch, name, lambda: self._wandb.Table(columns=list(columns), data=data))

    # -- wandb

    def _started(self, run_id: str, config: dict[str, Any]) -> Any:
        """wandb's run; offline where the server can't be had, and None where that fails, too."""
        if self.mode in ONLINE:
            run = _attempt("", lambda: self._init(run_id, config, self.mode), self._say_offline)
            if run is not None:
                return run
            self._stop_service()  # it still holds the id
        mode = "offline" if self.mode in ONLINE else self.mode
        return _attempt("beginning a run", lambda: self._init(run_id, config, mode), self._say)

    def _init(self, run_id: str, config: dict[str, Any], mode: str) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        for name in PLACES:
            if name not in os.environ:
                os.environ[name] = str((self.folder / "wandb").resolve())
                self._places.append(name)
        import wandb

        self._wandb = wandb
        self.folder.mkdir(parents=True, exist_ok=True)
        limit: dict[str, Any] = {} if "WANDB_FINISH_TIMEOUT" in os.environ else {"finish_timeout": self._patience_s}
        defaults = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", self.folder.resolve().name),
            "settings": wandb.Settings(finish_timeout_raises=True, **limit),
        }
        run = wandb.init(
            **{**defaults, **self.settings},
            id=run_id,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]  # a word of the user's
            dir=self.folder,
            config=config,
        )
        run.define_metric(EPOCH)
        run.define_metric("*", step_metric=EPOCH)
        run.define_metric(metric_names.DSC_MEAN, step_metric=EPOCH, summary="max")
        return run

    def _add(self, epoch: int, name: str, value: Callable[[], Any]) -> None:
        if epoch != self._epoch:
            self._epoch, self._row = epoch, {}
        self._row[name] = value

    def _send(self, epoch: int) -> None:
        row, self._row = self._row, {}
        if self._run is None or self._logged is None or not self._logged.is_new(epoch):
            return
        run = self._run
        self._logged.note(epoch, offline=run.offline)

        def send() -> bool:
            for name in row.keys() - self._hidden:
                if name.startswith(metric_names.DETAILS) and not name.endswith(
                    "/mean"
                ):  # kept, without a panel: 13 organs would make 150 of them
                    run.define_metric(name, step_metric=EPOCH, hidden=True)
                    self._hidden.add(name)
            run.log({EPOCH: epoch, **{name: value() for name, value in row.items()}}, step=epoch, commit=True)
            return True

        if _attempt(f"logging epoch {epoch}", send, self._say) is None:
            self._run = None
            self._stop_service()
            self._leave()

    def _send_checkpoints(self) -> None:
        run = self._run

        def send() -> None:
            for kind, path in self._saved.items():
                artifact = self._wandb.Artifact(f"{kind}-{run.id}", type="model", metadata={"epochs": self._epoch})
                artifact.add_file(str(path), policy="immutable")
                run.log_artifact(artifact, aliases=[kind])

        _ = _attempt("sending checkpoints", send, self._say)

    def _clear_staging(self) -> None:
        """Remove what wandb copied to send it and then left there; offline sessions that wait still need theirs."""
        place = self.folder / "wandb"
        if PLACES[0] in self._places and all(any(one.glob("*.synced")) for one in place.glob("offline-run-*")):
            shutil.rmtree(place / "artifacts" / "staging", ignore_errors=True)

    def _stop_service(self) -> None:
        _ = _attempt("", lambda: self._wandb.teardown(exit_code=1), lambda *_: None)

    def _leave(self) -> None:
        """Another training of this process has its own places."""
        for name in self._places:
            os.environ.pop(name, None)
        self._places = []

    def _say(self, doing: str, error: BaseException) -> None:
        table = self.folder / CSV_FOLDER / TABLE
        warn(f"wandb failed at {doing} ({_in_a_line(error)}); the training goes on, and its figures are in {table}")

    def _say_offline(self, _: str, error: BaseException) -> None:
        runs = self.folder / "wandb" / "offline-run-*"
        warn(
            f"wandb can't reach its server ({_in_a_line(error)}); the training goes on and is logged offline: "
            f"'wandb sync {runs}' sends it later"
        )


class DashboardSession(Callback):
    """Begins ``dashboard``'s run on rank 0, and keeps the run's id in every checkpoint, as plain text.

    A training that is resumed in its own folder goes on with its run; one that starts from another folder's checkpoint
    is a run of its own, whose config says where it came from. Without a dashboard the id is handed on.
    """

    def __init__(self, run: Path, dashboard: WandbDashboard | None) -> None:
        self.run = run
        self.dashboard = dashboard
        self.run_id: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id} if self.run_id else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run_id = state_dict.get("run_id")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        origin = trainer.ckpt_path
        own = origin is not None and Path(origin).resolve().is_relative_to(self.run.resolve())
        older = None if own else self.run_id
        # the session that saved its own checkpoint may have had no dashboard
        self.run_id = (self.run_id or logged_run_id(self.run)) if own else None
        if self.dashboard is None:
            return
        self.run_id = self.run_id or secrets.token_hex(4)  # a name that no other run of wandb's has
        plan = plan_to_json(segmentation_module(pl_module).plan)
        del plan["fingerprint"]  # the statistics it was made of
        config = {**_run_config(self.run), "plan": plan, **environment()}
        if older is not None:
            config["continued_from"] = {"run_id": older, "checkpoint": str(origin)}
        self.dashboard.begin(self.run, self.run_id, config, first_epoch=trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.dashboard is not None:
            self.dashboard.complete = is_complete(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A session that ends on purpose, as for a requeue, has not failed."""
        if self.dashboard is not None:
            failed = isinstance(exception, Exception | KeyboardInterrupt)
            self.dashboard.exit_code = 1 if failed or getattr(exception, "code", None) else 0


def _run_config(run: Path) -> dict[str, Any]:
    """The settings in ``RUN/config.yaml``, written when the training was set up; {} without it."""
    path = run / "config.yaml"
    return read_yaml(path, ConfigError, "expected the settings of a run") if path.is_file() else {}


def _attempt(doing: str, call: Callable[[], _Result], say: Callable[[str, BaseException], None]) -> _Result | None:
    """What ``call`` returns; None, and a word about it, where it raises: nothing in wandb is worth a training."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # wandb's, its service's and the network's have no common base; it exits
        say(doing, error)
        return None


def finish_within(within_s: float | None, close: Callable[[], object]) -> bool:
    """Close a wandb run and return True; raises what wandb raises, TimeoutError where it takes over ``within_s``.

    Its service is killed then, for wandb would wait for it once more, without a limit, when the interpreter ends.
    """
    raised: list[Exception] = []

    def finish() -> None:
        try:
            close()
        except Exception as error:  # handed on to the thread that waits
            raised.append(error)

    closing = threading.Thread(target=finish, daemon=True)
    closing.start()
    closing.join(within_s)
    if closing.is_alive():
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith(SERVICE):
                    process.kill()
        raise TimeoutError(f"not done after {within_s:.0f} s")
    if raised:
        raise raised[0]
    return True


def _in_a_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:199] + "…"
