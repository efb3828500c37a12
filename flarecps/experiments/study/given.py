"""Another program's predictions as an arm of a study: links to its label maps of the scans that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flarecps.atomic import write_json
from flarecps.case_names import composed
from flarecps.datasets.layouts import Case, link_cases
from flarecps.errors import DatasetError, counted, first_few
from flarecps.volumes.discovery import by_case, label_maps
from flarecps.volumes.io import is_scan_file


def link_given(folder: Path, judges: Sequence[Case], labels: Mapping[str, int], out: Path, scans: Path) -> None:
    """Links in ``out`` to the label maps in ``folder`` of the cases that judge, and a dataset.json with ``labels``.

    Other files in ``folder`` are left alone. DatasetError where a case has no label map; ``scans``: where to find it.
    """
    cure = f"expected label maps of the {counted(len(judges), 'scan')} in {scans}, by their names"
    try:
        found = label_maps(folder)
    except DatasetError as error:
        raise DatasetError(f"{error}; {cure}") from None
    maps = by_case(found, {composed(case.name): folder for case in judges})
    if missing := [case.name for case in judges if composed(case.name) not in maps]:
        raise DatasetError(f"{folder}: no prediction of {first_few(missing)}; {cure}")
    cases = [replace(case, images=(), labels=maps[composed(case.name)]) for case in judges]
    link_cases(cases, out, out)
    write_json(out / "dataset.json", {"labels": dict(labels)})


def state_of(folder: Path) -> str:
    """Names, sizes and times of the files in ``folder``: others are other predictions. Empty without the folder."""
    try:
        files = [path for path in folder.iterdir() if is_scan_file(path)]
        return repr(sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files))
    except OSError:
        return ""
