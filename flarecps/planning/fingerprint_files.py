"""The fingerprint of a data set, case by case from its files: in parallel, in shards, continued after an interruption.

With a folder, every case's fingerprint is a JSON file ``cases/NAME.json`` there, written whole or not at all, that says
which files it was made from; one that is out of date is made again. Shards of a job array share the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flarecps import atomic
from flarecps.batch_processing import Outcome, process_cases, shard
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import DatasetError
from flarecps.planning.fingerprint import Fingerprint, FingerprintAccumulator, fingerprint_case, is_ct
from flarecps.volumes.io import read_channels, read_labels

FORMAT = "flarecps-fingerprint"
VERSION = 1


@dataclass(frozen=True)
class _Entry:
    """One case to read."""

    case: Case
    labels: Path | None  # where they may be used: only for labelled cases
    ct: bool
    known_labels: tuple[int, ...]
    file: Path | None  # where its fingerprint is kept


def fingerprint_dataset(
    catalogue: Catalogue, workers: int, progress: bool = True, folder: Path | None = None
) -> tuple[Fingerprint, list[Outcome[Fingerprint]]]:
    """The fingerprint of all labelled and unlabelled scans, and the outcomes of the cases that could not be read.

    Cases are added as they end, so memory does not grow with their number. What is in ``folder`` and up to date is
    used, the rest is added there, and ``folder/fingerprint.json`` holds the whole. Raises ``DatasetError`` when no
    labelled case could be read.
    """
    tally = FingerprintAccumulator()
    _, failures = _process(catalogue, None, folder, workers, progress, tally.add)
    fingerprint = tally.total()
    if not fingerprint.count("labelled"):
        first = f"; the first failed: {failures[0].error}" if failures else ""
        raise DatasetError(f"{catalogue.root}: no labelled case could be read{first}")
    if folder is not None:
        _write(folder / "fingerprint.json", {"format": FORMAT, "version": VERSION, **fingerprint.to_json()})
    return fingerprint, failures


def fingerprint_shard(
    catalogue: Catalogue, share: str, folder: Path, workers: int, progress: bool = True
) -> tuple[int, list[Outcome[Fingerprint]]]:
    """How many cases share "I/N" has, and the outcomes of those that could not be read; the others are in ``folder``.

    Raises ``ConfigError`` when ``share`` is not I/N.
    """
    return _process(catalogue, share, folder, workers, progress, lambda _: None)


def _source_signature(entry: _Entry) -> dict[str, Any]:
    """What a case's fingerprint depends on; a file that says the same is up to date."""
    files = [*entry.case.images, *([] if entry.labels is None else [entry.labels])]
    states = [(path.name, path.stat()) for path in files]
    return {
        "role": entry.case.role,
        "ct": entry.ct,
        "known_labels": None if entry.labels is None else list(entry.known_labels),
        "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
    }


def _process(
    catalogue: Catalogue,
    share: str | None,
    folder: Path | None,
    workers: int,
    progress: bool,
    receive: Callable[[Fingerprint], None],
) -> tuple[int, list[Outcome[Fingerprint]]]:
    """Hand every case's fingerprint to ``receive``, from its file or newly made; number of cases, failed outcomes."""
    ct, known = is_ct(catalogue.channels), tuple(catalogue.labels.values())
    cases = shard((*catalogue.labelled, *catalogue.unlabelled), share)
    waiting = []
    for case in cases:
        file = None if folder is None else folder / "cases" / f"{case.name}.json"
        entry = _Entry(case, case.labels if case.role == "labelled" else None, ct, known, file)
        if (found := _read_current(entry)) is None:
            waiting.append((case.name, entry))
        else:
            receive(found)
    if cases and folder is not None:
        (folder / "cases").mkdir(parents=True, exist_ok=True)
    present = len(cases) - len(waiting)
    title = f"Fingerprint ({present} there already)" if present else "Fingerprint"
    outcomes = process_cases(_make, waiting, workers, title, progress, received=lambda _, value: receive(value))
    return len(cases), [outcome for outcome in outcomes if outcome.failed]


def _make(entry: _Entry) -> Fingerprint:
    # before reading, so that a file that changes meanwhile is stale
    source = None if entry.file is None else _source_signature(entry)
    volume = read_channels(entry.case.images)
    labels = None if entry.labels is None else read_labels(entry.labels)
    made = fingerprint_case(volume, labels, entry.case.name, entry.case.role, entry.ct, entry.known_labels)
    if entry.file is not None:
        _write(entry.file, {"format": FORMAT, "version": VERSION, "made_from": source, **made.to_json()})
    return made


def _read_current(entry: _Entry) -> Fingerprint | None:
    """The fingerprint in the case's file; None when there is none, it is out of date, or it is not one."""
    if entry.file is None or not entry.file.is_file():
        return None
    try:
        content = json.loads(entry.file.read_text(encoding="utf-8"))
        found = content["format"], content["version"], content["made_from"]
        return Fingerprint.from_json(content) if found == (FORMAT, VERSION, _source_signature(entry)) else None
    except (OSError, ValueError, KeyError, TypeError):  # a missing scan is reported when it is to be read
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic.write_text(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")
