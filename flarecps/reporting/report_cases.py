"""Cases in a report: overlays of test cases that are chosen by their scores, and what training saw of validation cases.

The latter are the siblings' DSC per organ, and their labels through the epochs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flarecps import metric_names
from flarecps.anatomy import Organ
from flarecps.errors import ScanError
from flarecps.evaluation.score_table import mean_of
from flarecps.reporting.case_figures import CaseRow
from flarecps.reporting.overlays import display_window, overlay_figure
from flarecps.reporting.plotting import data_uri, png_bytes
from flarecps.reporting.run_folder import Run
from flarecps.reporting.tables import score_text
from flarecps.volumes.io import Volume, read_labels_on, read_volume

DOTS_PER_INCH = 130
OVERLAYS = "overlays"  # folder of a run
EARLIER = 4  # pictures before the latest one
_Volumes: TypeAlias = tuple[Volume, np.ndarray | None, dict[str, np.ndarray]]  # scan, reference, predictions by run
SOURCES = {"sibling_1": "sibling 1", "sibling_2": "sibling 2", "average": "both averaged"}


def _representative_cases(runs: Sequence[Run], available: Sequence[str]) -> list[tuple[str, str]]:
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


def case_overlays(
    runs: Sequence[Run], images: Mapping[str, Path], references: Mapping[str, Path]
) -> tuple[list[dict[str, str | None]], list[str]]:
    """The overlays of a report, and notes on cases that could not be shown.

    Shown are the cases of ``_representative_cases`` with all organs, then the lowest organ of the worst case close
    by. A case needs its scan and a prediction of one of the ``runs``, which are of one label set; its reference is used
    where it exists. Scans and label maps are given by case name.
    """
    available = [name for name in images if any(name in run.predictions for run in runs)]
    organs = next((run.organs for run in runs if run.organs), ())
    shown: list[dict[str, str | None]] = []
    notes: list[str] = []
    if images and not available:
        return shown, [
            f"Pictures: none of the {len(images)} scans ({next(iter(images))}, …) has a prediction of its name"
        ]
    if available and not organs:
        return shown, ["Pictures: neither a plan nor scores name the labels"]
    picked = _representative_cases(runs, available)
    for place, (case, reason) in enumerate(picked):
        try:
            volumes = _case_volumes(runs, case, images[case], references.get(case))
        except (ScanError, OSError) as error:
            notes.append(f"{case} is not shown: {' '.join(str(error).split())}")
            continue
        if references and case not in references:
            notes.append(f"{case} is shown without reference: there is no label map of this name")
        shown.append(_case_overlay(runs, case, reason, volumes, organs, None))
        if place == len(picked) - 1:
            means = {one: mean_of([_dsc(run, case, one) for run in runs]) for one in organs}
            scored = [one for one in organs if math.isfinite(means[one])]
            if scored and len(organs) > 1:
                organ = min(scored, key=lambda one: means[one])
                reason = f"The organ with the lowest DSC of this case: {score_text(means[organ])}"
                reason += ", mean over runs" * (len(runs) > 1)
                shown.append(_case_overlay(runs, case, reason, volumes, organs, organ))
    return shown, notes


def comparison_rows(
    runs: Sequence[Run], images: Mapping[str, Path], references: Mapping[str, Path], count: int = 2
) -> list[CaseRow]:
    """Rows for ``comparison_figure`` with the runs as methods: one case, or an easy and a hard one, or the median too.

    Only cases with scan, reference and a prediction of every run are taken (``_representative_cases``); [] without.
    ``count`` is 1 (the median), 2 (the best and the worst) or 3 (all of them, best first).
    """
    available = [name for name in images if name in references and all(name in run.predictions for run in runs)]
    names = [name for name, _ in _representative_cases(runs, available)]
    if len(names) == 3:
        names = {1: names[1:2], 2: [names[0], names[2]]}.get(count, names)
    rows = []
    for name in names[:count]:
        volume, reference, predictions = _case_volumes(runs, name, images[name], references[name])
        assert reference is not None  # its path was given
        dsc = {run.name: _dsc(run, name, None) for run in runs}
        rows.append(CaseRow(name, volume.array[0], reference, predictions, volume.space.spacing_mm, dsc))
    return rows


def _case_volumes(runs: Sequence[Run], case: str, image: Path, reference: Path | None) -> _Volumes:
    """The scan, the labels of the reference, and of every run that has a prediction its labels."""
    volume = read_volume(image)
    drawn = None if reference is None else read_labels_on(reference, volume.space, image.name)
    paths = {run.name: run.predictions[case] for run in runs if case in run.predictions}
    return volume, drawn, {name: read_labels_on(path, volume.space, image.name) for name, path in paths.items()}


def _case_overlay(
    runs: Sequence[Run], case: str, reason: str, volumes: _Volumes, organs: Sequence[Organ], organ: Organ | None
) -> dict[str, str | None]:
    """A case (and perhaps one organ), why it was chosen, the picture as a data URI, and its alternative text."""
    volume, reference, predictions = volumes
    image = volume.array[0]
    plan = next((run.plan for run in runs if run.plan is not None), None)
    window = display_window(image, is_hu=plan is None or plan.intensity.scheme != "zscore")
    dsc = {run.name: _dsc(run, case, organ) for run in runs}
    arrays = image, reference, predictions, volume.space.spacing_mm
    figure = overlay_figure(*arrays, organs, organ, window_hu=window, mean_dsc=dsc)
    columns = ["the scan"] + (["the reference"] if reference is not None else [])
    columns += [f"the prediction of {name}" for name in predictions]
    scores = [f"{name} {score_text(value)}" for name, value in dsc.items() if math.isfinite(value)]
    alt = (
        f"Case {case}{f', {organ.name} close by' if organ else ''}: axial, coronal and sagittal slices; columns show "
        f"{', '.join(columns)}." + (f" {'' if organ else 'Mean '}DSC: {', '.join(scores)}." if scores else "")
    )
    picture = data_uri(png_bytes(figure, DOTS_PER_INCH))
    name = organ.name if organ else None
    return {"case": case, "organ": name, "reason": reason, "picture": picture, "alt": alt}


def _dsc(run: Run, case: str, organ: Organ | None) -> float:
    if run.scores is None:
        return math.nan
    return run.scores.of(case) if organ is None else run.scores.at(case, organ.column)


def overlay_histories(runs: Sequence[Run], places: Sequence[int]) -> list[dict[str, Any]]:
    """The pictures of up to two validation cases (one, of more than two runs) of the runs at ``places``.

    Of each its run and the run's place among all, its name, the latest picture and a few from earlier, the first one
    first; a picture is its epoch and a data URI.
    """
    cases = 2 if len(places) <= 2 else 1
    found = []
    for place in places:
        run = runs[place]
        folders = sorted(folder for folder in (run.folder / OVERLAYS).glob("*") if folder.is_dir())
        for folder in folders[:cases]:
            drawn = {int(epoch[1]): path for path in folder.glob("epoch_*.jpg")
                     if (epoch := re.fullmatch(r"epoch_(\d+)", path.stem))}  # fmt: skip
            if drawn:
                *earlier, latest = [
                    {"epoch": epoch, "picture": data_uri(drawn[epoch].read_bytes(), "image/jpeg")}
                    for epoch in evenly_spaced(sorted(drawn))
                ]
                shown = {"case": folder.name, "latest": latest, "earlier": earlier}
                found.append({"run": run.name, "place": place, **shown})
    return sorted(found, key=lambda history: (history["case"], history["place"]))


def evenly_spaced(epochs: Sequence[int]) -> list[int]:
    """The first and the last of ``epochs`` and some between them, evenly: at most ``EARLIER`` and the last.

    >>> evenly_spaced([5, 10, 15, 20, 25, 30, 35, 40]), evenly_spaced([1, 2])
    ([5, 15, 25, 30, 40], [1, 2])
    """
    if len(epochs) <= EARLIER + 1:
        return list(epochs)
    return [epochs[round(number * (len(epochs) - 1) / EARLIER)] for number in range(EARLIER + 1)]


def validation_scores(runs: Sequence[Run], organs: Sequence[Organ]) -> dict[str, Any] | None:
    """DSC per organ after each run's last validation, by sibling; None where no run was validated.

    ``columns`` are a run's place and name and the source in words, ``rows`` and ``mean`` have a number of each, and
    ``epochs`` says of every run how many it had completed.
    """
    columns, values, epochs = [], [], []
    for place, run in enumerate(runs):
        known = [
            (source, words) for source, words in SOURCES.items()
            if any(metric_names.dsc(source, organ.name) in run.metrics for organ in organs)
        ]  # fmt: skip
        if len(known) == 2:  # one network and its own average
            known = known[:1]
        for source, words in known:
            columns.append((place, run.name, words if len(known) > 1 else "one network"))
            curves = [run.metrics.get(metric_names.dsc(source, organ.name)) for organ in organs]
            values.append([None if curve is None else float(curve.values[-1]) for curve in curves])
        if known:
            mean = run.metrics.get(metric_names.DSC_MEAN)
            epochs.append((run.name, int(mean.epochs[-1]) if mean is not None else 0))
    if not columns:
        return None
    rows = [(organ, [column[row] for column in values]) for row, organ in enumerate(organs)]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    return {"columns": columns, "rows": rows, "mean": list(map(mean_of, values)), "epochs": epochs}
