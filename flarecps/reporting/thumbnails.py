"""Thumbnails: three slices of a scan beside one another, small enough for many of them on one page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flarecps.anatomy import Organ
from flarecps.reporting.overlays import draw_orientation, draw_outline, draw_panel
from flarecps.reporting.planes import PLANES, ViewPlane, slice_with_most_labels
from flarecps.reporting.plotting import DARK_BACKGROUND, axes_at, data_uri, jpeg_bytes, new_figure
from flarecps.typing import LabelArray, SpacingMm

PANEL_INCHES, GAP_INCHES = 1.62, 0.04
DOTS_PER_INCH, JPEG_QUALITY = 100, 84
MARGIN_VOXELS = 2  # of black around what is shown


def thumbnail(
    image: np.ndarray,
    spacing_mm: SpacingMm,
    organs: Sequence[Organ],
    window: tuple[float, float],
    labels: LabelArray | None = None,
    outlined: np.ndarray | None = None,
    with_directions: bool = True,
) -> str:
    """Axial, coronal and sagittal slice side by side as a data URI (JPEG).

    The slices are those that show most of what is ``outlined`` (a mask, in white), else of the labels, else the middle
    ones. All arrays are (slice, row, column), canonical; of another order, leave ``with_directions`` out.
    """
    size = len(PLANES) * PANEL_INCHES + (len(PLANES) - 1) * GAP_INCHES
    figure = new_figure(size, PANEL_INCHES, facecolor=DARK_BACKGROUND)
    guide = outlined if outlined is not None and outlined.any() else labels
    for number, plane in enumerate(PLANES):
        index = image.shape[plane.cut] // 2 if guide is None else slice_with_most_labels(guide, plane)
        box = _shown_box(image, plane, index, window[0])
        cut, drawn = image[box], None if labels is None else labels[box]
        width, height = plane.size_mm(cut.shape, spacing_mm)
        scale = PANEL_INCHES / max(width, height)
        left = number * (PANEL_INCHES + GAP_INCHES) + (PANEL_INCHES - width * scale) / 2
        bottom = (PANEL_INCHES - height * scale) / 2
        axes = axes_at(figure, left, bottom, width * scale, height * scale)
        draw_panel(axes, cut, plane, 0, spacing_mm, window, organs, drawn)
        if outlined is not None:
            draw_outline(axes, plane.section(outlined[box], 0) > 0, (spacing_mm[plane.down], spacing_mm[plane.across]))
        if number == 0 and with_directions:
            draw_orientation(axes, plane)
    return data_uri(jpeg_bytes(figure, DOTS_PER_INCH, JPEG_QUALITY), "image/jpeg")


def _shown_box(image: np.ndarray, plane: ViewPlane, index: int, black: float) -> tuple[slice, ...]:
    """The one slice of a view, cut to what is not black, so that a head in a wide field of view is large."""
    shown = image.take(index, axis=plane.cut) > black
    box = [slice(0, edge) for edge in image.shape]
    box[plane.cut] = slice(index, index + 1)
    if shown.any():
        for axis, other in ((plane.down, plane.across), (plane.across, plane.down)):
            found = np.flatnonzero(shown.any(axis=int(other > axis)))
            box[axis] = slice(max(0, int(found[0]) - MARGIN_VOXELS), int(found[-1]) + 1 + MARGIN_VOXELS)
    return tuple(box)
