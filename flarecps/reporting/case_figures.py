"""Figures of cases: methods side by side with the reference, and the organs that came out worst.

The first is that of the paper's Figure 5: a row per case, a column per method, the mean DSC in the corner. It shows at
a glance what semi-supervision buys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flarecps.anatomy import Organ
from flarecps.reporting.overlays import (
    ABDOMINAL_WINDOW_HU,
    GAP_INCHES,
    MARGIN_ALL_MM,
    column_heading,
    draw_labels,
    draw_orientation,
    draw_outline,
    draw_panel,
    draw_scan,
    draw_score,
    organ_legend,
    panel_grid,
    row_heading,
)
from flarecps.reporting.planes import AXIAL, foreground_box, slice_with_most_labels
from flarecps.reporting.plotting import (
    CHARACTER_INCHES,
    DARK_BACKGROUND,
    DARK_MUTED,
    DARK_TEXT,
    axes_at,
    bottom_legend,
    legend_rows,
    letters_within,
    literal_text,
    new_figure,
    shortened,
    text_at,
)
from flarecps.reporting.results import Results
from flarecps.reporting.tables import score_text
from flarecps.typing import SpacingMm

PANEL_INCHES, ERROR_PANEL_INCHES = 2.6, 2.25
MOST_INCHES = 16.0  # of all columns together: with more methods they become narrower
MOST_OF_ONE_ORGAN = 3
ERROR_MARGIN_MM = 30.0  # shown around the organ
ERROR_COLUMNS = 5  # panels beside one another
MISSED, TOO_MUCH = "#45a5ff", "#ff7f3f"
PREDICTION = "#ffd75e"
ERROR_OPACITY = 0.38


@dataclass(frozen=True)
class CaseRow:
    """One row of the comparison: a canonical scan (S, H, W), its reference, and each method's labels and mean DSC."""

    name: str
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    spacing_mm: SpacingMm
    mean_dsc: Mapping[str, float] = field(default_factory=dict)
    window_hu: tuple[float, float] = ABDOMINAL_WINDOW_HU  # grey values shown as black and white
    slice_number: int | None = None  # of the whole scan, where the arrays hold one slice only; see ``_cropped``


def row_box(reference: np.ndarray, spacing_mm: SpacingMm) -> tuple[slice, ...]:
    """The part of a scan that a row shows: the axial slice with most labels, 4 cm around the organs."""
    _, *around = foreground_box([reference > 0], reference.shape, spacing_mm, margin_mm=MARGIN_ALL_MM)
    shown = slice_with_most_labels(reference, AXIAL)
    return slice(shown, shown + 1), *around


def _cropped(row: CaseRow) -> CaseRow:
    """The row with only the voxels that it shows; one that is cropped already comes back as it is."""
    if row.slice_number is not None:
        return row
    box = row_box(row.reference, row.spacing_mm)
    predictions = {name: labels[box] for name, labels in row.predictions.items()}
    return replace(
        row, image=row.image[box], reference=row.reference[box], predictions=predictions, slice_number=box[0].start
    )


def comparison_figure(rows: Sequence[CaseRow], organs: Sequence[Organ]) -> Figure:
    """A figure with one row per case, an axial slice, and the columns image, reference, and the first case's methods.

    Every scan is cropped to its organs and their surroundings and fills its panel's width; the white outline is the
    reference. Raises ``ValueError`` for no case, and for cases whose methods differ.
    """
    methods = list(rows[0].predictions) if rows else []
    if not rows or any(list(row.predictions) != methods for row in rows):
        raise ValueError("a comparison needs at least one case, and the same methods in every case")
    columns = ["image", "reference", *methods]
    rows = [_cropped(row) for row in rows]
    maps = [labels for row in rows for labels in (row.reference, *row.predictions.values())]
    present = [organ for organ in organs if any((labels == organ.id).any() for labels in maps)]

    panel = min(PANEL_INCHES, MOST_INCHES / len(columns))
    left = 0.42 + GAP_INCHES
    width = left + len(columns) * (panel + GAP_INCHES)
    below = 0.12 + 0.2 * legend_rows(width, len(present) + 1)
    sizes_mm = [AXIAL.size_mm(row.image.shape, row.spacing_mm) for row in rows]
    sizes = [(panel, panel * height / width) for width, height in sizes_mm]
    figure, grid = panel_grid(sizes, len(columns), panel, left, GAP_INCHES, top=0.32, below=below)
    for row, (_, tall), line in zip(rows, sizes, grid, strict=True):
        for axes, name in zip(line, columns, strict=True):
            labels = row.predictions.get(name, row.reference if name == "reference" else None)
            outlined = row.reference if name in methods else None
            draw_panel(axes, row.image, AXIAL, 0, row.spacing_mm, row.window_hu, organs, labels, outlined)
            draw_score(axes, row.mean_dsc.get(name, np.nan))
        draw_orientation(line[0], AXIAL)
        room = letters_within(tall)
        row_heading(figure, line[0], shortened(row.name, room), 0.14, DARK_TEXT)
        row_heading(figure, line[0], shortened(f"{AXIAL.name} {row.slice_number}", room), 0.31, DARK_MUTED)
    for axes, name in zip(grid[0], columns, strict=True):
        points = min(11.0, panel / CHARACTER_INCHES / max(len(name), 1))
        column_heading(figure, axes, name, max(points, 6), below_top=0.08)
    organ_legend(figure, present, outline=bool(methods), bottom_inches=0.02)
    return figure


@dataclass(frozen=True)
class LowScore:
    """One low score: case, organ, and the method that has it."""

    case: str
    organ: Organ
    method: str
    dsc: float


@dataclass(frozen=True)
class ErrorSlice:
    """What is drawn of one low score: one slice (1, H, W) around the organ, its masks, DSC by method."""

    low: LowScore
    slice_number: int
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    dsc: Mapping[str, float]
    spacing_mm: SpacingMm
    window_hu: tuple[float, float]


def lowest_scores(results: Results, count: int, most_of_one_organ: int = MOST_OF_ONE_ORGAN) -> list[LowScore]:
    """The ``count`` lowest scores, worst first, of equal ones the largest organ; of one organ in one case one method's.

    At most ``most_of_one_organ`` are of the same organ, or the figure of a weak model would show one organ only. A
    score of 1 is not low; cases without a prediction, or without a scan, can't be shown: these are left out.
    """
    found: list[tuple[float, float, LowScore]] = []  # DSC, ml, which
    for case in results.cases:
        for organ in results.organs:
            scored = [
                (score.dsc, score.reference_ml, method)
                for method in results.methods
                if case in results.predictions[method]
                and (found_case := results.tables[method].cases.get(case)) is not None
                and (score := found_case.organs[organ.name]).dsc is not None
            ]
            dsc, ml, method = min(scored, key=lambda one: one[0], default=(1.0, 0.0, ""))
            if dsc < 1 and case in results.images:
                found.append((dsc, ml, LowScore(case, organ, method, dsc)))
    found.sort(key=lambda one: (one[0], -one[1], one[2].case, one[2].organ.id))
    seen: Counter[int] = Counter()
    lowest: list[LowScore] = []
    for _, _, one in found:
        if len(lowest) < count and seen[one.organ.id] < most_of_one_organ:
            seen[one.organ.id] += 1
            lowest.append(one)
    return lowest


def slice_of_largest_error(prediction: np.ndarray, reference: np.ndarray) -> int:
    """The axial slice on which two masks (S, H, W) differ in most voxels; the first of equals.

    >>> a = np.zeros((3, 2, 2), bool); b = a.copy(); b[1] = True
    >>> slice_of_largest_error(a, b)
    1
    """
    return int((prediction != reference).sum(axis=(1, 2)).argmax())


def square_around(masks: Sequence[np.ndarray], spacing_mm: SpacingMm) -> tuple[slice, slice]:
    """Rows and columns around what is set in any of the (H, W) masks, square in millimetres, kept inside the slice."""
    joint = np.any(np.stack(masks), axis=0)
    spans = []
    for axis in (0, 1):
        found = np.flatnonzero(joint.any(axis=1 - axis))
        middle = (found[0] + found[-1] + 1) / 2 if found.size else joint.shape[axis] / 2
        spans.append((middle, (found[-1] + 1 - found[0] if found.size else 0) * spacing_mm[1 + axis]))
    half_mm = max(extent for _, extent in spans) / 2 + ERROR_MARGIN_MM
    parts = []
    for (middle, _), edge, step in zip(spans, joint.shape, spacing_mm[1:], strict=True):
        half = half_mm / step
        parts.append(slice(max(0, int(np.floor(middle - half))), min(edge, int(np.ceil(middle + half)))))
    return parts[0], parts[1]


def worst_figure(slices: Sequence[ErrorSlice], methods: Sequence[str]) -> Figure:
    """A figure with one group of panels per low score, a panel per method; blue was missed, orange is too much."""
    apart, words, below = 0.22, 0.4, 0.1
    panel = _error_panel_inches(methods)
    group = len(methods) * (panel + GAP_INCHES) - GAP_INCHES
    columns = min(max(1, ERROR_COLUMNS // len(methods)), len(slices))
    width = columns * (group + apart)
    height = -(-len(slices) // columns) * (panel + words + below) + 0.12 + 0.22 * legend_rows(width, 5)
    figure = new_figure(width, height, facecolor=DARK_BACKGROUND)
    room = letters_within(group)
    for place, one in enumerate(slices):
        left = apart / 2 + (place % columns) * (group + apart)
        upper = height - (place // columns) * (panel + words + below)
        title = f"{one.low.organ.name}, axial {one.slice_number}"
        for down, text, colour in ((0.07, one.low.case, DARK_TEXT), (0.22, title, DARK_MUTED)):
            text_at(figure, left, upper - down, shortened(text, room), va="top", color=colour, fontsize=8.5)
        _draw_errors(figure, one, methods, left, upper - words - panel)
    entries: list[Artist] = [
        Line2D([], [], color="white", linewidth=1.2, label="outline of the reference"),
        Line2D([], [], color=PREDICTION, linewidth=1.2, label="outline of the prediction"),
        Patch(facecolor=MISSED, label="missed"),
        Patch(facecolor=TOO_MUCH, label="too much"),
        Line2D([], [], linewidth=0, label="DSC: of the whole case"),
    ]
    bottom_legend(figure, entries, bottom_inches=0.02)
    return figure


def error_panels(one: ErrorSlice, methods: Sequence[str]) -> Figure:
    """The panels of one low score alone, without title and legend: for a page that says these in words."""
    panel = _error_panel_inches(methods)
    figure = new_figure(len(methods) * (panel + GAP_INCHES) - GAP_INCHES, panel, facecolor=DARK_BACKGROUND)
    _draw_errors(figure, one, methods, 0.0, 0.0)
    return figure


def _error_panel_inches(methods: Sequence[str]) -> float:
    return min(ERROR_PANEL_INCHES, MOST_INCHES / len(methods))


def _draw_errors(figure: Figure, one: ErrorSlice, methods: Sequence[str], left: float, lower: float) -> None:
    """The panels of one low score beside one another; the corner is given in inches."""
    panel = _error_panel_inches(methods)
    room = letters_within(panel) - 12  # the score takes the rest
    for index, method in enumerate(methods):
        axes = axes_at(figure, left + index * (panel + GAP_INCHES), lower, panel, panel)
        prediction = one.predictions.get(method)
        if prediction is None:
            axes.set_facecolor("black")
            axes.text(0.5, 0.5, "no prediction", transform=axes.transAxes, ha="center", color=DARK_MUTED, fontsize=9)
        else:
            _draw_masks(axes, one, prediction)
        axes.set(xticks=[], yticks=[])
        words = [literal_text(shortened(method, room))] if len(methods) > 1 else []
        if method in one.dsc:
            words.append(f"DSC {score_text(one.dsc[method])}")
        place: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom"}
        box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2.0}
        axes.text(0.03, 0.03, "  ".join(words), **place, color="white", fontsize=8.5, bbox=box)


def _draw_masks(axes: Axes, one: ErrorSlice, prediction: np.ndarray) -> None:
    image, mask, truth = (AXIAL.section(volume, 0) for volume in (one.image, prediction, one.reference))
    step_mm = one.spacing_mm[1:]
    draw_scan(axes, image, step_mm, one.window_hu)
    colours = {1: to_rgba(MISSED, ERROR_OPACITY), 2: to_rgba(TOO_MUCH, ERROR_OPACITY)}
    draw_labels(axes, truth + 2 * mask, colours, step_mm)
    for outlined, colour in ((mask, PREDICTION), (truth, "white")):
        draw_outline(axes, outlined, step_mm, colour)
    width, height = AXIAL.size_mm(one.image.shape, one.spacing_mm)
    side = max(width, height)  # a square panel: what lies beyond the scan is black
    axes.set_xlim(width / 2 - side / 2, width / 2 + side / 2)
    axes.set_ylim(height / 2 + side / 2, height / 2 - side / 2)
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
