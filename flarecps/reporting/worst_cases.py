"""The organs that came out worst, each on the slice where it went wrong most: reference against prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flarecps.anatomy import Organ
from flarecps.reporting.figure import CHARACTER_INCHES, MOST_INCHES
from flarecps.reporting.overlays import CHALK, DIM, NIGHT, draw_outline, draw_scan, legend_rows
from flarecps.reporting.pictures import new_figure, plain, shortened
from flarecps.reporting.results import Results
from flarecps.reporting.views import AXIAL
from flarecps.typing import SpacingMm

MOST_OF_ONE_ORGAN = 3
MARGIN_MM = 30.0  # shown around the organ
PANEL_INCHES = 2.25
GAP = 0.05
ACROSS = 5  # panels beside one another
MISSED, TOO_MUCH = "#45a5ff", "#ff7f3f"
PREDICTION = "#ffd75e"
WASH = 0.38  # opacity of the errors' colours


@dataclass(frozen=True)
class Poor:
    """One low score: case, organ, and the method that has it."""

    case: str
    organ: Organ
    method: str
    dsc: float


@dataclass(frozen=True)
class PoorSlice:
    """What is drawn of one low score: one slice (1, H, W) around the organ, its masks, DSC by method."""

    poor: Poor
    slice_number: int
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    dsc: Mapping[str, float]
    spacing_mm: SpacingMm
    window_hu: tuple[float, float]


def poorest(results: Results, count: int, most_of_one_organ: int = MOST_OF_ONE_ORGAN) -> list[Poor]:
    """The ``count`` lowest scores, worst first, of equal ones the largest organ; of one organ in one case one method's.

    At most ``most_of_one_organ`` are of the same organ, or the gallery of a weak model would show one organ only.
    A score of 1 is not poor; cases without a prediction, or without a scan, can't be shown: these are left out.
    """
    found: list[tuple[float, float, Poor]] = []  # DSC, ml, which
    for case in results.cases:
        for organ in results.organs:
            scored = [
                (score.dsc, score.reference_ml, method)
                for method in results.methods
                if case in results.predictions[method]
                and (score := results.score(method, case, organ.name)) is not None
                and score.dsc is not None
            ]
            dsc, ml, method = min(scored, key=lambda one: one[0], default=(1.0, 0.0, ""))
            if dsc < 1 and case in results.images:
                found.append((dsc, ml, Poor(case, organ, method, dsc)))
    found.sort(key=lambda one: (one[0], -one[1], one[2].case, one[2].organ.id))
    seen: Counter[int] = Counter()
    chosen: list[Poor] = []
    for _, _, one in found:
        if len(chosen) < count and seen[one.organ.id] < most_of_one_organ:
            seen[one.organ.id] += 1
            chosen.append(one)
    return chosen


def slice_of_largest_error(prediction: np.ndarray, reference: np.ndarray) -> int:
    """The axial slice on which two masks (S, H, W) differ in most voxels; the first of equals.

    >>> a = np.zeros((3, 2, 2), bool); b = a.copy(); b[1] = True
    >>> slice_of_largest_error(a, b)
    1
    """
    return int((prediction != reference).sum(axis=(1, 2)).argmax())


def surroundings(masks: Sequence[np.ndarray], spacing_mm: SpacingMm) -> tuple[slice, slice]:
    """Rows and columns around what is set in any of the (H, W) masks, square in millimetres, kept inside the slice."""
    joint = np.any(np.stack(masks), axis=0)
    spans = []
    for axis in (0, 1):
        found = np.flatnonzero(joint.any(axis=1 - axis))
        middle = (found[0] + found[-1] + 1) / 2 if found.size else joint.shape[axis] / 2
        spans.append((middle, (found[-1] + 1 - found[0] if found.size else 0) * spacing_mm[1 + axis]))
    half_mm = max(extent for _, extent in spans) / 2 + MARGIN_MM
    parts = []
    for (middle, _), edge, step in zip(spans, joint.shape, spacing_mm[1:], strict=True):
        half = half_mm / step
        parts.append(slice(max(0, int(np.floor(middle - half))), min(edge, int(np.ceil(middle + half)))))
    return parts[0], parts[1]


def worst_figure(slices: Sequence[PoorSlice], methods: Sequence[str]) -> Figure:
    """A figure with one group of panels per low score, a panel per method; blue was missed, orange is too much."""
    apart, words, below = 0.22, 0.4, 0.1
    panel = _panel_inches(methods)
    group = len(methods) * (panel + GAP) - GAP
    columns = min(max(1, ACROSS // len(methods)), len(slices))
    width = columns * (group + apart)
    legend = 0.12 + 0.22 * legend_rows(width, 4)
    height = -(-len(slices) // columns) * (panel + words + below) + legend
    figure = new_figure(width, height, facecolor=NIGHT)
    room = int(group / CHARACTER_INCHES / 8.5)
    for place, one in enumerate(slices):
        left = apart / 2 + (place % columns) * (group + apart)
        upper = height - (place // columns) * (panel + words + below)
        title = f"{one.poor.organ.name}, axial {one.slice_number}"
        for down, text, colour in ((0.07, one.poor.case, CHALK), (0.22, title, DIM)):
            words_shown = plain(shortened(text, room))
            figure.text(left / width, (upper - down) / height, words_shown, va="top", color=colour, fontsize=8.5)
        _draw_group(figure, one, methods, left, upper - words - panel)
    handles: list[Patch | Line2D] = [
        Line2D([], [], color="white", linewidth=1.2, label="outline of the reference"),
        Line2D([], [], color=PREDICTION, linewidth=1.2, label="outline of the prediction"),
        Patch(facecolor=MISSED, label="missed"),
        Patch(facecolor=TOO_MUCH, label="too much"),
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / height),
        ncols=-(-len(handles) // legend_rows(width, 4)),
        frameon=False,
        fontsize=8.5,
        labelcolor=CHALK,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.5,
    )
    return figure


def panels_figure(one: PoorSlice, methods: Sequence[str]) -> Figure:
    """The panels of one low score alone, without title and legend: for a page that says these in words."""
    panel = _panel_inches(methods)
    figure = new_figure(len(methods) * (panel + GAP) - GAP, panel, facecolor=NIGHT)
    _draw_group(figure, one, methods, 0.0, 0.0)
    return figure


def _panel_inches(methods: Sequence[str]) -> float:
    return min(PANEL_INCHES, MOST_INCHES / len(methods))


def _draw_group(figure: Figure, one: PoorSlice, methods: Sequence[str], left: float, lower: float) -> None:
    """The panels of one low score beside one another; the corner is given in inches."""
    width, height = figure.get_size_inches()
    panel = _panel_inches(methods)
    room = int(panel / CHARACTER_INCHES / 8.5) - 10  # the score takes the rest
    for index, method in enumerate(methods):
        start = left + index * (panel + GAP)
        axes = figure.add_axes((start / width, lower / height, panel / width, panel / height))
        _draw(axes, one, method, named=len(methods) > 1, room=room)


def _draw(axes: Axes, one: PoorSlice, method: str, named: bool, room: int) -> None:
    prediction = one.predictions.get(method)
    if prediction is None:
        axes.set_facecolor("black")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no prediction", transform=axes.transAxes, ha="center", color=DIM, fontsize=9)
    else:
        _draw_masks(axes, one, prediction)
    words = [plain(shortened(method, room))] if named else []
    if method in one.dsc:
        words.append(f"DSC {one.dsc[method]:.2f}")
    axes.text(
        0.03,
        0.03,
        "  ".join(words),
        transform=axes.transAxes,
        va="bottom",
        color="white",
        fontsize=8.5,
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2.0},
    )


def _draw_masks(axes: Axes, one: PoorSlice, prediction: np.ndarray) -> None:
    draw_scan(axes, one.image, AXIAL, 0, one.spacing_mm, one.window_hu)
    width, height = AXIAL.size_mm(one.image.shape, one.spacing_mm)
    wash = np.zeros((*one.image.shape[1:], 4))
    for mask, colour in ((one.reference & ~prediction, MISSED), (prediction & ~one.reference, TOO_MUCH)):
        wash[mask[0]] = (*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)), WASH)
    axes.imshow(wash[::-1, ::-1], extent=(0, width, height, 0), interpolation="nearest")
    mask_of_one = [Organ(1, one.poor.organ.name, one.poor.organ.column, one.poor.organ.colour, 0.0)]
    for mask, outline in ((prediction, PREDICTION), (one.reference, "white")):
        draw_outline(axes, mask.astype(np.uint8), AXIAL, 0, one.spacing_mm, mask_of_one, outline)
    side = max(width, height)  # a square panel: what lies beyond the scan is black
    axes.set_xlim(width / 2 - side / 2, width / 2 + side / 2)
    axes.set_ylim(height / 2 + side / 2, height / 2 - side / 2)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
