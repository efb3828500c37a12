"""``RUN/csv/metrics.csv``: every figure of a run in a file that needs no service, and how much of it wandb has."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from flarecps import atomic
from flarecps.errors import ConfigError
from flarecps.json_fields import is_whole
from flarecps.metric_names import EPOCH, STEP, STEPS, completed_epochs
from flarecps.text_files import read_csv, read_own_json
from flarecps.training.side_files import side_file

CSV_FOLDER = "csv"
EXPECTED = "expected the table that a training logs to: move it away to begin a new one"
TABLE = "metrics.csv"
WANDB_RUN_FILE = "wandb-run.json"


class MetricsTable(CSVLogger):
    """``metrics.csv``: one row per epoch, numbered by completed epochs (the first is 1), and the steps taken by then.

    A resumed run continues it (Lightning's own begins by deleting it): what an earlier session logged stays up to the
    epoch at which this one begins. An older table (rows counted from 0, several per epoch) is turned into
    this one then.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._rows: dict[int, dict[str, Any]] | None = None  # by completed epochs; None before the first of them
        self._unsaved = False

    @property
    def experiment(self) -> Any:
        """None: the table is written here, not by Lightning's writer."""
        return None

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: ``RUN/config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of ``metrics["epoch"]`` (an index, from 0); ``step`` counts from 0, too."""
        epoch = int(metrics.get(EPOCH, 0)) + 1
        if self._rows is None:
            self._rows = {number: row for number, row in _rows_by_epoch(self._table).items() if number < epoch}
        row = self._rows.setdefault(epoch, {})
        row.update({name: float(value) for name, value in metrics.items() if name != EPOCH})
        if step is not None:
            row[STEPS] = step + 1
        self._unsaved = True

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since; where that can't be, the file stays as it was and the next time tries again."""
        if not self._unsaved or self._rows is None:
            return
        names = sorted({name for row in self._rows.values() for name in row} - {STEPS})
        with side_file(self._table):
            self._table.parent.mkdir(parents=True, exist_ok=True)
            with atomic.atomic_path(self._table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [EPOCH, STEPS, *names])
                writer.writeheader()
                writer.writerows({EPOCH: epoch, **row} for epoch, row in self._rows.items())
            self._unsaved = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @property
    def _table(self) -> Path:
        return Path(self.log_dir, TABLE)


def _rows_by_epoch(table: Path) -> dict[int, dict[str, Any]]:
    """The cells of a ``metrics.csv`` by completed epochs, ascending; {} without it.

    Its last line is left out while it is being written. Of two values of one epoch the last counts.
    """
    rows: dict[int, dict[str, Any]] = {}
    if not table.is_file():
        return rows
    for row in read_csv(table, ConfigError, EXPECTED, growing=True).rows:
        epoch = completed_epochs(row)
        if epoch is None:
            continue
        cells: dict[str, Any] = {
            name: cell for name, cell in row.items() if name and cell and name not in (EPOCH, STEP)
        }
        if math.isfinite(step := _number(row.get(STEP))):
            cells[STEPS] = int(step) + 1
        rows.setdefault(epoch, {}).update(cells)
    return dict(sorted(rows.items()))


def rows_between(table: Path, after: int, before: int) -> dict[int, dict[str, float]]:
    """By completed epochs, what ``metrics.csv`` holds of those after ``after`` and before ``before``; {} without it.

    What an earlier session could not log (wandb was off, or gave up) is found here.
    """
    return {
        epoch: {name: x for name, cell in row.items() if name != STEPS and not math.isnan(x := _number(cell))}
        for epoch, row in _rows_by_epoch(table).items()
        if after < epoch < before
    }


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
        content = read_own_json(self.path)
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
    found = read_own_json(run / WANDB_RUN_FILE).get("id")
    return str(found) if found else None


def _whole(number: object) -> int:
    return int(str(number)) if is_whole(number) else 0
