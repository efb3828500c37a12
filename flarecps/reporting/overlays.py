"""Overlays: the scan, the reference and each prediction on axial, coronal and sagittal slices.

A prediction is a translucent colour over the scan, the reference a thin white outline: colour outside an outline is
too much, an outline without colour is missed. Colours belong to organs and are the same in every picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from flarecps.anatomy import Organ, organs_of
from flarecps.reporting.planes import CONVENTION, PLANES, ViewPlane, foreground_box, slice_with_most_labels
from flarecps.reporting.plotting import (
    DARK_BACKGROUND,
    DARK_MUTED,
    DARK_TEXT,
    axes_at,
    bottom_legend,
    legend_rows,
    literal_text,
    new_figure,
    write_png,
)
from flarecps.reporting.tables import score_text
from flarecps.typing import LabelArray, SpacingMm, Triple

ABDOMINAL_WINDOW_HU = (-160.0, 240.0)  # level 40, width 400: soft tissue of the abdomen
LABEL_OPACITY = 0.55  # of a label's colour over the scan
MARGIN_ALL_MM = 40.0  # shown around all organs, so that the body wall is in the picture
MARGIN_ONE_MM = 25.0
GAP_INCHES = 0.05  # between panels
PREVIEW_DOTS_PER_INCH = 110


def display_window(image: np.ndarray, is_hu: bool) -> tuple[float, float]:
    """The grey values shown as black and white: the abdomen's for HU, else the 1st and the 99th percentile."""
    if is_hu:
        return ABDOMINAL_WINDOW_HU
    low, high = np.percentile(image, (1.0, 99.0))
    return float(low), float(high) if high > low else float(low) + 1.0


def draw_scan(axes: Axes, section: np.ndarray, step_mm: tuple[float, float], window: tuple[float, float]) -> None:
    """A slice, as ``ViewPlane.section`` has it, in grey; the axes' units become millimetres from the top left corner.

    ``step_mm``: of its rows and of its columns.
    """
    extent = _extent(section, step_mm)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": window[0], "vmax": window[1], "interpolation": "bilinear"}
    axes.imshow(section, extent=extent, **grey)
    axes.set_facecolor("black")
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_axis_off()


def draw_labels(
    axes: Axes, section: np.ndarray, colours: Mapping[int, tuple[float, ...]], step_mm: tuple[float, float]
) -> None:
    """The labels of a slice over what is drawn already, each in its red, green, blue and opacity."""
    painted = np.zeros((*section.shape, 4))
    for label, colour in colours.items():
        painted[section == label] = colour
    axes.imshow(painted, extent=_extent(section, step_mm), interpolation="nearest")


def draw_outline(axes: Axes, mask: np.ndarray, step_mm: tuple[float, float], colour: str = "white") -> None:
    """The outline of a mask of one slice, along the edges of its pixels."""
    section = np.pad(mask, 1).astype(float)  # the rim closes outlines at the picture's edge
    if section.any():
        down, across = ((np.arange(size) - 0.5) * step for size, step in zip(section.shape, step_mm, strict=True))
        axes.contour(across, down, section, levels=[0.5], colors=[colour], linewidths=0.7)


def draw_panel(
    axes: Axes,
    image: np.ndarray,
    plane: ViewPlane,
    index: int,
    spacing_mm: SpacingMm,
    window: tuple[float, float],
    organs: Sequence[Organ],
    labels: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> None:
    """One slice of a scan with ``labels`` in colour and the outlines of ``reference``, each organ on its own."""
    step_mm = spacing_mm[plane.down], spacing_mm[plane.across]
    draw_scan(axes, plane.section(image, index), step_mm, window)
    if labels is not None:
        colours = {organ.id: (*_rgb(organ), LABEL_OPACITY) for organ in organs}
        draw_labels(axes, plane.section(labels, index), colours, step_mm)
    if reference is not None:
        section = plane.section(reference, index)
        for organ in organs:
            draw_outline(axes, section == organ.id, step_mm)


def panel_grid(
    rows: Sequence[tuple[float, float]], columns: int, panel: float, left: float, right: float, top: float, below: float
) -> tuple[Figure, list[list[Axes]]]:
    """A dark figure and its axes, row by row; all lengths are inches.

    Args:
        rows: width and height of each row's panels; those narrower than ``panel`` are centred on black.
        columns: how many panels are beside one another.
        panel: the width of a column.
        left: room for the rows' titles.
        right: margin.
        top: room for the columns' headings.
        below: room for a legend.
    """
    width = left + right + columns * panel + (columns - 1) * GAP_INCHES
    edge = sum(height for _, height in rows) + GAP_INCHES * (len(rows) - 1) + below
    figure = new_figure(width, top + edge, facecolor=DARK_BACKGROUND)
    grid = []
    for across, height in rows:
        edge -= height
        row = []
        for column in range(columns):
            start = left + column * (panel + GAP_INCHES)
            black = axes_at(figure, start, edge, panel, height, facecolor="black")
            black.set(xticks=[], yticks=[])
            black.spines[:].set_visible(False)
            row.append(axes_at(figure, start + (panel - across) / 2, edge, across, height))
        grid.append(row)
        edge -= GAP_INCHES
    return figure, grid


def overlay_figure(
    image: np.ndarray,
    reference: np.ndarray | None,
    predictions: Mapping[str, np.ndarray],
    spacing_mm: SpacingMm,
    organs: Sequence[Organ],
    organ: Organ | None = None,
    *,
    window_hu: tuple[float, float] = ABDOMINAL_WINDOW_HU,
    mean_dsc: Mapping[str, float] | None = None,
    steady: bool = False,
) -> Figure:
    """A figure with one row per plane (axial, coronal, sagittal) and one column for scan, reference and prediction.

    The slices are those with most labels in the reference (without one: in all predictions together), the same in
    every column. All panels have one scale in millimetres.

    Args:
        image: (S, H, W) canonical, HU (or any grey values with a fitting ``window_hu``).
        reference: (S, H, W) label ids, or None.
        predictions: method name to (S, H, W) label ids, in the order of the columns; may be empty.
        spacing_mm: (slice, row, column).
        organs: the label set; those on no map are left out of the legend.
        organ: show this organ alone, close by; None shows all.
        window_hu: grey values shown as black and as white.
        mean_dsc: of each method on this case, printed in the corner.
        steady: crop and legend follow the reference and the label set alone, whatever is predicted, so that pictures
            of several epochs can be laid over one another.

    Raises:
        ValueError: when the arrays differ in shape.
    """
    maps = ([reference] if reference is not None else []) + list(predictions.values())
    if any(labels.shape != image.shape for labels in maps):
        raise ValueError(f"labels and scan differ in shape: {[labels.shape for labels in maps]}, {image.shape}")
    shown = [organ] if organ is not None else list(organs)
    ids = [one.id for one in shown]
    box = foreground_box(
        [np.isin(labels, ids) for labels in (maps[:1] if steady else maps)],
        image.shape,
        spacing_mm,
        MARGIN_ALL_MM if organ is None else MARGIN_ONE_MM,
    )
    guide = _guide(maps, reference is not None, ids, image.shape)[box]
    image = image[box]
    columns: dict[str, np.ndarray | None] = {"scan": None}
    if reference is not None:
        reference = columns["reference"] = reference[box]
    columns |= {name: labels[box] for name, labels in predictions.items()}
    present = shown if steady else [one for one in shown if any((labels == one.id).any() for labels in maps)]
    outline = reference is not None and bool(predictions)

    sizes_mm = [plane.size_mm(image.shape, spacing_mm) for plane in PLANES]
    panel = 2.9 if len(columns) in (3, 4) else 3.8 if len(columns) < 3 else max(1.6, 11.6 / len(columns))
    scale = panel / max(width for width, _ in sizes_mm)  # inches per millimetre
    left, right = 0.32, 0.08
    width = left + right + len(columns) * panel + (len(columns) - 1) * GAP_INCHES
    below = 0.32 + 0.2 * legend_rows(width, len(present) + outline)
    rows = [(width * scale, height * scale) for width, height in sizes_mm]
    figure, grid = panel_grid(rows, len(columns), panel, left, right, top=0.34, below=below)
    for plane, line in zip(PLANES, grid, strict=True):
        index = slice_with_most_labels(guide, plane, organ.id if organ else None)
        for axes, labels in zip(line, columns.values(), strict=True):
            outlined = reference if outline and labels is not None else None
            draw_panel(axes, image, plane, index, spacing_mm, window_hu, shown, labels, outlined)
        draw_orientation(line[0], plane)
        row_heading(figure, line[0], f"{plane.name} {index + box[plane.cut].start}", 0.17, DARK_MUTED)
    for axes, name in zip(grid[0], columns, strict=True):
        column_heading(figure, axes, name, 10.5, below_top=0.1)
        draw_score(axes, (mean_dsc or {}).get(name, np.nan))
    _scale_bar(grid[0][0])
    if present:
        organ_legend(figure, present, outline, bottom_inches=0.24)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "color": DARK_MUTED, "fontsize": 7.5}
    figure.text(0.5, 0.09 / figure.get_figheight(), CONVENTION, **style)
    return figure


def write_preview(
    path: Path,
    name: str,
    image: np.ndarray,
    labels: LabelArray,
    spacing_mm: SpacingMm,
    label_set: Mapping[str, int],
    is_hu: bool,
) -> None:
    """Write a PNG of one segmented scan: its slices that show most of the organs, and the organs beside them.

    Without any organ, the middle slices. CT is shown in a soft-tissue window, other images from their 1st to their
    99th percentile. The file appears whole or not at all.
    """
    title = name if labels.any() else f"{name}: no organ found"
    organs, window = organs_of(dict(label_set)), display_window(image, is_hu)
    figure = overlay_figure(image, None, {title: labels}, spacing_mm, organs, window_hu=window)
    write_png(path, figure, PREVIEW_DOTS_PER_INCH)


def organ_legend(figure: Figure, organs: Sequence[Organ], outline: bool, bottom_inches: float) -> None:
    """The organs' colours and names, and what the white line is, at the bottom of a figure."""
    entries: list[Artist] = [Patch(facecolor=_rgb(organ), label=literal_text(organ.name)) for organ in organs]
    if outline:
        entries.append(Line2D([], [], color="white", linewidth=1.2, label="outline of the reference"))
    bottom_legend(figure, entries, bottom_inches)


def draw_score(axes: Axes, dsc: float) -> None:
    """Print a DSC of the whole case, not the slice, in a panel's top right corner; nothing for NaN (not scored)."""
    if not np.isnan(dsc):
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        style: dict[str, Any] = {"color": "white", "fontsize": 8.5, "fontweight": "bold"}
        box = {"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 2.2}
        axes.text(0.97, 0.96, f"whole case: DSC {score_text(dsc)}", **place, **style, bbox=box)


def draw_orientation(axes: Axes, plane: ViewPlane) -> None:
    """Print at each edge of a panel what lies there: R, L, A, P, S, I."""
    for x, y, letter, across, down in (
        (0.02, 0.5, plane.left, "left", "center"),
        (0.98, 0.5, plane.right, "right", "center"),
        (0.5, 0.98, plane.top, "center", "top"),
        (0.5, 0.02, plane.bottom, "center", "bottom"),
    ):
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": across, "va": down}
        edge = [withStroke(linewidth=2, foreground="black")]
        axes.text(x, y, letter, **place, color="#ffd75e", fontsize=8.5, fontweight="bold", path_effects=edge)


def column_heading(figure: Figure, axes: Axes, text: str, points: float, below_top: float) -> None:
    """A heading over a panel of the first row, ``below_top`` inches from the figure's upper edge."""
    place, top = axes.get_position(), 1 - below_top / figure.get_figheight()
    style: dict[str, Any] = {"ha": "center", "va": "top", "color": DARK_TEXT, "fontsize": points}
    figure.text((place.x0 + place.x1) / 2, top, literal_text(text), **style)


def row_heading(figure: Figure, axes: Axes, text: str, left_inches: float, colour: str) -> None:
    """A title beside a row's first panel, upwards."""
    place, left = axes.get_position(), left_inches / figure.get_figwidth()
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "color": colour, "fontsize": 8.5}
    figure.text(left, (place.y0 + place.y1) / 2, literal_text(text), **style)


def _extent(section: np.ndarray, step_mm: tuple[float, float]) -> tuple[float, float, float, float]:
    return 0, section.shape[1] * step_mm[1], section.shape[0] * step_mm[0], 0


def _rgb(organ: Organ) -> tuple[float, float, float]:
    red, green, blue = organ.colour
    return red / 255, green / 255, blue / 255


def _guide(maps: Sequence[np.ndarray], has_reference: bool, ids: Sequence[int], shape: Triple) -> np.ndarray:
    """The label map that decides which slices are shown: the reference, or else the first non-zero prediction."""
    merged = np.zeros(shape, np.uint8)
    for number, labels in enumerate(maps):
        merged = np.where((merged == 0) & np.isin(labels, ids), labels, merged)
        if number == 0 and has_reference and merged.any():
            break
    return merged


def _scale_bar(axes: Axes) -> None:
    """A line of 1, 2, 5 or 10 cm at the lower left corner, at most a third of the picture's width."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    length_cm = max([length for length in (1, 2, 5, 10) if 10 * length <= width / 3], default=1)
    x, y = width * 0.04, height * 0.95
    axes.plot([x, x + 10 * length_cm], [y, y], color=DARK_TEXT, linewidth=1.6, solid_capstyle="butt")
    axes.text(x, y - height * 0.015, f"{length_cm} cm", color=DARK_TEXT, fontsize=7.5, va="bottom")
