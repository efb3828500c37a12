"""Scores of a folder of predictions against a folder of references: worked out in parallel, kept as CSV and JSON."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import scipy

from flarecps import __version__
from flarecps.anatomy import Organ, organs_of
from flarecps.atomic import write_json, write_text
from flarecps.casework import work_through
from flarecps.errors import DatasetError, ScanError
from flarecps.evaluation.flare22 import BOTH_EMPTY, OrganScore, Protocol, score_case, score_missing
from flarecps.typing import SpacingMm
from flarecps.volumes.io import Volume, is_scan_file, read_labels, scan_name

FORMAT, FORMAT_VERSION = "flarecps-scores", 1
MEASURES = ("dsc", "nsd")
CSV_DECIMALS = 6  # official scores arrive rounded to 4
NO_REFERENCE = "a prediction without reference: there is no label file of this name in {folder}"


@dataclass(frozen=True)
class CaseFiles:
    """What is needed to score one case; ``prediction`` None: there is none."""

    prediction: Path | None
    reference: Path
    organs: tuple[Organ, ...]
    protocol: Protocol


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case by organ name; ``file_name`` is what FLARE's tables call the case."""

    file_name: str
    organs: dict[str, OrganScore]
    missing: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for n < 2) of ``n`` scores; mean None for n = 0."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one comparison, and what went wrong: cases by name, failed ones with their error.

    ``missing`` names the references without prediction: in no mean under ``official``, scored 0 under ``strict``.
    """

    protocol: Protocol
    organs: tuple[Organ, ...]
    cases: dict[str, CaseScore]
    failed: dict[str, str]
    missing: tuple[str, ...]

    def of_organ(self, organ: str, measure: str) -> Summary:
        """One organ's ``dsc``, ``nsd``, ``hd95_mm`` or ``assd_mm`` over the cases that have a number."""
        return summarise([getattr(case.organs[organ], measure) for case in self.cases.values()])

    def overall(self, measure: str) -> Summary:
        """The mean of the organs' means (FLARE's later years); SD and n are of the cases' means over organs."""
        organs = [self.of_organ(organ.name, measure).mean for organ in self.organs]
        cases = [
            summarise([getattr(score, measure) for score in case.organs.values()]).mean for case in self.cases.values()
        ]
        over_cases = summarise(cases)
        return Summary(summarise(organs).mean, over_cases.sd, over_cases.n)


def summarise(values: Sequence[float | None]) -> Summary:
    """Mean, SD and number of the values that are not None."""
    found = [value for value in values if value is not None]
    if not found:
        return Summary(None, None, 0)
    return Summary(float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None, len(found))


def score_folders(
    predictions: Path,
    references: Path,
    labels: Mapping[str, int],
    protocol: Protocol = "official",
    workers: int = 1,
    progress: bool = True,
) -> ScoreTable:
    """The scores of every prediction (``official``) or every reference (``strict``) of two folders, or of two files.

    Files belong together when their names without suffix are equal. A case that can't be scored is kept as failed and
    the others are scored: unreadable files, different grids (``official``: different sizes; it only warns of other
    differences), values outside ``labels``, predictions without reference. Raises DatasetError for a missing or empty
    folder, one name twice, and when no name is common to both.
    """
    organs = organs_of(dict(labels))
    found_p, found_r = _label_files(predictions), _label_files(references)
    if predictions.is_file() and references.is_file():
        found_p = {next(iter(found_r)): predictions}
    shared = [name for name in found_p if name in found_r]
    if not shared:
        raise DatasetError(
            f"{predictions}: no prediction has the name of a reference in {references} (the first are called "
            f"{next(iter(found_p))!r} and {next(iter(found_r))!r}); give prediction and reference the same name"
        )
    missing = tuple(name for name in found_r if name not in found_p)
    # Quirk: official walks the prediction folder, so a missing prediction costs nothing there.
    names = sorted(found_r) if protocol == "strict" else shared
    cases = [(name, CaseFiles(found_p.get(name), found_r[name], organs, protocol)) for name in names]
    outcomes = work_through(score_files, cases, workers, title="Scoring", progress=progress)
    failed = {outcome.name: outcome.error for outcome in outcomes if outcome.error is not None}
    failed |= {name: NO_REFERENCE.format(folder=references) for name in found_p if name not in found_r}
    scored = {outcome.name: outcome.value for outcome in outcomes if outcome.value is not None}
    return ScoreTable(protocol, organs, scored, dict(sorted(failed.items())), missing)


def score_files(case: CaseFiles) -> CaseScore:
    """The scores of one case from its files. Raises ScanError for unreadable or unfitting label maps."""
    reference = read_labels(case.reference)
    if case.prediction is None:
        scores = score_missing(reference.array[0], reference.space.spacing_mm, case.organs)
        return CaseScore(case.reference.name, scores, missing=True)
    prediction = read_labels(case.prediction)
    warnings = []
    if case.protocol == "strict":
        difference = prediction.space.difference(reference.space)
        maps, spacing_mm = (prediction.array[0], reference.array[0]), reference.space.spacing_mm
    else:
        # Quirk: arrays are compared as stored, and neither orientation nor position is checked.
        difference = ""
        maps, spacing_mm = (_as_stored(prediction), _as_stored(reference)), _header_spacing_mm(reference)
        if maps[0].shape != maps[1].shape:
            difference = prediction.source.stored.difference(reference.source.stored)
        elif apart := prediction.source.stored.difference(reference.source.stored):
            warnings.append(f"not on the reference's grid ({apart}); scored voxel by voxel as stored all the same")
    if difference:
        raise ScanError(
            f"{case.prediction}: not on the grid of its reference ({difference}): segment the scan that the reference "
            f"was drawn on, without resampling or cropping it"
        )
    file_name = case.reference.name if case.protocol == "strict" else case.prediction.name
    scores = score_case(*maps, spacing_mm, case.organs, case.protocol)
    return CaseScore(file_name, scores, warnings=tuple(warnings))


def write_scores(table: ScoreTable, out: Path) -> None:
    """Write ``scores.csv`` (FLARE's columns) and ``scores.json`` (everything known) into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scores.csv", to_csv(table))
    write_json(out / "scores.json", to_json(table))


def to_csv(table: ScoreTable) -> str:
    """One row per case: Name, then {Organ}_DSC of every organ, then {Organ}_NSD; an empty cell where not scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Name", *(f"{organ.column}_{measure.upper()}" for measure in MEASURES for organ in table.organs)])
    for case in table.cases.values():
        values = [getattr(case.organs[organ.name], measure) for measure in MEASURES for organ in table.organs]
        writer.writerow([case.file_name, *("" if value is None else round(value, CSV_DECIMALS) for value in values)])
    return text.getvalue()


def to_json(table: ScoreTable) -> dict[str, Any]:
    """The table as plain types: settings, versions, summaries per organ and overall, scores per case, failures."""
    measures = MEASURES if table.protocol == "official" else (*MEASURES, "hd95_mm", "assd_mm")
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "protocol": table.protocol,
        "labels": {organ.name: organ.id for organ in table.organs},
        "tolerances_mm": {organ.name: organ.tolerance_mm for organ in table.organs},
        "versions": {
            "flarecps": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "scipy": scipy.__version__,
        },
        "mean": {measure: asdict(table.overall(measure)) for measure in measures},
        "organs": {
            organ.name: {measure: asdict(table.of_organ(organ.name, measure)) for measure in measures}
            | {"empty_in_both": sum(case.organs[organ.name].remark == BOTH_EMPTY for case in table.cases.values())}
            for organ in table.organs
        },
        "cases": {
            name: {
                "file": case.file_name,
                "missing": case.missing,
                "warnings": list(case.warnings),
                "organs": {organ: asdict(score) for organ, score in case.organs.items()},
            }
            for name, case in table.cases.items()
        },
        "missing_predictions": list(table.missing),
        "failed": table.failed,
    }


def _label_files(path: Path) -> dict[str, Path]:
    """Label files by case name, sorted: those of a folder, or the one file given."""
    if path.is_file():
        return {scan_name(path): path}
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; expected a folder of label maps (NIfTI, NRRD, MHA), or one file")
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if not (file.is_file() and is_scan_file(file)):
            continue
        name = scan_name(file)
        if name in found:
            raise DatasetError(f"{file}: the case name {name!r} is taken by {found[name].name}; keep one of the two")
        found[name] = file
    if not found:
        raise DatasetError(f"{path}: no label maps in this folder; expected files such as CASE.nii.gz")
    return found


def _as_stored(volume: Volume) -> np.ndarray:
    return np.ascontiguousarray(volume.source.reorientation.undo(volume.array[0]))


def _header_spacing_mm(volume: Volume) -> SpacingMm:
    """Spacing (slice, row, column) as stored: for NIfTI the header's pixdim, which the organisers' script reads."""
    if volume.source.kind == "nifti":
        try:
            header = cast(nibabel.Nifti1Image, nibabel.load(volume.source.path)).header
            column, row, slice_ = (float(zoom) for zoom in header.get_zooms()[:3])
            return slice_, row, column
        except nibabel.filebasedimages.ImageFileError:  # packed, but not called .gz: the script could not read it
            pass
    return volume.source.stored.spacing_mm
