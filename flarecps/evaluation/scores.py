"""Scores of a folder of predictions against a folder of references: paired by name, worked out in parallel, resumable.

With a folder to keep them in, every case's scores are a file of their own there as soon as they are known, so an
interrupted run continues, and the shards of a job array share the work. Such a file appears whole or not at all. It is
used again only when the label maps have the same contents, and protocol, organs and tolerances are the same; copying or
touching the label maps changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.anatomy import Organ, organs_of
from flarecps.atomic import write_json
from flarecps.batch_processing import process_cases, shard
from flarecps.case_names import file_name, why_not_plain
from flarecps.errors import ConfigError, DatasetError, ScanError, counted, first_few
from flarecps.evaluation.flare22 import OrganScore, Protocol, foreign_values, score_case
from flarecps.evaluation.label_sets import with_tolerances
from flarecps.evaluation.overlap import exchanged_labels, joint_histogram
from flarecps.evaluation.score_table import CaseScore, ScoredCases
from flarecps.json_fields import is_number
from flarecps.text_files import read_own_json
from flarecps.volumes.discovery import by_case, label_maps
from flarecps.volumes.io import in_file_order, on_grid, read_labels, scan_name
from flarecps.volumes.links import check_reachable
from flarecps.volumes.nifti import header_spacing_mm

FORMAT = "flarecps-case-scores"
RULES_VERSION = 2  # to be raised whenever the same label maps would get another score
TWO_FILES = (".nhdr", ".mhd")  # headers whose voxels lie in a second file


@dataclass(frozen=True)
class _CaseFiles:
    """What is needed to score one case; ``prediction`` None: there is none. ``kept``: the file for its scores."""

    prediction: Path | None
    reference: Path
    organs: tuple[Organ, ...]
    protocol: Protocol
    kept: Path | None = None


def score_folders(
    predictions: Path,
    references: Path,
    labels: Mapping[str, int],
    protocol: Protocol = "official",
    workers: int = 1,
    progress: bool = True,
    *,
    tolerances_mm: Mapping[str, float] | None = None,
    keep: Path | None = None,
    share: str | None = None,
) -> ScoredCases:
    """The scores of every prediction (``official``) or every reference (``strict``) of two folders, or of two files.

    Files belong together when their names without suffix are equal. A case that can't be scored is kept as failed and
    the others are scored: unreadable files, different grids (``official``: different sizes; it only warns of other
    differences, and of values in predictions that are no structure's), other values outside ``labels``, predictions
    without reference.

    ``labels`` is ``{name: id}``; ``tolerances_mm`` are NSD's by organ name, where they are not to be FLARE22's (2 mm
    for other structures). In the folder ``keep`` every case's scores are kept as ``NAME.json``: what is there and was
    made from the same files with the same settings is taken as it is. With ``share``, "I/N", only every Nth case is
    scored, from the Ith.

    Raises DatasetError for a missing or empty folder, one name twice, and when no name is common to both; ConfigError
    when ``share`` is not I/N, and for two structures that would share a table's columns.
    """
    organs = with_tolerances(organs_of(dict(labels)), tolerances_mm or {})
    by_column: dict[str, Organ] = {}
    for organ in organs:
        other = by_column.setdefault(organ.column, organ)
        if other is not organ:
            raise ConfigError(
                f"the structures {other.name!r} and {organ.name!r} would share the columns {organ.column}_…; "
                "rename one of them in dataset.json"
            )
    found_p, found_r = _label_files(predictions), _label_files(references)
    if predictions.is_file() and references.is_file():
        found_p = {next(iter(found_r)): predictions}
    found_p, found_r = by_case(found_p, found_r), by_case(found_r, found_p)
    shared = [name for name in found_p if name in found_r]
    if not shared:
        raise DatasetError(
            f"{predictions}: no prediction has the name of a reference in {references} (the first are called "
            f"{next(iter(found_p))!r} and {next(iter(found_r))!r}); give prediction and reference the same name"
        )
    missing = [name for name in found_r if name not in found_p]
    # Quirk: official walks the prediction folder, so a missing prediction costs nothing there.
    names = sorted(found_r) if protocol == "strict" else shared
    kept = {name: keep / file_name(name, ".json") if keep and not why_not_plain(name) else None for name in names}
    cases = {
        name: _CaseFiles(found_p.get(name), found_r[name], organs, protocol, kept[name]) for name in shard(names, share)
    }
    scored = {name: score for name, case in cases.items() if (score := _kept(case)) is not None}
    waiting = [(name, case) for name, case in cases.items() if name not in scored]
    title = f"Scoring ({len(scored)} of {len(cases)} there already)" if scored else "Scoring"
    if keep is not None and waiting:
        keep.mkdir(parents=True, exist_ok=True)
    outcomes = process_cases(_score_files, waiting, workers, title=title, progress=progress)
    failed = {outcome.name: outcome.error for outcome in outcomes if outcome.error is not None}
    scored |= {outcome.name: outcome.value for outcome in outcomes if outcome.value is not None}
    for name in shard([name for name in found_p if name not in found_r], share):
        failed[name] = f"a prediction without reference: there is no label file of this name in {references}"
        close = [other for other in missing if other in name] or difflib.get_close_matches(name, missing, n=1)
        if close:
            failed[name] += f"; if it belongs to {close[0]!r}, which has no prediction, give it that name"
    in_order = {name: scored[name] for name in cases if name in scored}
    return ScoredCases(protocol, organs, in_order, dict(sorted(failed.items())), tuple(missing))


def _score_files(case: _CaseFiles) -> CaseScore:
    """The scores of one case from its files, kept where ``case`` says. Raises ScanError for unfitting label maps."""
    made = _made_from(case)  # before reading: a file that changes meanwhile makes the kept scores stale
    score = _score(case)
    if case.kept is not None:
        write_json(case.kept, {"format": FORMAT, "made_from": made, "scores": asdict(score)})
    return score


def _score(case: _CaseFiles) -> CaseScore:
    reference = read_labels(case.reference)
    spacing_mm = reference.space.spacing_mm
    if case.prediction is None:
        # As a prediction of background alone: what the reference lacks, too, is left out of the means.
        nothing = np.zeros_like(reference.array[0])
        scores = score_case(nothing, reference.array[0], spacing_mm, case.organs, "strict")
        return CaseScore(case.reference.name, scores, missing=True)
    # Quirk: the organisers' script casts whatever a map holds to 8 bits.
    prediction = read_labels(case.prediction, cast=case.protocol == "official")
    warnings = []
    whose, cure = "its reference", "segment the scan that the reference was drawn on, without resampling or cropping it"
    if case.protocol == "strict":
        prediction = on_grid(prediction, reference.space, whose, cure)
    else:
        # Quirk: arrays are compared as stored, and neither orientation nor position is checked.
        stored = reference.source.stored
        apart = prediction.source.stored.difference(stored)
        prediction, reference = in_file_order(prediction), in_file_order(reference)
        # Spacing as stored: for NIfTI the header's pixdim, which the organisers' script reads.
        header = header_spacing_mm(case.reference) if reference.source.kind == "nifti" else None
        spacing_mm = header or stored.spacing_mm
        if prediction.array.shape != reference.array.shape:
            raise ScanError(f"{case.prediction}: not on the grid of {whose} ({apart}): {cure}")
        if apart:
            warnings.append(f"not on the reference's grid ({apart}); scored voxel by voxel as stored all the same")
    maps = prediction.array[0], reference.array[0]
    histogram = joint_histogram(*maps)
    names = {organ.id: f"{organ.name} ({organ.id})" for organ in case.organs}
    warnings += [
        f"the prediction's {names[ours]} lies on the reference's {names[theirs]} (DSC {dsc:.2f}): are labels exchanged?"
        for ours, theirs, dsc in exchanged_labels(histogram, names)
    ]
    if case.protocol == "official" and (strange := foreign_values(predicted := histogram.sum(axis=1), case.organs)):
        listed = first_few([f"{value} ({counted(int(predicted[value]), 'voxel')})" for value in strange])
        warnings.append(f"the prediction holds {listed}, no structure of the label set: taken for background")
    warnings += [f"prediction: {remark}" for remark in prediction.warnings]
    warnings += [f"reference: {remark}" for remark in reference.warnings]
    file_name = case.reference.name if case.protocol == "strict" else case.prediction.name
    scores = score_case(*maps, spacing_mm, case.organs, case.protocol, histogram)
    return CaseScore(file_name, scores, warnings=tuple(warnings))


def _made_from(case: _CaseFiles) -> dict[str, Any]:
    """All that a case's scores depend on, as plain types."""
    return {
        "rules_version": RULES_VERSION,
        "protocol": case.protocol,
        "organs": [[organ.id, organ.name, organ.tolerance_mm] for organ in case.organs],
        "prediction": None if case.prediction is None else _contents(case.prediction),
        "reference": _contents(case.reference),
    }


def _contents(path: Path) -> dict[str, str]:
    check_reachable(path)
    if path.is_dir():
        raise ScanError(f"{path}: a folder; expected a label map in one file (NIfTI, NRRD, MHA)")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"name": path.name, "sha256": digest.hexdigest()}


def _kept(case: _CaseFiles) -> CaseScore | None:
    """The scores that are kept of a case; None when there are none, or they were made from something else."""
    files = [file for file in (case.prediction, case.reference) if file is not None]
    if case.kept is None or not case.kept.is_file() or any(file.name.lower().endswith(TWO_FILES) for file in files):
        return None
    try:
        content = read_own_json(case.kept)
        if (content["format"], content["made_from"]) != (FORMAT, _made_from(case)):
            return None
        kept = content["scores"]
        organs = {name: OrganScore(**score) for name, score in kept["organs"].items()}
        whole = CaseScore(kept["file_name"], organs, kept["missing"], tuple(kept["warnings"]))
        return whole if _is_whole(whole, case) else None
    # Damaged: the case is scored again. An unreadable label map is reported when it is to be scored.
    except (OSError, ScanError, KeyError, TypeError, AttributeError):
        return None


def _is_whole(kept: CaseScore, case: _CaseFiles) -> bool:
    """Whether all that is read of a file is of the kind that was written to it."""
    texts = (kept.file_name, *kept.warnings, *(one.remark for one in kept.organs.values()))
    numbers = [(key, value) for one in kept.organs.values() for key, value in vars(one).items() if key != "remark"]
    return (
        set(kept.organs) == {organ.name for organ in case.organs}
        and isinstance(kept.missing, bool)
        and all(isinstance(text, str) for text in texts)
        and all(is_number(value) or (value is None and not key.endswith("_ml")) for key, value in numbers)
    )


def _label_files(path: Path) -> dict[str, Path]:
    """Label files by case name, sorted: those of a folder, or the one file given."""
    return label_maps(path) if path.is_dir() or not path.exists() else {scan_name(path): path}
