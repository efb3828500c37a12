"""The wandb run of a training: begun at its start, the same one after every resume, closed at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from flarecps.planning.plan import plan_to_json
from flarecps.training.callbacks.record import environment, is_complete
from flarecps.training.dashboards.logged_epochs import known_id
from flarecps.training.dashboards.wandb_run import WandbDashboard, new_run_id
from flarecps.training.module import segmentation_module


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
        module = segmentation_module(pl_module)
        origin = trainer.ckpt_path
        own = origin is not None and Path(origin).resolve().is_relative_to(self.run.resolve())
        older = self.run_id if not own else None
        if own:
            self.run_id = self.run_id or known_id(self.run)  # the session that saved it may have had no dashboard
        else:
            self.run_id = None
        if self.dashboard is None:
            return
        self.run_id = self.run_id or new_run_id()
        config = {**run_config(self.run), "plan": _plan(plan_to_json(module.plan)), **environment()}
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


def run_config(run: Path) -> dict[str, Any]:
    """The settings in ``RUN/config.yaml``, written when the training was set up; {} without it."""
    path = run / "config.yaml"
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else None
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}


def _plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan without the statistics it was made of."""
    return {name: value for name, value in plan.items() if name != "fingerprint"}
