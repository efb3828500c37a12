"""``RUN/csv/metrics.csv``: every figure of a run, in a file that needs no service."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
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
