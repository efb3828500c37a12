"""Scans in, label files out: which scans there are, what each result is called, and every one of them done."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flarecps import atomic
from flarecps.batch_processing import Outcome, process_cases, progress_bar, shard
from flarecps.errors import ConfigError, ScanError
from flarecps.inference.budget import Budget
from flarecps.inference.case_segmentation import CaseSegmentation, Segmented
from flarecps.inference.postprocessing import read_rules, rules_beside
from flarecps.inference.results import Products, Request
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.stages import in_stages
from flarecps.planning.plan import Plan
from flarecps.volumes.io import find_scans, is_scan_file, scan_name

__all__ = ["Products", "Request", "Segmented", "describe_results", "requests_for", "segment_folder", "segment_requests"]

RESULT_SUFFIX = ".nii.gz"
DATASET_JSON = "dataset.json"
SIGNATURE = "labels predicted by flarecps segment"  # marks a dataset.json that may be replaced
BESIDE = "auto"  # rules for post-processing that lie beside the checkpoint
TABLES_EVERY_S = 60.0  # tables of a long run are never older


def requests_for(scans: Path, output: Path, channels: int = 1) -> list[Request]:
    """What to segment: ``scans`` is one image file, one DICOM series folder, or a folder with any mix of both.

    ``X_0000.nii.gz`` and ``X.mha`` become ``X.nii.gz``, a DICOM folder its path below ``scans`` (``a/SERIES`` becomes
    ``a_SERIES``); with several channels ``X_0000``, ``X_0001``, … belong together. ``output`` is a folder, or, for
    one scan, a file ending in .nii.gz or .nii. Nothing is read or written yet. Raises ScanError when there is nothing
    to segment, ConfigError when two results would have one name or a result would replace a scan.
    """
    found = find_scans(scans) if scans.is_dir() else [scans]
    if not scans.exists():
        raise ScanError(f"{scans}: no such file or folder; expected a scan, a DICOM series or a folder of scans")
    if not found:
        raise ScanError(f"{scans}: no scan in this folder; expected NIfTI, NRRD or MHA files, or DICOM series folders")
    groups = _by_patient(found, channels, scans)
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
    *,
    share: str | None = None,
    products: Products | None = None,
    postprocess: Path | str | None = None,
    **settings: Any,
) -> list[Outcome[Segmented]]:
    """One outcome per scan found under ``scans`` (see ``requests_for``); labels lie on each scan's own grid.

    One more, of a name ending in "/", when the tables of all scans could not be written.

    Finished cases are skipped unless ``overwrite``; a scan that fails keeps its error and the others go on. A
    folder ``output`` also gets a dataset.json with the label set. Several checkpoints are averaged. ``settings`` are
    those of ``Segmenter.load``.

    Args:
        workers: processes that segment a scan each, every one with its own copy of the networks. 1 stays in this
            process, where the next scan is read and the last written while one is segmented.
        share: ``"I/N"``: only every Nth scan, from the Ith; all shares may write into one folder at once.
        products: what is wanted beside the labels.
        postprocess: a file of ``flarecps postprocess determine``, or ``"auto"``: the one beside the checkpoint.
    """
    scans, output = Path(scans), Path(output)
    checkpoints = tuple(Path(one) for one in ((checkpoint,) if isinstance(checkpoint, str | Path) else checkpoint))
    if not scans.exists():  # a mistyped path is answered before the model is loaded
        requests_for(scans, output)
    products = products or Products()
    if products.agreement and settings.get("budget", Budget()).seconds is not None:
        raise ConfigError("agreement runs the networks twice, beyond a limit of time: leave out one of the two")
    task = _Task(checkpoints, tuple(sorted(settings.items())), products, overwrite)
    try:
        plan = _loaded(task.checkpoints, task.settings, products.agreement)[0].plan
        requests = shard(requests_for(scans, output, len(plan.channels)), share)
        if postprocess is not None:
            rules = rules_beside(checkpoints) if str(postprocess) == BESIDE else Path(postprocess)
            task = replace(task, products=replace(products, rules=read_rules(rules, plan.labels)))
        if requests and requests[0].result != output:
            describe_results(output, plan, overwrite)
        return _all_done(task, requests, workers, progress)
    finally:
        _loaded.cache_clear()


def _all_done(task: _Task, requests: Sequence[Request], workers: int, progress: bool) -> list[Outcome[Segmented]]:
    finished = {
        request.result: Outcome[Segmented](request.name, Segmented(request.result, 0.0, skipped=True), None)
        for request in requests
        if not task.products.missing(request, task.overwrite)
    }
    cases = [(request.name, request) for request in requests if request.result not in finished]
    try:
        if workers > 1 and len(cases) > 1:
            outcomes = process_cases(task, cases, workers, "Segmenting", progress)
        else:
            outcomes = _overlapping(task, cases, progress)
    except BaseException:  # an interrupt: what is done is in the tables all the same
        _tables(task, requests)
        raise
    done = {request.result: outcome for (_, request), outcome in zip(cases, outcomes, strict=True)} | finished
    return [*(done[request.result] for request in requests), *_tables(task, requests)]


def _tables(task: _Task, requests: Sequence[Request]) -> list[Outcome[Segmented]]:
    """Nothing, or an outcome that says why the tables could not be written; the scans' own files are."""
    try:
        task.products.write_tables(requests)
    except ConfigError as error:
        return [Outcome(f"{requests[0].result.parent}/", None, str(error))]
    return []


def _overlapping(task: _Task, cases: Sequence[tuple[str, Request]], progress: bool) -> list[Outcome[Segmented]]:
    """All cases in this process, in stages that overlap."""
    alone = len(cases) == 1  # of one scan the windows are counted, of several the scans
    case = replace(task, show_progress=progress and alone).case()
    outcomes, tables_s = [], time.monotonic()
    with progress_bar("Segmenting", len(cases), shown=progress and not alone) as advance:
        for outcome in in_stages(cases, case.read, case.compute, case.write, case.room_ahead):
            outcomes.append(outcome)
            advance()
            if time.monotonic() - tables_s > TABLES_EVERY_S:
                _tables(task, [request for _, request in cases])
                tables_s = time.monotonic()
    return outcomes


def segment_requests(
    segmenter: Segmenter, requests: Sequence[Request], products: Products, overwrite: bool = False
) -> Iterator[Outcome[Segmented]]:
    """The outcomes of ``requests`` with a segmenter at hand, finished ones skipped, in stages that overlap."""
    case = CaseSegmentation(segmenter, products, overwrite=overwrite)
    for request in requests:
        if not products.missing(request, overwrite):
            yield Outcome(request.name, Segmented(request.result, 0.0, skipped=True), None)
    waiting = [(request.name, request) for request in requests if products.missing(request, overwrite)]
    yield from in_stages(waiting, case.read, case.compute, case.write, case.room_ahead)


@dataclass(frozen=True)
class _Task:
    """Segments one request; travels to worker processes, where the model is loaded once."""

    checkpoints: tuple[Path, ...]
    settings: tuple[tuple[str, Any], ...]
    products: Products
    overwrite: bool
    show_progress: bool = field(default=False)

    def case(self) -> CaseSegmentation:
        segmenter, *siblings = _loaded(self.checkpoints, self.settings, self.products.agreement)
        return CaseSegmentation(segmenter, self.products, siblings, self.overwrite, self.show_progress)

    def __call__(self, request: Request) -> Segmented:
        return self.case()(request)


@lru_cache(maxsize=1)
def _loaded(
    checkpoints: tuple[Path, ...], settings: tuple[tuple[str, Any], ...], agreement: bool
) -> tuple[Segmenter, ...]:
    """The segmenter; with ``agreement`` also that of sibling 1 and that of sibling 2."""
    segmenter = Segmenter.load(checkpoints, **dict(settings))
    if not agreement:
        return (segmenter,)
    others = dict(settings)
    own = others.pop("sibling", "1")
    others.pop("say", None)  # what a scan costs is said once
    try:
        pair = (segmenter if which == own else Segmenter.load(checkpoints, which, **others) for which in ("1", "2"))
        return (segmenter, *pair)
    except ConfigError as error:
        raise ConfigError(f"agreement needs two siblings: {error}") from error


def _by_patient(scans: Sequence[Path], channels: int, given: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """(name of the result, files) per patient; with several channels the files ending in _0000, _0001, … in order."""
    if channels == 1:
        return [(_result_name(path, given), (path,)) for path in scans]
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


def _result_name(path: Path, given: Path) -> str:
    if path.is_dir():
        return path.resolve().name if path == given else "_".join(path.relative_to(given).parts)
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


def describe_results(output: Path, plan: Plan, overwrite: bool) -> None:
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
