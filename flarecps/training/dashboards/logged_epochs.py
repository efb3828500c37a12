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
        atomic.write_json(self.path, content)

    def believe_server(self, epoch: int) -> None:
        """Of an online run the server knows the last epoch: what was sent and did not arrive is to be sent again.

        But what was logged offline it has not seen yet.
        """
        self.last = max(epoch, self.offline)


def known_id(run: Path) -> str | None:
    """The wandb run that was last logged from the folder ``run``; None without one."""
    found = _content(run).get("id")
    return str(found) if found else None


def _whole(number: object) -> int:
    return number if isinstance(number, int) else 0


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
