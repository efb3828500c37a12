"""Measured runs on disk: one record per case, and tables over all of them with FLARE's columns.

OUT/cases/NAME.json, NAME.samples.csv, NAME.png, NAME.svg   OUT/efficiency.csv   OUT/efficiency_all.csv
The tables are made from the records, so a case measured again replaces its row, and no run can spoil another's.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from flarecps import __version__
from flarecps.atomic import PARTIAL_PREFIX, write_json, write_text
from flarecps.errors import ConfigError
from flarecps.evaluation.efficiency import FLARE_COLUMNS, Trace, figures_row, host_cpu_percent, tree_cpu_percent
from flarecps.evaluation.measured_run import MeasuredRun

FORMAT, FORMAT_VERSION = "flarecps-efficiency", 1
CASES = "cases"
DECIMALS = 3  # of the further columns


def case_name(name: str) -> str:
    """``name`` if it can be a file's name. Raises ConfigError otherwise."""
    if not name.strip() or "/" in name or "\\" in name or name.startswith("."):
        raise ConfigError(f"--name {name!r}: expected the case's name, without folders (it names files in OUT/{CASES})")
    return name


def write_run(out: Path, name: str, run: MeasuredRun, card: str | None, started: str, remarks: Sequence[str]) -> int:
    """Write the record and samples of a run and the tables of all runs in ``out``; returns how many are in these.

    A run with another exit code than 0 is recorded, but is in no table.
    """
    folder = out / CASES
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.samples.csv", samples_csv(run.trace))
    write_json(folder / f"{name}.json", record(name, run, card, started, remarks))
    rows = _good_rows(folder)
    further = list(dict.fromkeys(key for row in rows for key in row if key not in FLARE_COLUMNS))
    write_text(out / "efficiency.csv", _csv(FLARE_COLUMNS, rows))
    write_text(out / "efficiency_all.csv", _csv((*FLARE_COLUMNS, *further), rows))
    return len(rows)


def record(name: str, run: MeasuredRun, card: str | None, started: str, remarks: Sequence[str]) -> dict[str, Any]:
    """Everything about a run but its samples, as plain types."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "flarecps": __version__,
        "name": name,
        "command": list(run.command),
        "started": started,
        "exit_code": run.exit_code,
        "interrupted": run.interrupted,
        "outlived_by": list(run.left),
        "machine": {
            "cores": run.trace.cores,
            "ram_mb": round(psutil.virtual_memory().total / 2**20),
            "card": card,
        },
        "interval_s": run.trace.interval_s,
        "figures": dict(figures_row(name, run.trace, run.exit_code)),
        "remarks": list(remarks),
    }


def samples_csv(trace: Trace) -> str:
    """All readings: time, and processor and memory of machine, process tree and card."""
    columns = {
        "time_s": trace.time_s,
        "host_cpu_percent": host_cpu_percent(trace),
        "host_ram_mb": trace.host_ram_mb,
        "tree_cpu_percent": tree_cpu_percent(trace),
        "tree_cpu_s": trace.tree_cpu_s,
        "tree_ram_mb": trace.tree_ram_mb,
        "card_mb": trace.card_mb,
        "tree_card_mb": trace.tree_card_mb,
    }
    there = {name: values for name, values in columns.items() if values is not None}
    lines = [",".join(there)]
    lines += [",".join(f"{number:.{DECIMALS}f}" for number in row) for row in zip(*there.values(), strict=True)]
    return "\n".join(lines) + "\n"


def _good_rows(folder: Path) -> list[Mapping[str, Any]]:
    """The figures of all finished runs in a folder, by name."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(PARTIAL_PREFIX):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == FORMAT and content["exit_code"] == 0:
                rows.append(content["figures"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: not the record of a measured run ({error!r}); remove it, or give --out another folder"
            ) from error
    return rows


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return round(value, DECIMALS) if isinstance(value, float) else value
