"""The figure that shows at a glance what semi-supervision buys: scan, reference and methods, case by case.

The arrangement is that of the paper's Figure 5: a row per case, a column per method, the mean DSC in the corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flarecps.anatomy import Organ
from flarecps.reporting.overlays import (
    ABDOMINAL_WINDOW_HU,
    CHALK,
    DIM,
    MARGIN_ALL_MM,
    NIGHT,
    corner_score,
    draw_film,
    draw_outline,
    draw_scan,
    edge_letters,
    legend_rows,
    organ_legend,
)
from flarecps.reporting.pictures import new_figure, plain, shortened, write_png
from flarecps.reporting.views import AXIAL, View, frame, telling_index
from flarecps.typing import SpacingMm

PANEL_INCHES = 2.6
MOST_INCHES = 16.0  # of all columns together: with more methods they become narrower
CHARACTER_INCHES = 0.0085  # width of an average letter, per point of its size


@dataclass(frozen=True)
class FigureCase:
    """One row of the figure: a canonical scan (S, H, W), its reference, and each method's labels and mean DSC."""

    name: str
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    spacing_mm: SpacingMm
    mean_dsc: Mapping[str, float] = field(default_factory=dict)
    index: int | None = None  # slice to show; None: the one that shows most of the reference
    window_hu: tuple[float, float] | None = None  # None: the figure's
    slice_number: int | None = None  # of the whole scan, where the arrays hold one slice only; see ``cut_out``


def cut_place(reference: np.ndarray, spacing_mm: SpacingMm, view: View, index: int | None) -> tuple[slice, ...]:
    """The part of a scan that a row shows: one slice (``telling_index`` unless given), the organs and 4 cm around."""
    box = list(frame([reference > 0], reference.shape, spacing_mm, margin_mm=MARGIN_ALL_MM))
    shown = telling_index(reference, view) if index is None else index
    box[view.cut] = slice(shown, shown + 1)
    return tuple(box)


def cut_out(case: FigureCase, view: View = AXIAL) -> FigureCase:
    """The case with only the voxels that its row shows; a case that is cut already comes back as it is."""
    if case.slice_number is not None:
        return case
    place = cut_place(case.reference, case.spacing_mm, view, case.index)
    return replace(
        case,
        image=case.image[place].copy(),
        reference=case.reference[place].copy(),
        predictions={name: labels[place].copy() for name, labels in case.predictions.items()},
        index=0,
        slice_number=place[view.cut].start,
    )


def comparison_figure(
    cases: Sequence[FigureCase],
    organs: Sequence[Organ],
    view: View = AXIAL,
    window_hu: tuple[float, float] = ABDOMINAL_WINDOW_HU,
) -> Figure:
    """A figure with one row per case and the columns image, reference, and the methods of the first case.

    Every scan is cropped to its organs and their surroundings and fills its panel's width; the white outline is the
    reference. Raises ``ValueError`` for no case, and for cases whose methods differ.
    """
    methods = list(cases[0].predictions) if cases else []
    if not cases or any(list(case.predictions) != methods for case in cases):
        raise ValueError("a comparison needs at least one case, and the same methods in every case")
    heads = ["image", "reference", *methods]
    rows = [cut_out(case, view) for case in cases]
    maps = [labels for row in rows for labels in (row.reference, *row.predictions.values())]
    present = [organ for organ in organs if any((labels == organ.id).any() for labels in maps)]

    gap, top, side = 0.05, 0.32, 0.42
    panel = min(PANEL_INCHES, MOST_INCHES / len(heads))
    heights = []
    for row in rows:
        width_mm, height_mm = view.size_mm(row.image.shape, row.spacing_mm)
        heights.append(panel * height_mm / width_mm)
    width = side + len(heads) * (panel + gap) + gap
    bottom = 0.12 + 0.2 * legend_rows(width, len(present) + 1)
    height = top + sum(heights) + gap * (len(rows) - 1) + bottom
    figure = new_figure(width, height, facecolor=NIGHT)
    edge = height - top
    for row, tall in zip(rows, heights, strict=True):
        edge -= tall
        for column, head in enumerate(heads):
            left = side + gap + column * (panel + gap)
            axes = figure.add_axes((left / width, edge / height, panel / width, tall / height))
            _draw_panel(axes, row, head, view, row.window_hu or window_hu, organs)
        _row_title(figure, row, view, side, edge + tall / 2, tall)
        edge -= gap
    for column, head in enumerate(heads):
        centre = side + gap + column * (panel + gap) + panel / 2
        size = min(11.0, panel / CHARACTER_INCHES / max(len(head), 1))
        figure.text(
            centre / width, 1 - 0.08 / height, plain(head), ha="center", va="top", color=CHALK, fontsize=max(size, 6)
        )
    organ_legend(figure, present, outline=bool(methods), baseline=0.02 / height)
    return figure


def readme_figure(
    path: Path | str,
    cases: Sequence[FigureCase],
    organs: Sequence[Organ],
    window_hu: tuple[float, float] = ABDOMINAL_WINDOW_HU,
) -> None:
    """Write the axial ``comparison_figure`` of ``cases`` as a PNG at ``path``, atomically."""
    write_png(path, comparison_figure(cases, organs, window_hu=window_hu), dots_per_inch=160)


def _draw_panel(
    axes: Axes, row: FigureCase, head: str, view: View, window_hu: tuple[float, float], organs: Sequence[Organ]
) -> None:
    draw_scan(axes, row.image, view, 0, row.spacing_mm, window_hu)
    if head == "image":
        edge_letters(axes, view)
    elif head == "reference":
        draw_film(axes, row.reference, view, 0, row.spacing_mm, organs)
    else:
        draw_film(axes, row.predictions[head], view, 0, row.spacing_mm, organs)
        draw_outline(axes, row.reference, view, 0, row.spacing_mm, organs)
        if head in row.mean_dsc:
            corner_score(axes, row.mean_dsc[head])


def _row_title(figure: Figure, row: FigureCase, view: View, side: float, centre: float, tall: float) -> None:
    """Case and slice, upwards along the left edge."""
    room = int(tall / CHARACTER_INCHES / 8.5)
    for place, text, colour in ((0.14, row.name, CHALK), (0.31, f"{view.name} {row.slice_number}", DIM)):
        figure.text(
            (place + side - 0.42) / figure.get_figwidth(),
            centre / figure.get_figheight(),
            plain(shortened(text, room)),
            rotation=90,
            ha="center",
            va="center",
            color=colour,
            fontsize=8.5,
        )
