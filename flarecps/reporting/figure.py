"""The figure that shows at a glance what semi-supervision buys: scan, reference and methods, case by case.

The arrangement is that of the paper's Figure 5: a row per case, a column per method, the mean DSC in the corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flarecps.anatomy import Organ
from flarecps.reporting.overlays import (
    ABDOMINAL_WINDOW_HU,
    CHALK,
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
from flarecps.reporting.pictures import new_figure, plain, write_png
from flarecps.reporting.views import AXIAL, View, frame, telling_index
from flarecps.typing import SpacingMm

PANEL_INCHES = 2.6


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
    boxes = [
        frame([case.reference > 0], case.reference.shape, case.spacing_mm, margin_mm=MARGIN_ALL_MM) for case in cases
    ]
    slices = [telling_index(case.reference, view) if case.index is None else case.index for case in cases]
    sections = [view.section(case.reference, index) for case, index in zip(cases, slices, strict=True)]
    present = [organ for organ in organs if any((section == organ.id).any() for section in sections)]

    gap, top = 0.05, 0.32
    heights = []
    for case, box in zip(cases, boxes, strict=True):
        width_mm, height_mm = view.size_mm(case.image[box].shape, case.spacing_mm)
        heights.append(PANEL_INCHES * height_mm / width_mm)
    width = len(heads) * (PANEL_INCHES + gap) + gap
    bottom = 0.12 + 0.2 * legend_rows(width, len(present) + 1)
    height = top + sum(heights) + gap * (len(cases) - 1) + bottom
    figure = new_figure(width, height, facecolor=NIGHT)
    edge = height - top
    for case, box, tall, index in zip(cases, boxes, heights, slices, strict=True):
        edge -= tall
        image, reference = case.image[box], case.reference[box]
        index -= box[view.cut].start
        for column, head in enumerate(heads):
            left = gap + column * (PANEL_INCHES + gap)
            axes = figure.add_axes((left / width, edge / height, PANEL_INCHES / width, tall / height))
            draw_scan(axes, image, view, index, case.spacing_mm, window_hu)
            if head == "image":
                edge_letters(axes, view)
            elif head == "reference":
                draw_film(axes, reference, view, index, case.spacing_mm, organs)
            else:
                draw_film(axes, case.predictions[head][box], view, index, case.spacing_mm, organs)
                draw_outline(axes, reference, view, index, case.spacing_mm, organs)
                if head in case.mean_dsc:
                    corner_score(axes, case.mean_dsc[head])
        edge -= gap
    for column, head in enumerate(heads):
        centre = gap + column * (PANEL_INCHES + gap) + PANEL_INCHES / 2
        figure.text(centre / width, 1 - 0.08 / height, plain(head), ha="center", va="top", color=CHALK, fontsize=11)
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
