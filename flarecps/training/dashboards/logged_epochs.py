"""How far a run has been logged: a resumed run repeats epochs, and a dashboard must not show them twice."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from flarecps import atomic

FILE = "wandb-run.json"


class LoggedEpochs:
    """Remembers in ``RUN/wandb-run.json`` which wandb run is this training's, and its last logged epoch."""

    def __init__(self, run: Path, run_id: str) -> None:
        self.path = run / FILE
        self.run_id = run_id
        self.last = known_epochs(run, run_id)  # completed epochs, counted from 1

    def is_new(self, epoch: int) -> bool:
        """Whether nothing of ``epoch`` or a later one has been logged."""
        return epoch > self.last

    def note(self, epoch: int) -> None:
        """Take ``epoch`` as logged; called before, for a point that is missing is better than one that is twice."""
        self.last = epoch
        atomic.write_json(self.path, {"id": self.run_id, "logged_epochs": epoch})


def known_epochs(run: Path, run_id: str) -> int:
    """How many epochs of the wandb run ``run_id`` were logged from the folder ``run``; 0 for another run's file."""
    content = _content(run)
    epochs = content.get("logged_epochs")
    return epochs if isinstance(epochs, int) and content.get("id") == run_id else 0


def known_id(run: Path) -> str | None:
    """The wandb run that was last logged from the folder ``run``; None without one."""
    found = _content(run).get("id")
    return str(found) if found else None


def _content(run: Path) -> dict[str, object]:
    try:
        content = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def rows_between(table: Path, after: int, before: int) -> dict[int, dict[str, float]]:
    """By completed epochs, what ``metrics.csv`` holds of those after ``after`` and before ``before``; {} without it.

    What an earlier session could not log (wandb was off, or gave up) is found here.
    """
    if not table.is_file():
        return {}
    rows: dict[int, dict[str, float]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {name: _number(cell) for name, cell in row.items() if name}
            epoch = values.pop("epoch", math.nan)
            if epoch != epoch or not after < int(epoch) + 1 < before:
                continue
            values.pop("step", None)
            rows.setdefault(int(epoch) + 1, {}).update({name: x for name, x in values.items() if x == x})
    return dict(sorted(rows.items()))


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return math.nan
