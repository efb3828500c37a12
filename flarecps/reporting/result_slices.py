"""From the files of a case to the few slices that figures show: one volume in memory at a time, one case a process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flarecps.batch_processing import process_cases
from flarecps.errors import ConfigError, ScanError
from flarecps.reporting.figure import FigureCase, cut_place
from flarecps.reporting.overlays import ABDOMINAL_WINDOW_HU, window_of
from flarecps.reporting.results import Results
from flarecps.reporting.views import AXIAL
from flarecps.reporting.worst_cases import Poor, PoorSlice, slice_of_largest_error, surroundings
from flarecps.volumes.io import read_labels, read_volume
from flarecps.volumes.space import Space

AIR_HU = -500.0  # a scan that holds less is taken as CT


@dataclass(frozen=True)
class CaseOrder:
    """The files of one case, the scores known of it, and which of its organs are shown as poor."""

    name: str
    image: Path
    reference: Path
    predictions: Mapping[str, Path]
    window_hu: tuple[float, float] | None  # None: by the scan's values
    mean_dsc: Mapping[str, float]
    row: bool  # of the figure with all organs
    poor: tuple[Poor, ...] = ()
    poor_dsc: tuple[Mapping[str, float], ...] = ()  # by method, for each of ``poor``


@dataclass(frozen=True)
class CaseSlices:
    """What is shown of one case."""

    row: FigureCase | None
    poor: tuple[PoorSlice, ...]


def spread_of_cases(results: Results, count: int) -> list[str]:
    """``count`` cases from the easiest to the hardest, at even ranks of the mean DSC over methods.

    Taken are cases with a scan and a prediction of every method; fewer than ``count`` where there are fewer.
    """
    names = [name for name in results.cases if _is_whole(results, name)]
    means = {name: results.mean_dsc_of_methods(name) for name in names}
    ranked = sorted((name for name in names if math.isfinite(means[name])), key=lambda name: (-means[name], name))
    count = min(count, len(ranked))
    if count < 2:
        return ranked[(len(ranked) - 1) // 2 :][:count]
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def check_cases(results: Results, names: Sequence[str]) -> None:
    """Nothing, or ConfigError naming a case that lacks its scan, its scores or a method's prediction."""
    for name in names:
        lacking = [] if name in results.images else ["its scan"]
        lacking += [f"a scored prediction of {m}" for m in results.methods if name not in results.tables[m].cases]
        lacking += [f"a prediction of {m}" for m in results.methods if name not in results.predictions[m]]
        if lacking:
            known = ", ".join(results.cases[:5]) + (", …" if len(results.cases) > 5 else "")
            raise ConfigError(f"case {name!r} can't be shown without {lacking[0]}; the cases are {known}")


def cut_slices(
    results: Results,
    rows: Sequence[str],
    poor: Sequence[Poor],
    window_hu: tuple[float, float] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> tuple[list[FigureCase], list[PoorSlice], dict[str, str]]:
    """The rows and poor slices in the order asked for, and the errors of cases that could not be read."""
    orders = []
    for name in dict.fromkeys([*rows, *(one.case for one in poor)]):
        own = tuple(one for one in poor if one.case == name)
        orders.append(
            CaseOrder(
                name,
                results.images[name],
                results.references[name],
                {method: maps[name] for method, maps in results.predictions.items() if name in maps},
                window_hu,
                {method: results.mean_dsc(method, name) for method in results.methods},
                name in rows,
                own,
                tuple(_dsc_by_method(results, one) for one in own),
            )
        )
    outcomes = process_cases(slices_of_case, [(one.name, one) for one in orders], workers, "Cutting slices", progress)
    found = {one.name: one.value for one in outcomes if one.value is not None}
    failed = {one.name: one.error for one in outcomes if one.error is not None}
    shown = [row for name in rows if name in found and (row := found[name].row) is not None]
    slices = [each for name in found for each in found[name].poor]
    return shown, sorted(slices, key=lambda one: list(poor).index(one.poor)), failed


def slices_of_case(order: CaseOrder) -> CaseSlices:
    """Read one case, volume after volume, and keep what is shown. Raises ScanError where the grids differ."""
    labels = read_labels(order.reference)
    space, reference = labels.space, labels.array[0]
    place = cut_place(reference, space.spacing_mm, AXIAL, None) if order.row else ()
    numbers = _slices_of_largest_error(order, reference, space)
    row_maps: dict[str, np.ndarray] = {}
    masks: list[dict[str, np.ndarray]] = [{} for _ in order.poor]
    for method, path in order.predictions.items():
        prediction = _labels(path, space, order.reference)
        if order.row:
            row_maps[method] = prediction[place].copy()
        for found, number, poor in zip(masks, numbers, order.poor, strict=True):
            found[method] = prediction[number] == poor.organ.id
        del prediction
    volume = read_volume(order.image)
    if not volume.space.same_grid(space):
        raise ScanError(f"{order.image}: not on the grid of its reference ({volume.space.difference(space)})")
    image = volume.array[0]
    window_hu = order.window_hu or fitting_window(image)
    row = None
    if order.row:
        row = FigureCase(
            order.name, image[place].copy(), reference[place].copy(), row_maps, space.spacing_mm, order.mean_dsc, 0,
            window_hu, place[AXIAL.cut].start,
        )  # fmt: skip
    shown = []
    for poor, dsc, number, found in zip(order.poor, order.poor_dsc, numbers, masks, strict=True):
        truth = reference[number] == poor.organ.id
        down, across = surroundings([truth, *found.values()], space.spacing_mm)
        shown.append(
            PoorSlice(
                poor,
                number,
                image[number : number + 1, down, across].copy(),
                truth[None, down, across].copy(),
                {method: mask[None, down, across].copy() for method, mask in found.items()},
                dsc,
                space.spacing_mm,
                window_hu,
            )
        )
    return CaseSlices(row, tuple(shown))


def _slices_of_largest_error(order: CaseOrder, reference: np.ndarray, space: Space) -> list[int]:
    """For each poor organ the slice on which its worst method errs most."""
    numbers = dict.fromkeys(range(len(order.poor)), 0)
    for method in {poor.method for poor in order.poor}:
        prediction = _labels(order.predictions[method], space, order.reference)
        for index, poor in enumerate(order.poor):
            if poor.method == method:
                organ = poor.organ.id
                numbers[index] = slice_of_largest_error(prediction == organ, reference == organ)
    return list(numbers.values())


def fitting_window(image: np.ndarray) -> tuple[float, float]:
    """The abdomen's soft-tissue window for CT (a scan that holds air in HU), else the 1st to the 99th percentile."""
    return ABDOMINAL_WINDOW_HU if float(image.min()) <= AIR_HU else window_of(image)


def _labels(path: Path, space: Space, reference: Path) -> np.ndarray:
    found = read_labels(path)
    if not found.space.same_grid(space):
        raise ScanError(f"{path}: not on the grid of {reference.name} ({found.space.difference(space)})")
    return found.array[0]


def _dsc_by_method(results: Results, poor: Poor) -> dict[str, float]:
    found = {method: results.score(method, poor.case, poor.organ.name) for method in results.methods}
    return {method: one.dsc for method, one in found.items() if one is not None and one.dsc is not None}


def _is_whole(results: Results, name: str) -> bool:
    return (
        name in results.images
        and name in results.references
        and all(name in results.predictions[m] and name in results.tables[m].cases for m in results.methods)
    )
