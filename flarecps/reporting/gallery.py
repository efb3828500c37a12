"""Which cases and organs a report shows, and their overlay pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flarecps.anatomy import Organ
from flarecps.errors import ScanError
from flarecps.reporting.figure import FigureCase
from flarecps.reporting.overlays import ABDOMINAL_WINDOW_HU, overlay_figure, window_of
from flarecps.reporting.pictures import data_uri, png_bytes
from flarecps.reporting.run_folder import Run, mean_of
from flarecps.volumes.io import Volume, read_labels, read_volume

DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Exhibit:
    """One overlay of the report: a case (and perhaps one organ), why it was chosen, the picture and its description."""

    case: str
    organ: str | None
    reason: str
    picture: str  # data URI
    alt: str


def chosen_cases(runs: Sequence[Run], available: Sequence[str]) -> list[tuple[str, str]]:
    """(case, reason) for the best, the median and the worst of ``available`` by mean DSC over organs and runs.

    The median of an even number is the better of the two in the middle. Without any scores: the first three cases.
    """
    means = {name: mean_of([run.scores.of(name) for run in runs if run.scores]) for name in available}
    ranked = sorted((name for name in available if math.isfinite(means[name])), key=lambda name: -means[name])
    if not ranked:
        return [(name, "Not scored; among the first cases by name") for name in sorted(available)[:3]]
    picked: dict[str, str] = {}
    for place, word in ((0, "The best"), ((len(ranked) - 1) // 2, "The median"), (len(ranked) - 1, "The worst")):
        picked.setdefault(ranked[place], word)
    among = f"of {len(ranked)} cases by mean DSC" + (
        " over both runs" if len(runs) == 2 else " over the runs" * (len(runs) > 2)
    )
    if len(ranked) == 1:
        return [(ranked[0], "The only scored case")]
    return [(name, f"{word} {among}") for name, word in picked.items()]


def hardest_organ(runs: Sequence[Run], case: str, organs: Sequence[Organ]) -> tuple[Organ, float] | None:
    """The organ with the lowest DSC on a case, mean over runs, and that DSC; None when nothing was scored."""
    found = []
    for organ in organs:
        values = [run.scores.at(case, organ.column) for run in runs if run.scores]
        if math.isfinite(mean := mean_of(values)):
            found.append((mean, organ))
    if not found:
        return None
    dsc, organ = min(found, key=lambda pair: pair[0])
    return organ, dsc


def exhibits(
    runs: Sequence[Run], images: Mapping[str, Path], references: Mapping[str, Path]
) -> tuple[list[Exhibit], list[str]]:
    """The overlays of a report, and notes on cases that could not be shown.

    Shown are the cases of ``chosen_cases`` with all organs, then the hardest organ of the worst case close by. A case
    needs its scan and at least one prediction; its reference is used where it exists.

    Args:
        runs: runs of one label set.
        images: case name to scan.
        references: case name to label map.
    """
    available = [name for name in images if any(name in run.predictions for run in runs)]
    organs = next((run.organs for run in runs if run.organs), ())
    shown: list[Exhibit] = []
    notes: list[str] = []
    if images and not available:
        return shown, [
            f"Pictures: none of the {len(images)} scans ({next(iter(images))}, …) has a prediction of its name"
        ]
    if available and not organs:
        return shown, ["Pictures: neither a plan nor scores name the labels"]
    picked = chosen_cases(runs, available)
    for place, (case, reason) in enumerate(picked):
        try:
            volumes = _case_volumes(runs, case, images[case], references.get(case))
        except (ScanError, OSError) as error:
            notes.append(f"{case} is not shown: {' '.join(str(error).split())}")
            continue
        if references and case not in references:
            notes.append(f"{case} is shown without reference: there is no label map of this name")
        shown.append(_exhibit(runs, case, reason, volumes, organs, None))
        if place == len(picked) - 1:
            hardest = hardest_organ(runs, case, organs)
            if hardest is not None and len(organs) > 1:
                organ, dsc = hardest
                reason = f"The organ with the lowest DSC of this case: {dsc:.3f}" + (
                    ", mean over runs" * (len(runs) > 1)
                )
                shown.append(_exhibit(runs, case, reason, volumes, organs, organ))
    return shown, notes


def figure_cases(
    runs: Sequence[Run], images: Mapping[str, Path], references: Mapping[str, Path], count: int = 2
) -> list[FigureCase]:
    """Rows for ``comparison_figure`` with the runs as methods: one case, or an easy and a hard one, or the median too.

    Only cases with scan, reference and a prediction of every run are taken, by ``chosen_cases``; [] without any.
    ``count`` is 1 (the median), 2 (the best and the worst) or 3 (all of them, best first).
    """
    available = [name for name in images if name in references and all(name in run.predictions for run in runs)]
    names = [name for name, _ in chosen_cases(runs, available)]
    if len(names) == 3:
        names = {1: names[1:2], 2: [names[0], names[2]]}.get(count, names)
    rows = []
    for name in names[:count]:
        volumes = _case_volumes(runs, name, images[name], references[name])
        assert volumes.reference is not None  # its path was given
        spacing_mm = volumes.image.space.spacing_mm
        dsc = {run.name: _dsc(run, name, None) for run in runs}
        image = volumes.image.array[0]
        rows.append(FigureCase(name, image, volumes.reference, volumes.predictions, spacing_mm, dsc))
    return rows


@dataclass(frozen=True)
class _CaseVolumes:
    image: Volume
    reference: np.ndarray | None
    predictions: dict[str, np.ndarray]


def _case_volumes(runs: Sequence[Run], case: str, image: Path, reference: Path | None) -> _CaseVolumes:
    volume = read_volume(image)

    def labels(path: Path) -> np.ndarray:
        found = read_labels(path)
        if not found.space.same_grid(volume.space):
            raise ScanError(f"{path}: not on the grid of {image.name} ({found.space.difference(volume.space)})")
        return found.array[0]

    return _CaseVolumes(
        volume,
        labels(reference) if reference is not None else None,
        {run.name: labels(run.predictions[case]) for run in runs if case in run.predictions},
    )


def _exhibit(
    runs: Sequence[Run], case: str, reason: str, volumes: _CaseVolumes, organs: Sequence[Organ], organ: Organ | None
) -> Exhibit:
    image = volumes.image.array[0]
    plan = next((run.plan for run in runs if run.plan is not None), None)
    window = window_of(image) if plan is not None and plan.intensity.scheme == "zscore" else ABDOMINAL_WINDOW_HU
    dsc = {run.name: _dsc(run, case, organ) for run in runs}
    figure = overlay_figure(
        image,
        volumes.reference,
        volumes.predictions,
        volumes.image.space.spacing_mm,
        organs,
        organ,
        window_hu=window,
        mean_dsc=dsc,
    )
    columns = ["the scan"] + (["the reference"] if volumes.reference is not None else [])
    columns += [f"the prediction of {name}" for name in volumes.predictions]
    scores = [f"{name} {value:.3f}" for name, value in dsc.items() if math.isfinite(value)]
    alt = (
        f"Case {case}{f', {organ.name} close by' if organ else ''}: axial, coronal and sagittal slices; columns show "
        f"{', '.join(columns)}." + (f" {'' if organ else 'Mean '}DSC: {', '.join(scores)}." if scores else "")
    )
    picture = data_uri(png_bytes(figure, DOTS_PER_INCH))
    return Exhibit(case, organ.name if organ else None, reason, picture, alt)


def _dsc(run: Run, case: str, organ: Organ | None) -> float:
    if run.scores is None:
        return math.nan
    return run.scores.of(case) if organ is None else run.scores.at(case, organ.column)
