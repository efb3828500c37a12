"""A picture of one segmented scan: is the result worth trusting at a glance?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flarecps.anatomy import organs_of
from flarecps.reporting.overlays import ABDOMINAL_WINDOW_HU, overlay_figure, window_of
from flarecps.reporting.pictures import write_png
from flarecps.typing import LabelArray, SpacingMm

DOTS_PER_INCH = 110


def write_preview(
    path: Path,
    name: str,
    image: np.ndarray,
    labels: LabelArray,
    spacing_mm: SpacingMm,
    label_set: Mapping[str, int],
    is_hu: bool,
) -> None:
    """Write a PNG: axial, coronal and sagittal slices through the organs, the scan and its organs beside it.

    The slices are those that show most of the organs; without any organ, the middle ones. CT is shown in a soft-tissue
    window, other images from their 1st to their 99th percentile. The file appears whole or not at all.
    """
    window = ABDOMINAL_WINDOW_HU if is_hu else window_of(image)
    organs = organs_of(dict(label_set))
    title = name if labels.any() else f"{name}: no organ found"
    write_png(path, overlay_figure(image, None, {title: labels}, spacing_mm, organs, window_hu=window), DOTS_PER_INCH)
