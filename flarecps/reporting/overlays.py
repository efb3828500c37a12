"""Overlays: the scan, the reference and each prediction on axial, coronal and sagittal slices.

A prediction is a coloured film over the scan, the reference a thin white outline: film outside an outline is too
much, an outline without film is missed. Colours belong to organs and are the same in every picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from flarecps.anatomy import Organ
from flarecps.reporting.pictures import new_figure, plain
from flarecps.reporting.views import CONVENTION, VIEWS, View, frame, telling_index
from flarecps.typing import SpacingMm, Triple

ABDOMINAL_WINDOW_HU = (-160.0, 240.0)  # level 40, width 400: soft tissue of the abdomen
FILM = 0.55  # opacity of a prediction's colour over the scan
NIGHT = "#0c0f12"  # scans are looked at on black, whatever the theme of the page
CHALK = "#e8ebee"
DIM = "#9aa3ab"
MARGIN_ALL_MM = 40.0  # shown around all organs, so that the body wall is in the picture
MARGIN_ONE_MM = 25.0


def window_of(image: np.ndarray) -> tuple[float, float]:
    """The grey values shown as black and white for a scan without physical units: its 1st and 99th percentile."""
    low, high = np.percentile(image, (1.0, 99.0))
    return float(low), float(high) if high > low else float(low) + 1.0


def draw_scan(axes: Axes, image: np.ndarray, view: View, index: int, spacing_mm: SpacingMm, window: tuple) -> None:
    """One slice in grey with square millimetres; the axes' units become millimetres from the top left corner."""
    width, height = view.size_mm(image.shape, spacing_mm)
    axes.imshow(
        view.section(image, index),
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, width, height, 0),
        interpolation="bilinear",
    )
    axes.set_facecolor("black")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()


def draw_film(
    axes: Axes, labels: np.ndarray, view: View, index: int, spacing_mm: SpacingMm, organs: Sequence[Organ]
) -> None:
    """The labels of one slice as translucent colours over what is drawn already."""
    section = view.section(labels, index)
    film = np.zeros((*section.shape, 4))
    for organ in organs:
        film[section == organ.id] = (*_rgb(organ), FILM)
    width, height = view.size_mm(labels.shape, spacing_mm)
    axes.imshow(film, extent=(0, width, height, 0), interpolation="nearest")


def draw_outline(
    axes: Axes,
    labels: np.ndarray,
    view: View,
    index: int,
    spacing_mm: SpacingMm,
    organs: Sequence[Organ],
    colour: str | None = "white",
) -> None:
    """Outlines of the labels of one slice, each organ on its own; ``colour=None``: in the organs' colours."""
    section = view.section(labels, index)
    down, across = (np.arange(size) + 0.5 for size in section.shape)
    down, across = down * spacing_mm[view.down], across * spacing_mm[view.across]
    for organ in organs:
        mask = np.pad(section == organ.id, 1).astype(float)  # the rim closes outlines at the picture's edge
        if mask.any():
            axes.contour(
                np.concatenate([[across[0] - spacing_mm[view.across]], across, [across[-1] + spacing_mm[view.across]]]),
                np.concatenate([[down[0] - spacing_mm[view.down]], down, [down[-1] + spacing_mm[view.down]]]),
                mask,
                levels=[0.5],
                colors=[colour or _rgb(organ)],
                linewidths=0.7,
            )


def legend_rows(figure_width_inches: float, entries: int) -> int:
    """How many lines a legend of so many entries takes."""
    return -(-entries // max(1, int(figure_width_inches / 1.6)))


def organ_legend(figure: Figure, organs: Sequence[Organ], outline: bool, baseline: float) -> None:
    """The organs' colours and names, and what the white line is, centred at the bottom of a figure."""
    entries: list[Patch | Line2D] = [Patch(facecolor=_rgb(organ), label=plain(organ.name)) for organ in organs]
    if outline:
        entries.append(Line2D([], [], color="white", linewidth=1.2, label="outline of the reference"))
    figure.legend(
        handles=entries,
        loc="lower center",
        bbox_to_anchor=(0.5, baseline),
        ncols=-(-len(entries) // legend_rows(figure.get_figwidth(), len(entries))),
        frameon=False,
        fontsize=8.5,
        labelcolor=CHALK,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.5,
    )


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
    """A figure with one row per view (axial, coronal, sagittal) and one column for scan, reference and prediction.

    The slices are those of ``telling_index`` in the reference (without one: in all predictions together), the same
    in every column. All panels have one scale in millimetres.

    Args:
        image: (S, H, W) canonical, HU (or any grey values with a fitting ``window_hu``).
        reference: (S, H, W) label ids, or None.
        predictions: method name to (S, H, W) label ids, in the order of the columns; may be empty.
        spacing_mm: (slice, row, column).
        organs: the label set; those on no map are left out of the legend.
        organ: show this organ alone, close by; None shows all.
        window_hu: grey values shown as black and as white.
        mean_dsc: of each method on this case, printed in the corner.
        steady: frame and legend follow the reference and the label set alone, whatever is predicted, so that pictures
            of several epochs can be laid over one another.

    Raises:
        ValueError: when the arrays differ in shape.
    """
    maps = ([reference] if reference is not None else []) + list(predictions.values())
    if any(labels.shape != image.shape for labels in maps):
        raise ValueError(f"labels and scan differ in shape: {[labels.shape for labels in maps]}, {image.shape}")
    shown = [organ] if organ is not None else list(organs)
    ids = [one.id for one in shown]
    guide = _guide(reference, list(predictions.values()), ids, image.shape)
    box = frame(
        [np.isin(labels, ids) for labels in (maps[:1] if steady else maps)],
        image.shape,
        spacing_mm,
        MARGIN_ALL_MM if organ is None else MARGIN_ONE_MM,
    )
    first = [part.start for part in box]
    image, guide = image[box], guide[box]
    columns: dict[str, np.ndarray | None] = {"scan": None}
    if reference is not None:
        columns["reference"] = reference[box]
    columns |= {name: labels[box] for name, labels in predictions.items()}
    present = shown if steady else [one for one in shown if any((labels == one.id).any() for labels in maps)]

    outline = reference is not None and bool(predictions)
    sizes = [view.size_mm(image.shape, spacing_mm) for view in VIEWS]
    figure, grid = _grid(sizes, len(columns), entries=len(present) + outline)
    for row, view in enumerate(VIEWS):
        index = telling_index(guide, view, organ.id if organ else None)
        for column, (name, labels) in enumerate(columns.items()):
            axes = grid[row][column]
            draw_scan(axes, image, view, index, spacing_mm, window_hu)
            if labels is not None:
                draw_film(axes, labels, view, index, spacing_mm, shown)
                if outline and reference is not None:
                    draw_outline(axes, reference[box], view, index, spacing_mm, shown)
            if row == 0:
                _heading(figure, axes, name)
                if mean_dsc and name in mean_dsc:
                    corner_score(axes, mean_dsc[name])
            if column == 0:
                edge_letters(axes, view)
                _row_title(figure, axes, f"{view.name} {index + first[view.cut]}")
    _scale_bar(grid[0][0])
    if present:
        organ_legend(figure, present, outline, baseline=0.24 / figure.get_figheight())
    figure.text(0.5, 0.09 / figure.get_figheight(), CONVENTION, ha="center", va="bottom", color=DIM, fontsize=7.5)
    return figure


def _rgb(organ: Organ) -> tuple[float, float, float]:
    red, green, blue = organ.colour
    return red / 255, green / 255, blue / 255


def corner_score(axes: Axes, dsc: float) -> None:
    """Print a mean DSC in the top right corner of a panel; nothing for NaN (nothing was scored)."""
    if np.isnan(dsc):
        return
    axes.text(
        0.97,
        0.96,
        f"DSC {dsc:.3f}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color="white",
        fontsize=9.5,
        fontweight="bold",
        bbox={"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 2.2},
    )


def _guide(
    reference: np.ndarray | None, predictions: Sequence[np.ndarray], ids: Sequence[int], shape: Triple
) -> np.ndarray:
    """The label map that decides which slices are shown: the reference, or else the first non-zero prediction."""
    for labels in [reference] if reference is not None else []:
        kept = np.where(np.isin(labels, ids), labels, 0)
        if kept.any():
            return kept
    merged = np.zeros(shape, dtype=np.uint8)
    for labels in predictions:
        merged = np.where(merged == 0, np.where(np.isin(labels, ids), labels, 0), merged)
    return merged


def _grid(sizes_mm: Sequence[tuple[float, float]], columns: int, entries: int) -> tuple[Figure, list[list[Axes]]]:
    """Axes in one scale of millimetres: a row per view, as wide as the widest view, narrow views centred."""
    gap, left, right, top = 0.05, 0.32, 0.08, 0.34
    widest = max(width for width, _ in sizes_mm)
    panel = 2.9 if columns in (3, 4) else 3.8 if columns < 3 else max(1.6, 11.6 / columns)
    scale = panel / widest  # inches per millimetre
    heights = [height * scale for _, height in sizes_mm]
    total_width = left + right + columns * panel + (columns - 1) * gap
    bottom = 0.32 + 0.2 * legend_rows(total_width, entries)
    total_height = top + sum(heights) + gap * (len(sizes_mm) - 1) + bottom
    figure = new_figure(total_width, total_height, facecolor=NIGHT)
    grid = []
    edge = total_height - top
    for (width_mm, _), height in zip(sizes_mm, heights, strict=True):
        edge -= height
        width = width_mm * scale
        row = []
        for column in range(columns):
            start = left + column * (panel + gap)
            back = figure.add_axes(
                (start / total_width, edge / total_height, panel / total_width, height / total_height)
            )
            back.set_facecolor("black")
            back.set_xticks([])
            back.set_yticks([])
            for spine in back.spines.values():
                spine.set_visible(False)
            start += (panel - width) / 2
            row.append(
                figure.add_axes((start / total_width, edge / total_height, width / total_width, height / total_height))
            )
        grid.append(row)
        edge -= gap
    return figure, grid


def _heading(figure: Figure, axes: Axes, text: str) -> None:
    place = axes.get_position()
    figure.text(
        (place.x0 + place.x1) / 2,
        1 - 0.1 / figure.get_figheight(),
        plain(text),
        ha="center",
        va="top",
        color=CHALK,
        fontsize=10.5,
    )


def edge_letters(axes: Axes, view: View) -> None:
    """Print at each edge of a panel what lies there: R, L, A, P, S, I."""
    for x, y, letter, across, down in (
        (0.02, 0.5, view.left, "left", "center"),
        (0.98, 0.5, view.right, "right", "center"),
        (0.5, 0.98, view.top, "center", "top"),
        (0.5, 0.02, view.bottom, "center", "bottom"),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=across,
            va=down,
            color="#ffd75e",
            fontsize=8.5,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _row_title(figure: Figure, axes: Axes, text: str) -> None:
    place = axes.get_position()
    figure.text(
        0.17 / figure.get_figwidth(),
        (place.y0 + place.y1) / 2,
        text,
        rotation=90,
        ha="center",
        va="center",
        color=DIM,
        fontsize=8.5,
    )


def _scale_bar(axes: Axes) -> None:
    """A line of 1, 2, 5 or 10 cm at the lower left corner, at most a third of the picture's width."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    length_cm = max([length for length in (1, 2, 5, 10) if 10 * length <= width / 3], default=1)
    x, y = width * 0.04, height * 0.95
    axes.plot([x, x + 10 * length_cm], [y, y], color=CHALK, linewidth=1.6, solid_capstyle="butt")
    axes.text(x, y - height * 0.015, f"{length_cm} cm", color=CHALK, fontsize=7.5, va="bottom")
