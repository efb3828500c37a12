"""The loggers a run has unless its config names others: wandb, offline, and CSV beside it."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

CSV_FOLDER = "csv"


def default_loggers(run: Path, name: str) -> list[Logger]:
    """wandb without an account (offline, unless ``WANDB_MODE`` says otherwise) and ``RUN/csv/metrics.csv``.

    An offline run is sent to a server later with ``wandb sync RUN/wandb/offline-run-*``.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    run.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [CSVLogger(save_dir=run, name=None, version=CSV_FOLDER)]
    if mode != "disabled":
        os.environ.setdefault("WANDB_SILENT", "true")
        loggers.append(WandbLogger(save_dir=run, name=name, project="flarecps", offline=mode == "offline"))
    return loggers
