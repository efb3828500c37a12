"""The loggers a run has unless its config names others: wandb, offline, and CSV beside it."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from flarecps import atomic

CSV_FOLDER = "csv"


class MetricsTable(CSVLogger):
    """``metrics.csv``, which a resumed run continues (Lightning's own begins by deleting it).

    What an earlier session logged stays up to the epoch at which this one begins; a new run begins at epoch 0.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._continued = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is not None:
            return self._experiment
        table = Path(self.log_dir, "metrics.csv")
        earlier = table.read_text() if table.is_file() else ""
        table.unlink(missing_ok=True)  # or Lightning deletes it, with a warning
        writer = super().experiment
        if earlier:
            atomic.write_text(table, earlier)
            writer.metrics_keys = next(csv.reader(earlier.splitlines()))
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._continued:
            self._continued = True
            _keep_before(Path(self.experiment.metrics_file_path), epoch=float(metrics.get("epoch", 0)))
        super().log_metrics(metrics, step)


def _keep_before(table: Path, epoch: float) -> None:
    """Leave only the rows of epochs before ``epoch`` in a CSV file, if it exists."""
    if not table.is_file():
        return
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if row.get("epoch") and float(row["epoch"]) < epoch]
        columns = list(reader.fieldnames or [])
    with atomic.atomic_path(table) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def default_loggers(run: Path, name: str) -> list[Logger]:
    """wandb without an account (offline, unless ``WANDB_MODE`` says otherwise) and ``RUN/csv/metrics.csv``.

    An offline run is sent to a server later with ``wandb sync RUN/wandb/offline-run-*``.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    run.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [MetricsTable(save_dir=run, name=None, version=CSV_FOLDER)]
    if mode != "disabled":
        os.environ.setdefault("WANDB_SILENT", "true")
        offline = mode in ("offline", "dryrun")  # Lightning sets the latter, its older name
        loggers.append(WandbLogger(save_dir=run, name=name, project="flarecps", offline=offline))
    return loggers


def finish_dashboards() -> None:
    """Close this process's wandb run, if it has one, so that the next training in the process begins its own."""
    if "wandb" in sys.modules:
        import wandb

        if wandb.run is not None:
            wandb.finish()
