"""What is known of each finished scan beside its labels: a small file per scan, and tables of all of them.

The files are the truth; the tables are made of them, so any number of jobs may work on one folder, and a table that a
killed run left behind is made anew by the next.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from flarecps import atomic

Record: TypeAlias = dict[str, Any]  # plain types; "case" is the scan's name
SUFFIX = ".json"


def record_path(output: Path, kind: str, name: str) -> Path:
    """Where the record of scan ``name`` is kept: ``OUTPUT/KIND/NAME.json``."""
    return output / kind / f"{name}{SUFFIX}"


def write_record(output: Path, kind: str, record: Record) -> None:
    """Keep the record of one scan, atomically."""
    path = record_path(output, kind, record["case"])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, record)


def write_tables(
    output: Path,
    kind: str,
    rows: Callable[[Sequence[Record]], Sequence[Mapping[str, object]]],
    arrange: Callable[[Sequence[Record]], list[Record]] = list,
) -> None:
    """``OUTPUT/KIND.json``, all records as ``arrange`` orders them, and ``KIND.csv``, made of them by ``rows``.

    Every job of an array may do this at any time: whoever is last has seen every record.
    """
    there = _records(output, kind)
    while there:
        records = arrange([json.loads(path.read_text(encoding="utf-8")) for path in there])
        atomic.write_json(output / f"{kind}.json", records)
        atomic.write_text(output / f"{kind}.csv", _csv(rows(records)))
        before, there = there, _records(output, kind)
        if there == before:
            return


def number(value: float | None, decimals: int) -> str:
    """A number for a table's cell; empty for None."""
    return "" if value is None else f"{value:.{decimals}f}"


def _records(output: Path, kind: str) -> list[Path]:
    found = (output / kind).glob(f"*{SUFFIX}")
    return sorted(path for path in found if not path.name.startswith(atomic.PARTIAL_PREFIX))


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
