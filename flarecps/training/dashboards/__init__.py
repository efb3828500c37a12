"""Where a run's figures go: a table beside it, always, and wandb, unless it is switched off."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from flarecps.training.dashboards.metrics_table import CSV_FOLDER, MetricsTable
from flarecps.training.dashboards.wandb_run import DashboardSession, WandbDashboard, finish_within

__all__ = ["DashboardSession", "MetricsTable", "WandbDashboard", "finish_dashboards", "loggers_of"]


def loggers_of(given: Any, run: Path) -> list[Logger]:
    """The loggers of a training: those of its config, and the table ``RUN/csv/metrics.csv`` before them.

    Without a config's own (``given`` is None or True) that is wandb; with ``WANDB_MODE=disabled`` no wandb at all.
    Lightning's ``WandbLogger`` becomes a ``WandbDashboard`` of the same settings. ``false`` wants none, not even the
    table.
    """
    if given is False:
        return []
    if given in (None, True):
        given = [WandbDashboard()]
    given = [_guarded(one) for one in (given if isinstance(given, list | tuple) else [given])]
    if os.environ.get("WANDB_MODE") == "disabled":
        given = [one for one in given if not isinstance(one, WandbDashboard)]
    if any(isinstance(one, MetricsTable) for one in given):
        return given
    others = [one for one in given if type(one) is not CSVLogger]  # a second table would hold the same
    return [MetricsTable(save_dir=run, name=None, version=CSV_FOLDER), *others]


def _guarded(logger: Logger) -> Logger:
    if not isinstance(logger, WandbLogger):
        return logger
    settings = {name: value for name, value in logger._wandb_init.items() if value is not None}
    settings = {name: value for name, value in settings.items() if name not in ("dir", "id", "resume", "anonymous")}
    mode = "offline" if logger._offline else settings.pop("mode", None)
    return WandbDashboard(mode=mode, checkpoints=bool(logger._log_model), **settings)


def finish_dashboards(within_s: float) -> None:
    """Close this process's wandb run, if it has one, so that the next training in the process begins its own.

    With a limit, for a job that ends soon must be requeued before, whatever the network.
    """
    if "wandb" in sys.modules:
        import wandb

        if wandb.run is not None:
            with contextlib.suppress(Exception):  # its service may be gone; what it held is on disk
                finish_within(within_s, wandb.finish)
