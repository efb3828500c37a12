"""Scans in, label files out: which scans there are, what each result is called, and every one of them done."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from flarecps import atomic
from flarecps.casework import Outcome, work_through
from flarecps.errors import ConfigError, ScanError
from flarecps.inference.segmenter import Segmenter
from flarecps.planning.plan import Plan
from flarecps.volumes.io import find_scans, is_scan_file, read_channels, scan_name, write_labels

RESULT_SUFFIX = ".nii.gz"
DATASET_JSON = "dataset.json"
SIGNATURE = "labels predicted by flarecps segment"  # marks a dataset.json that may be replaced


@dataclass(frozen=True)
class Request:
    """One scan to be segmented: a file per channel (or one DICOM folder), and where its labels go."""

    name: str
    scans: tuple[Path, ...]
    result: Path


@dataclass(frozen=True)
class Segmented:
    """One finished case: its file, how long it took, and remarks on the scan's header."""

    result: Path
    seconds: float
    skipped: bool = False  # it was there already
    warnings: tuple[str, ...] = ()


def requests_for(scans: Path, output: Path, channels: int = 1) -> list[Request]:
    """What to segment: ``scans`` is one image file, one DICOM series folder, or a folder with any mix of both.

    ``X_0000.nii.gz`` and ``X.mha`` become ``X.nii.gz``, a DICOM folder its own name; with several channels
    ``X_0000``, ``X_0001``, … belong together. ``output`` is a folder, or, for one scan, a file ending in
    .nii.gz or .nii. Nothing is read or written yet. Raises ScanError when there is nothing to segment,
    ConfigError when two results would have one name or a result would replace a scan.
    """
    found = find_scans(scans) if scans.is_dir() else [scans]
    if not scans.exists():
        raise ScanError(f"{scans}: no such file or folder; expected a scan, a DICOM series or a folder of scans")
    if not found:
        raise ScanError(f"{scans}: no scan in this folder; expected NIfTI, NRRD or MHA files, or DICOM series folders")
    groups = _by_patient(found, channels)
    if output.name.endswith((".nii.gz", ".nii")):
        if len(groups) > 1:
            raise ConfigError(f"{output}: a file name for the results of {len(groups)} scans; name a folder instead")
        requests = [Request(scan_name(output), files, output) for _, files in groups]
    else:
        requests = [Request(name, files, output / f"{name}{RESULT_SUFFIX}") for name, files in groups]
    _check_results(requests)
    return requests


def segment_folder(
    checkpoint: Path | str | Sequence[Path | str],
    scans: Path | str,
    output: Path | str,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> list[Outcome[Segmented]]:
    """One outcome per scan found under ``scans`` (see ``requests_for``); labels lie on each scan's own grid.

    Finished cases are skipped unless ``overwrite``; a scan that fails keeps its error and the others go on. A
    folder ``output`` also gets a dataset.json with the label set. ``workers`` processes segment a scan each, every one
    with its own copy of the networks; 1 stays in this process. Several checkpoints are averaged. ``settings`` are
    those of ``Segmenter.load``.
    """
    scans, output = Path(scans), Path(output)
    checkpoints = (checkpoint,) if isinstance(checkpoint, str | Path) else tuple(checkpoint)
    if not scans.exists():  # a mistyped path is answered before the model is loaded
        requests_for(scans, output)
    task = _Task(tuple(Path(one) for one in checkpoints), tuple(sorted(settings.items())), overwrite)
    try:
        plan = task.segmenter().plan
        requests = requests_for(scans, output, len(plan.channels))
        if requests[0].result != output:
            _describe(output, plan, overwrite)
        if len(requests) == 1:
            task = _Task(task.checkpoints, task.settings, overwrite, show_progress=progress)
            return work_through(task, [(requests[0].name, requests[0])], progress=False)
        return work_through(task, [(one.name, one) for one in requests], workers, "Segmenting", progress)
    finally:
        _loaded.cache_clear()


@dataclass(frozen=True)
class _Task:
    """Segments one request; travels to worker processes, where the model is loaded once."""

    checkpoints: tuple[Path, ...]
    settings: tuple[tuple[str, Any], ...]
    overwrite: bool
    show_progress: bool = field(default=False)

    def segmenter(self) -> Segmenter:
        return _loaded(self.checkpoints, self.settings)

    def __call__(self, request: Request) -> Segmented:
        if request.result.exists() and not self.overwrite:
            return Segmented(request.result, 0.0, skipped=True)
        began = time.monotonic()
        volume = read_channels(request.scans)
        labels = self.segmenter()(volume, self.show_progress, began)
        write_labels(request.result, labels, volume.source)
        return Segmented(request.result, time.monotonic() - began, warnings=volume.warnings)


@lru_cache(maxsize=1)
def _loaded(checkpoints: tuple[Path, ...], settings: tuple[tuple[str, Any], ...]) -> Segmenter:
    return Segmenter.load(checkpoints, **dict(settings))


def _by_patient(scans: Sequence[Path], channels: int) -> list[tuple[str, tuple[Path, ...]]]:
    """(name of the result, files) per patient; with several channels the files ending in _0000, _0001, … in order."""
    if channels == 1:
        return [(_result_name(path), (path,)) for path in scans]
    parts: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in scans:
        match = re.fullmatch(r"(.+)_(\d{4})", scan_name(path)) if path.is_file() else None
        if match is None:
            raise ScanError(
                f"{path}: this model takes {channels} channels; expected files CASE_0000 to CASE_{channels - 1:04d}"
            )
        parts[match[1]][int(match[2])] = path
    if len(scans) == 1:  # one named file stands for its patient: its channels lie beside it
        only = scans[0]
        ((name, _),) = parts.items()
        parts[name] = {
            int(scan_name(path)[-4:]): path
            for path in only.parent.iterdir()
            if is_scan_file(path) and re.fullmatch(re.escape(name) + r"_\d{4}", scan_name(path))
        }
    for name, files in parts.items():
        if sorted(files) != list(range(channels)):
            there = ", ".join(f"_{number:04d}" for number in sorted(files))
            raise ScanError(
                f"{scans[0].parent / name}: channels {there}; this model takes _0000 to _{channels - 1:04d}"
            )
    return [(name, tuple(files[number] for number in sorted(files))) for name, files in sorted(parts.items())]


def _result_name(path: Path) -> str:
    if path.is_dir():
        return path.resolve().name
    return re.sub(r"(?<=.)_0000$", "", scan_name(path))


def _check_results(requests: Sequence[Request]) -> None:
    first: dict[Path, Request] = {}
    scans = {path.resolve(): path for request in requests for path in request.scans}
    for request in requests:
        other = first.setdefault(request.result, request)
        if other is not request:
            raise ConfigError(
                f"{request.result}: the result of both {other.scans[0]} and {request.scans[0]}; rename one of them, "
                "or segment them into different folders"
            )
        if request.result.resolve() in scans:
            raise ConfigError(f"{request.result}: the result would replace the scan itself; name another output folder")


def _describe(output: Path, plan: Plan, overwrite: bool) -> None:
    """Write ``output``/dataset.json with the label set; refuse a folder that holds results of another one."""
    path = output / DATASET_JSON
    content = {
        "name": plan.dataset,
        "description": SIGNATURE,
        "channel_names": {str(number): name for number, name in enumerate(plan.channels)},
        "labels": plan.labels,
        "file_ending": RESULT_SUFFIX,
    }
    if path.exists():
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            present = None
        if isinstance(present, dict) and present.get("labels") == plan.labels:
            return
        ours = isinstance(present, dict) and present.get("description") == SIGNATURE
        if not (ours and overwrite):
            raise ConfigError(
                f"{path}: this folder's label set is not the checkpoint's; name an empty output folder"
                + (", or replace all its results with --overwrite" if ours else "")
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, content)
    except OSError as error:
        raise ConfigError(f"{output}: can't write there ({error.strerror}); name another output folder") from error
