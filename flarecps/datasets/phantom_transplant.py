"""Phantom cases with real anatomy: a label map's organs, deformed, in a synthetic torso around them.

Each organ of the map becomes a shape (its signed distance, sampled in mm), so it is painted exactly as the synthetic
organs are; only what the map does not tell (walls, contents, bowel, bones, lungs) is drawn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.datasets.phantom_anatomy import TABLE, CavitySize, Structure, draw_bowel, draw_torso
from flarecps.datasets.phantom_scan import Scene, draw_acquisition, draw_materials, draw_scanner
from flarecps.datasets.phantom_shapes import FAR_MM, Shape
from flarecps.errors import DatasetError
from flarecps.typing import LabelArray
from flarecps.volumes.io import read_labels

MARGIN_MM = 11.0  # how far around an organ its distance is known
COARSE_MM = 2.0  # a small phantom needs no finer maps than this
LIVER, RIGHT_KIDNEY, SPLEEN, AORTA, CAVA, STOMACH, DUODENUM, LEFT_KIDNEY = 1, 2, 3, 5, 6, 11, 12, 13
PAINTED_IN_ORDER = (1, 3, 11, 2, 13, 12, 4, 9, 7, 8, 6, 5, 10)
Box: TypeAlias = tuple[slice, slice, slice]
HALOS_MM = {1: 2.0, 2: 4.0, 13: 4.0, 3: 2.0, 11: 2.0}  # fat around; 1 mm around the others


def draw_mapped_scene(generator: np.random.Generator, path: Path, size: str, wide: bool) -> Scene:
    """A patient in a scanner with a label map's organs; ``size`` is ``small`` or ``full``.

    Raises ScanError for an unreadable map, DatasetError for one without organs or with ids outside FLARE22's.
    """
    volume = read_labels(path)
    labels, spacing = volume.array[0], volume.space.spacing_mm
    highest = int(labels.max())
    if not 1 <= highest <= len(FLARE22_ORGANS):
        found = f"holds the id {highest}" if highest else "holds no organ"
        raise DatasetError(f"{path}: {found}; a phantom's anatomy needs FLARE22's organs, ids 1 to 13")
    if size == "small":
        stride = [max(1, int(COARSE_MM / edge)) for edge in spacing]
        labels = labels[:: stride[0], :: stride[1], :: stride[2]]
        spacing = (spacing[0] * stride[0], spacing[1] * stride[1], spacing[2] * stride[2])
    spacing_mm = np.asarray(spacing)
    boxes = {label: box for label, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    first_mm = -_body_origin(boxes) * spacing_mm
    shapes = {label: _mapped(labels, label, box, first_mm, spacing_mm) for label, box in boxes.items()}
    variation = 1.3 if wide else 1.0
    scanner = draw_scanner(generator, wide)
    materials = draw_materials(generator, scanner.phase, wide)
    torso = draw_torso(generator, variation, _room(labels, first_mm, spacing_mm))
    organs = [_solid(generator, label, shapes[label]) for label in PAINTED_IN_ORDER if label in shapes]
    solids = (TABLE, *torso.wall, *draw_bowel(generator, torso.cavity, variation), *organs)
    view = draw_acquisition(generator, size, wide)
    height = labels.shape[0] * spacing_mm[0] * view.scale[0]  # the field ends where the map does
    slices = min(view.shape[0], int(height / view.spacing_mm[0]))
    middle = first_mm[0] + spacing_mm[0] * (labels.shape[0] - 1) / 2
    slack = (height - slices * view.spacing_mm[0]) / 2
    shift = float(generator.uniform(-slack, slack) - middle * view.scale[0])
    view = replace(
        view,
        shape=(max(slices, 2), *view.shape[1:]),
        shift_mm=np.array([shift, *view.shift_mm[1:]]),
        warp_mm=float(generator.uniform(5, 10)),
    )
    return Scene(view, scanner, materials, solids)


def _mapped(labels: LabelArray, label: int, box: Box, first_mm: np.ndarray, spacing_mm: np.ndarray) -> Shape:
    """An organ by samples of its signed distance in and around its box, linear between them.

    Where the scan's end cuts the organ it goes on. ``first_mm``: the place of the map's first voxel.
    """
    margin = np.ceil(MARGIN_MM / spacing_mm).astype(int)
    wanted = [(s.start - m, s.stop + m) for s, m in zip(box, margin, strict=True)]
    inside = labels[tuple(slice(max(0, a), b) for a, b in wanted)] == label
    beyond = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(wanted, labels.shape, strict=True)]
    inside = np.pad(inside, beyond, mode="edge")
    half = float(spacing_mm.min()) / 2  # a mask's border runs between voxels, not through them
    outwards = np.maximum(ndimage.distance_transform_edt(~inside, sampling=spacing_mm) - half, 0)
    inwards = np.maximum(ndimage.distance_transform_edt(inside, sampling=spacing_mm) - half, 0)
    smooth = ndimage.gaussian_filter((outwards - inwards).astype(np.float32), 0.6)
    start = first_mm + spacing_mm * [a for a, _ in wanted]

    def distance_mm(points: np.ndarray) -> np.ndarray:
        index = np.stack([(points[i] - start[i]) / spacing_mm[i] for i in range(3)])
        return ndimage.map_coordinates(smooth, index, order=1, mode="constant", cval=float(FAR_MM))

    return Shape(distance_mm, (start, start + spacing_mm * (np.array(smooth.shape) - 1)))


def _body_origin(boxes: dict[int, Box]) -> np.ndarray:
    """The voxel (slice, row, column) of the torso's origin: before the spine, at the kidneys' height."""

    def middle(organs: tuple[int, ...], axis: int) -> float:
        found = [boxes[label][axis] for label in organs if label in boxes] or [box[axis] for box in boxes.values()]
        return float(np.mean([(one.start + one.stop - 1) / 2 for one in found]))

    return np.array([middle((RIGHT_KIDNEY, LEFT_KIDNEY), 0), middle((AORTA,), 1), middle((AORTA, CAVA), 2)])


def _room(labels: LabelArray, first_mm: np.ndarray, spacing_mm: np.ndarray) -> CavitySize:
    """How much room the organs need, in mm."""
    coarse = labels[::2, ::4, ::4]
    places = np.argwhere(coarse > 0) * spacing_mm * (2, 4, 4) + first_mm

    def top(organs: tuple[int, ...], otherwise: float) -> float:
        beneath = np.argwhere(np.isin(coarse, organs))[:, 0]
        return float(beneath.max() * 2 * spacing_mm[0] + first_mm[0]) + 6 if len(beneath) else otherwise

    girth = float(np.percentile(np.abs(places[:, 2]), 99.5)) + 10
    back, front = np.percentile(places[:, 1], (0.2, 99.8)).tolist()
    return CavitySize(girth, front + 8, back - 8, (top((LIVER,), 130.0), top((SPLEEN, STOMACH), 120.0)))


def _solid(generator: np.random.Generator, label: int, shape: Shape) -> Structure:
    """The organ as it is painted, with contents drawn for the hollow ones."""
    names = {organ.id: organ.name for organ in FLARE22_ORGANS}
    layers: dict[int, tuple[tuple[float, str], ...]] = {
        RIGHT_KIDNEY: ((0, "renal cortex"), (8, "renal medulla")),
        LEFT_KIDNEY: ((0, "renal cortex"), (8, "renal medulla")),
        CAVA: ((0, "cava"),),
        7: ((0, "adrenal"),),
        8: ((0, "adrenal"),),
        9: ((0, "gut wall"), (2, str(generator.choice(["bile", "dense bile"], p=[0.75, 0.25])))),
        10: ((0, "esophagus"), (4.5, "esophagus lumen")),
        STOMACH: ((0, "stomach wall"), (4.5, str(generator.choice(["water", "chyme", "food", "bright chyme"])))),
        DUODENUM: ((0, "gut wall"), (4, str(generator.choice(["water", "chyme", "bowel tissue"])))),
    }
    gas = None
    if label == STOMACH:
        low, high = shape.box_mm
        gas = float(low[1] + (high[1] - low[1]) * generator.uniform(0.6, 1.0))
    halo = (HALOS_MM.get(label, 1.0), "fat")
    return Structure(shape, layers.get(label, ((0, names[label]),)), label, gas_above_mm=gas, halo=halo)
