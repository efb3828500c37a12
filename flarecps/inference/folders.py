"""Scans in, label files out: which scans there are, what each result is called, and every one of them done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from os.path import realpath  # Path.resolve ends in an error at links to themselves
from pathlib import Path

from flarecps import atomic
from flarecps.batch_processing import Outcome, PerProcess, process_cases, progress_bar, shard
from flarecps.case_names import ALIKE, file_name, taken_by
from flarecps.errors import ConfigError, ScanError
from flarecps.inference.outputs import RESULT_ENDING, OutputOptions, SegmentationRequest
from flarecps.inference.postprocessing import rules_for
from flarecps.inference.segment_case import CaseSegmentation, SegmentationResult, pipelined
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.settings import SegmentationSettings, Sibling
from flarecps.json_fields import shown
from flarecps.named_paths import check_output_folder
from flarecps.planning.plan import Plan
from flarecps.text_files import read_own_json
from flarecps.volumes.dicom_seg import import_highdicom
from flarecps.volumes.discovery import RESULTS_MARK, find_cases
from flarecps.volumes.io import is_result_file, scan_name
from flarecps.volumes.links import place_of

__all__ = [
    "OutputOptions",
    "SegmentationRequest",
    "SegmentationResult",
    "describe_results",
    "requests_for",
    "segment_folder",
    "segment_requests",
]

DATASET_JSON = "dataset.json"
SIBLINGS: tuple[Sibling, Sibling] = ("1", "2")  # whose agreement is measured
TABLES_EVERY_S = 60.0  # tables of a long run are never older


def requests_for(
    scans: Path, output: Path, channels: int = 1, ending: str = RESULT_ENDING
) -> list[SegmentationRequest]:
    """What to segment: ``scans`` is one image file, one DICOM series folder, or a folder with any mix of both.

    Results are called by the rule for all commands (docs/case-names.md): ``X_0000.nii.gz`` and ``X.mha`` become
    ``X.nii.gz`` (or another ``ending``), ``a/SERIES`` ``a_SERIES``; ``X_0000``, ``X_0001``, … are the channels of X.
    ``output`` is a folder, or, for one scan, a file ending in .nii.gz, .nii or .seg.nrrd. Nothing is read or written
    yet. What is wrong with one case is its request's ``fault``. Raises ScanError when there is nothing to segment,
    ConfigError when a result would replace a scan.
    """
    if not place_of(scans).exists() and not scans.is_symlink():
        raise ScanError(f"{scans}: no such file or folder; expected a scan, a DICOM series or a folder of scans")
    cases = find_cases(scans, channels, leave_out=(output,) if realpath(output) != realpath(scans) else ())
    if not cases:
        raise ScanError(f"{scans}: no scan in this folder; expected NIfTI, NRRD or MHA files, or DICOM series folders")
    if is_result_file(output) and not output.is_dir():
        if len(cases) > 1:
            raise ConfigError(f"{output}: a file name for the results of {len(cases)} scans; name a folder instead")
        requests = [SegmentationRequest(scan_name(output), cases[0].images, output, cases[0].fault)]
    else:
        check_output_folder(output)
        known: dict[str, str] = {}
        for index, case in enumerate(cases):
            if not case.fault and (other := taken_by(case.name, known)):
                taken = f"{case.images[0]}: the case name {case.name!r} is taken by {other!r}{ALIKE}"
                cases[index] = replace(case, fault=taken)
        requests = [
            SegmentationRequest(
                case.name,
                case.images,
                output / (ending if case.fault else file_name(case.name, ending)),
                case.fault,
            )
            for case in cases
        ]
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
    settings: SegmentationSettings | None = None,
    share: str | None = None,
    outputs: OutputOptions | None = None,
    postprocess: Path | str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Outcome[SegmentationResult]]:
    """One outcome per scan found under ``scans`` (see ``requests_for``); labels lie on each scan's own grid.

    One more, of a name ending in "/", when the tables of all scans could not be written.

    Finished cases are skipped unless ``overwrite``; a scan that fails keeps its error and the others go on. A
    folder ``output`` also gets a dataset.json with the label set. Several checkpoints are averaged.

    Args:
        workers: processes that segment a scan each, every one with its own copy of the networks. 1 stays in this
            process, where the next scan is read and the last written while one is segmented.
        settings: how scans are segmented; by default ``SegmentationSettings()``.
        share: ``"I/N"``: only every Nth scan, from the Ith; all shares may write into one folder at once.
        outputs: what is wanted beside the labels.
        postprocess: a file of ``flarecps postprocess determine``, or ``"auto"``: the one beside the checkpoint.
        say: is told, in a line each, what a budget makes of a scan; with several workers a function of a module.
    """
    scans, output = Path(scans), Path(output)
    checkpoints = tuple(Path(one) for one in ((checkpoint,) if isinstance(checkpoint, str | Path) else checkpoint))
    if not place_of(scans).exists():  # a mistyped path is answered before the model is loaded
        requests_for(scans, output)
    settings, outputs = settings or SegmentationSettings(), outputs or OutputOptions()
    if outputs.agreement and settings.budget.seconds is not None:
        raise ConfigError("agreement runs the networks twice, beyond a limit of time: leave out one of the two")
    if outputs.dicom_seg:  # a missing package is told before any work
        import_highdicom()
    load = partial(_loaded, checkpoints, settings, overwrite, say)
    case = load(outputs)
    plan = case.segmenter.plan
    found = shard(requests_for(scans, output, len(plan.channels), outputs.ending), share)
    requests = [request for request in found if not request.fault]
    if postprocess is not None:
        case.outputs = outputs = replace(outputs, rules=rules_for(plan.labels, checkpoints, postprocess))
    if found and found[0].result != output:
        describe_results(output, plan, overwrite, outputs.ending)
    waiting = [(request.name, request) for request in requests if outputs.missing(request, overwrite)]
    try:
        if workers > 1 and len(waiting) > 1:
            del case
            outcomes = process_cases(PerProcess(partial(load, outputs)), waiting, workers, "Segmenting", progress)
        else:
            outcomes = _overlapping(case, waiting, progress)
    except BaseException:  # an interrupt: what is done is in the tables all the same
        _tables(outputs, requests)
        raise
    done = {request.result: outcome for (_, request), outcome in zip(waiting, outcomes, strict=True)}
    all_outcomes = [_faulty(one) if one.fault else done.get(one.result) or _there(one) for one in found]
    return [*all_outcomes, *_tables(outputs, requests)]


def _there(request: SegmentationRequest) -> Outcome[SegmentationResult]:
    return Outcome(request.name, SegmentationResult(request.result, 0.0, skipped=True), None)


def _faulty(request: SegmentationRequest) -> Outcome[SegmentationResult]:
    return Outcome(request.name, None, request.fault)


def _tables(outputs: OutputOptions, requests: Sequence[SegmentationRequest]) -> list[Outcome[SegmentationResult]]:
    """Nothing, or an outcome that says why the tables could not be written; the scans' own files are."""
    try:
        outputs.write_tables(requests)
    except ConfigError as error:
        return [Outcome(f"{requests[0].result.parent}/", None, str(error))]
    return []


def _overlapping(
    case: CaseSegmentation, waiting: Sequence[tuple[str, SegmentationRequest]], progress: bool
) -> list[Outcome[SegmentationResult]]:
    """All cases in this process, in stages that overlap."""
    alone = len(waiting) == 1  # of one scan the windows are counted, of several the scans
    case.show_progress = progress and alone
    outcomes, tables_s = [], time.monotonic()
    with progress_bar("Segmenting", len(waiting), shown=progress and not alone) as advance:
        for outcome in pipelined(waiting, case.read, case.compute, case.write, case.may_read_ahead):
            outcomes.append(outcome)
            advance()
            if time.monotonic() - tables_s > TABLES_EVERY_S:
                _tables(case.outputs, [request for _, request in waiting])
                tables_s = time.monotonic()
    return outcomes


def segment_requests(
    segmenter: Segmenter, requests: Sequence[SegmentationRequest], outputs: OutputOptions, overwrite: bool = False
) -> Iterator[Outcome[SegmentationResult]]:
    """The outcomes of ``requests`` with a segmenter at hand, finished ones skipped, in stages that overlap."""
    case = CaseSegmentation(segmenter, outputs, overwrite=overwrite)
    waiting = []
    for request in requests:
        if request.fault:
            yield _faulty(request)
        elif outputs.missing(request, overwrite):
            waiting.append((request.name, request))
        else:
            yield _there(request)
    yield from pipelined(waiting, case.read, case.compute, case.write, case.may_read_ahead)


def _loaded(
    checkpoints: tuple[Path, ...],
    settings: SegmentationSettings,
    overwrite: bool,
    say: Callable[[str], None] | None,
    outputs: OutputOptions,
) -> CaseSegmentation:
    """What every process makes for itself: the segmenter, and for agreement also those of siblings 1 and 2."""
    segmenter = Segmenter.load(checkpoints, settings=settings, say=say)
    siblings: list[Segmenter] = []
    if outputs.agreement:
        try:  # what a scan costs is said once
            siblings = [
                segmenter if which == settings.sibling else Segmenter.load(checkpoints, which, settings)
                for which in SIBLINGS
            ]
        except ConfigError as error:
            raise ConfigError(f"agreement needs two siblings: {error}") from error
    return CaseSegmentation(segmenter, outputs, siblings, overwrite)


def _check_results(requests: Sequence[SegmentationRequest]) -> None:
    scans = {realpath(path) for request in requests for path in request.scans}
    for request in requests:
        if realpath(request.result) in scans:
            raise ConfigError(f"{request.result}: the result would replace the scan itself; name another output folder")


def describe_results(output: Path, plan: Plan, overwrite: bool, ending: str = RESULT_ENDING) -> None:
    """Write ``output``/dataset.json with the label set; refuse a folder that holds results of another, or ending."""
    path = output / DATASET_JSON
    content = {
        "name": plan.dataset,
        "description": RESULTS_MARK,
        "channel_names": {str(number): name for number, name in enumerate(plan.channels)},
        "labels": plan.labels,
        "file_ending": ending,
    }
    if path.exists():
        present = read_own_json(path)
        if present.get("labels") == plan.labels:
            if present.get("file_ending", ending) != ending:
                raise ConfigError(
                    f"{path}: results in this folder end in {shown(present['file_ending'])}, not {ending}: "
                    "name another output folder"
                )
            return
        ours = present.get("description") == RESULTS_MARK
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
