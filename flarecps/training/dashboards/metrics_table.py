"""``RUN/csv/metrics.csv``: every figure of a run in a file that needs no service, and how much of it wandb has."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from flarecps import atomic
from flarecps.errors import ConfigError
from flarecps.json_fields import is_whole
from flarecps.text_files import Table, read_csv, read_own_json, read_text
from flarecps.training.side_files import side_file

CSV_FOLDER = "csv"
EXPECTED = "expected the table that a training logs to: move it away to begin a new one"
TABLE = "metrics.csv"
WANDB_RUN_FILE = "wandb-run.json"


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
        table = Path(self.log_dir, TABLE)
        earlier = read_text(table, ConfigError, EXPECTED) if table.is_file() else ""
        columns = list(_rows(table).columns)
        table.unlink(missing_ok=True)  # or Lightning deletes it, with a warning
        writer = super().experiment
        if earlier:
            atomic.write_text(table, earlier)
            writer.metrics_keys = columns
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._continued:
            self._continued = True
            with side_file(self._table):
                _keep_before(self._table, epoch=float(metrics.get("epoch", 0)))
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Append what was logged since; where that can't be, the file stays as it was and the next time tries again."""
        writer, table = self.experiment, self._table
        with side_file(table):
            new = {name for row in writer.metrics for name in row} - set(writer.metrics_keys)
            size = table.stat().st_size if table.is_file() else 0
            if new and size:  # Lightning would empty the file before it writes it anew
                columns = sorted({*writer.metrics_keys, *new})
                size = _with_columns(table, columns)
                writer.metrics_keys = columns
            try:
                super().save()
            except OSError:
                if size:
                    os.truncate(table, size)
                else:
                    table.unlink(missing_ok=True)
                raise

    @property
    def _table(self) -> Path:
        return Path(self.log_dir, TABLE)


def _keep_before(table: Path, epoch: float) -> None:
    """Leave only the rows of epochs before ``epoch`` in a CSV file, if it exists."""
    if not table.is_file():
        return
    found = _rows(table)
    rows = [row for row in found.rows if _number(row.get("epoch")) < epoch]
    _write_rows(table, found.columns, rows)


def _with_columns(table: Path, columns: list[str]) -> int:
    """Give a CSV file these columns, empty where it lacks them; its size then."""
    _write_rows(table, columns, _rows(table).rows)
    return table.stat().st_size


def _write_rows(table: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with atomic.atomic_path(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def rows_between(table: Path, after: int, before: int) -> dict[int, dict[str, float]]:
    """By completed epochs, what ``metrics.csv`` holds of those after ``after`` and before ``before``; {} without it.

    What an earlier session could not log (wandb was off, or gave up) is found here.
    """
    if not table.is_file():
        return {}
    rows: dict[int, dict[str, float]] = {}
    for row in _rows(table).rows:
        values = {name: _number(cell) for name, cell in row.items() if name and name != "step"}
        epoch = values.pop("epoch", math.nan) + 1
        if after < epoch < before:
            rows.setdefault(int(epoch), {}).update({name: x for name, x in values.items() if not math.isnan(x)})
    return dict(sorted(rows.items()))


def _rows(table: Path) -> Table:
    """What a ``metrics.csv`` holds, its last line left out while it is being written; nothing without the file."""
    return read_csv(table, ConfigError, EXPECTED, growing=True) if table.is_file() else Table((), ())


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return math.nan


class LoggedEpochs:
    """Remembers in ``RUN/wandb-run.json`` which wandb run is this training's, and its last logged epoch."""

    def __init__(self, run: Path, run_id: str) -> None:
        self.path = run / WANDB_RUN_FILE
        self.run_id = run_id
        content = _content(run)
        mine = content if content.get("id") == run_id else {}
        self.last = _whole(mine.get("logged_epochs"))  # completed epochs, counted from 1
        self.offline = _whole(mine.get("offline_epochs"))  # the last that was logged offline, to be sent by wandb sync

    def is_new(self, epoch: int) -> bool:
        """Whether nothing of ``epoch`` or a later one has been logged."""
        return epoch > self.last

    def note(self, epoch: int, offline: bool) -> None:
        """Take ``epoch`` as logged; called before, for a point that is missing is better than one that is twice."""
        self.last = epoch
        self.offline = epoch if offline else self.offline
        content = {"id": self.run_id, "logged_epochs": self.last, "offline_epochs": self.offline}
        with side_file(self.path):
            atomic.write_json(self.path, content)

    def sync_with_server(self, epoch: int) -> None:
        """Of an online run the server knows the last epoch: what was sent and did not arrive is to be sent again.

        But what was logged offline it has not seen yet.
        """
        self.last = max(epoch, self.offline)


def logged_run_id(run: Path) -> str | None:
    """The wandb run that was last logged from the folder ``run``; None without one."""
    found = _content(run).get("id")
    return str(found) if found else None


def _whole(number: object) -> int:
    return int(str(number)) if is_whole(number) else 0


def _content(run: Path) -> dict[str, object]:
    return read_own_json(run / WANDB_RUN_FILE)
