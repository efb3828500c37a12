"""The doctor's pictures: three middle slices of a case, and charts of the whole data set."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flarecps.anatomy import Organ
from flarecps.datasets.layouts import Case
from flarecps.errors import ScanError
from flarecps.reporting.overlays import (
    ABDOMINAL_WINDOW_HU,
    NIGHT,
    draw_film,
    draw_scan,
    edge_letters,
    window_of,
)
from flarecps.reporting.pictures import INK, RULE, data_uri, new_figure, run_colour, style_axes
from flarecps.reporting.views import VIEWS, View, telling_index
from flarecps.typing import LabelArray
from flarecps.volumes.io import Volume, read_channels, read_volume

PANEL_INCHES = 1.62
GAP_INCHES = 0.04
DOTS_PER_INCH = 100
JPEG_QUALITY = 84
MARGIN_VOXELS = 2  # of black around what is shown
SMOOTH_BINS = 3
ROLES = ("labelled", "unlabelled", "test", "validation")  # in the order of their colours
LARGEST_LABEL = 255


@dataclass(frozen=True)
class PictureOrder:
    """One case to be drawn: plain data, so that it travels to worker processes."""

    case: Case
    organs: tuple[Organ, ...]
    in_hu: bool  # drawn in the abdominal window; otherwise from its 1st to its 99th percentile


def role_colour(role: str) -> str:
    """The colour of a role in every chart."""
    return run_colour(ROLES.index(role))


def case_picture(order: PictureOrder) -> tuple[str, bool]:
    """Axial, coronal and sagittal slice of a case side by side as a data URI (JPEG), and whether labels are on it.

    With labels the slices are those that show most of them, otherwise the middle ones. Raises ScanError.
    """
    volume = read_channels(order.case.images)
    image = volume.array[0]
    labels = _labels_of(order.case, volume)
    window = ABDOMINAL_WINDOW_HU if order.in_hu else window_of(image[:: max(1, len(image) // 32)])
    size = len(VIEWS) * PANEL_INCHES + (len(VIEWS) - 1) * GAP_INCHES
    figure = new_figure(size, PANEL_INCHES, facecolor=NIGHT)
    spacing_mm = volume.space.spacing_mm
    for number, view in enumerate(VIEWS):
        index = image.shape[view.cut] // 2 if labels is None else telling_index(labels, view)
        box = _shown_box(image, view, index, window[0])
        cut, drawn = image[box], None if labels is None else labels[box]
        width, height = view.size_mm(cut.shape, spacing_mm)
        scale = PANEL_INCHES / max(width, height)
        left = number * (PANEL_INCHES + GAP_INCHES) + (PANEL_INCHES - width * scale) / 2
        bottom = (PANEL_INCHES - height * scale) / 2
        axes = figure.add_axes(
            (left / size, bottom / PANEL_INCHES, width * scale / size, height * scale / PANEL_INCHES)
        )
        draw_scan(axes, cut, view, 0, spacing_mm, window)
        if drawn is not None:
            draw_film(axes, drawn, view, 0, spacing_mm, order.organs)
        if number == 0:
            edge_letters(axes, view)
    stream = io.BytesIO()
    figure.savefig(stream, format="jpeg", dpi=DOTS_PER_INCH, facecolor=NIGHT, pil_kwargs={"quality": JPEG_QUALITY})
    return data_uri(stream.getvalue(), "image/jpeg"), labels is not None


def _shown_box(image: np.ndarray, view: View, index: int, black: float) -> tuple[slice, ...]:
    """The one slice of a view, cut to what is not black, so that a head in a wide field of view is large."""
    shown = image.take(index, axis=view.cut) > black
    box = [slice(0, edge) for edge in image.shape]
    box[view.cut] = slice(index, index + 1)
    if shown.any():
        for axis, other in ((view.down, view.across), (view.across, view.down)):
            found = np.flatnonzero(shown.any(axis=int(other > axis)))
            box[axis] = slice(max(0, int(found[0]) - MARGIN_VOXELS), int(found[-1]) + 1 + MARGIN_VOXELS)
    return tuple(box)


def _labels_of(case: Case, volume: Volume) -> LabelArray | None:
    """The labels of a case if they can be laid over its image, else None; those of unlabelled cases stay closed."""
    if case.labels is None or case.role == "unlabelled":
        return None
    try:
        map_ = read_volume(case.labels)
    except ScanError:
        return None
    if not map_.space.same_grid(volume.space):
        return None
    array = np.rint(map_.array[0])
    drawn: LabelArray = np.where((array > 0) & (array <= LARGEST_LABEL), array, 0).astype(np.uint8)
    return drawn if drawn.any() else None


def histogram_figure(edges: np.ndarray, sums: Mapping[str, np.ndarray]) -> Figure:
    """The share of voxels over HU, one line per role, without air's peak (it would flatten everything else)."""
    figure, axes = _chart()
    middles = (edges[:-1] + edges[1:]) / 2
    shown = middles > -900
    for role, counts in sums.items():
        smooth = np.convolve(counts, np.ones(SMOOTH_BINS) / SMOOTH_BINS, mode="same")[shown]
        colour = role_colour(role)
        share = 100 * smooth / max(1.0, counts[shown].sum())
        axes.plot(middles[shown], share, color=colour, linewidth=1.6)
        axes.fill_between(middles[shown], share, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(0, None)
    axes.set_xlim(-900, 1000)
    axes.set_xlabel("HU")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    return figure


def scatter_figure(points: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> Figure:
    """One dot per case, coloured by role; axes from 0."""
    figure, axes = _chart()
    for role, pairs in points.items():
        table = np.asarray(pairs, float)
        axes.scatter(
            table[:, 0], table[:, 1], s=22 if len(table) < 200 else 9, color=role_colour(role), alpha=0.55, linewidths=0
        )
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure


def volumes_figure(volumes: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Structure volumes in ml on a logarithmic axis: a row per structure, a dot per case, coloured by role.

    ``volumes``: structure -> role -> ml. A short line marks the median.
    """
    row = 0.27
    height = row * len(volumes) + 0.55
    figure = new_figure(11.6, height)
    axes = figure.add_axes((0.145, 0.5 / height, 0.845, row * len(volumes) / height))
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_xscale("log")
    for line, by_role in enumerate(volumes.values()):
        everything = np.concatenate([np.asarray(values, float) for values in by_role.values()])
        for role, values in by_role.items():
            spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.5  # a fixed jitter: golden-ratio steps
            axes.scatter(values, line + 0.5 + spread, s=13, color=role_colour(role), alpha=0.55, linewidths=0)
        axes.plot([np.median(everything)] * 2, [line + 0.15, line + 0.85], color=INK, linewidth=1.4)
        if line:
            axes.axhline(line, color=RULE, linewidth=0.6)
    axes.set_ylim(len(volumes), 0)
    axes.set_yticks(np.arange(len(volumes)) + 0.5)
    axes.set_yticklabels(list(volumes), fontsize=9.5, color=INK, parse_math=False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("volume per case, ml (logarithmic)")
    return figure


def _chart() -> tuple[Figure, Axes]:
    figure = new_figure(4.3, 2.7)
    axes = figure.add_axes((0.125, 0.165, 0.855, 0.80))
    style_axes(axes)
    return figure, axes
