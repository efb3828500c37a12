"""Class probabilities as a compressed file that NumPy alone can read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from flarecps.atomic import atomic_path
from flarecps.inference.sliding_window import Accumulate
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import GridMapping
from flarecps.volumes.space import Space

LEVEL = 1  # most voxels are exactly 0 or 1: higher levels gain little


@contextmanager
def writing_probabilities(
    path: Path, plan: Plan, space: Space, grid_mapping: GridMapping, accumulate: Accumulate
) -> Iterator[Callable[[Tensor], None]]:
    """A function that writes scores (K, n, H, W), the next n slices; the file appears when the block succeeds.

    A NumPy archive (.npz, deflated) with two arrays: ``probabilities``, float16 (slice, class, row, column) on the
    network's grid, and ``grid``, a JSON text: the classes in order, and the affine matrix from array index (slice, row,
    column, 1) to RAS millimetres. ``space`` is the scan's canonical grid. Memory holds one slice more.
    """
    shape = (grid_mapping.network_shape[0], plan.class_count, *grid_mapping.network_shape[1:])
    about = {
        "classes": {str(label): name for name, label in plan.labels.items()},
        "axes": ["slice", "class", "row", "column"],
        "affine_ras_mm": network_affine(space, grid_mapping).tolist(),
        "way_back": asdict(grid_mapping),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive,
    ):
        with archive.open("grid.npy", "w") as stream:
            npy.write_array(stream, np.array(json.dumps(about)), allow_pickle=False)
        with archive.open("probabilities.npy", "w", force_zip64=True) as stream:
            npy.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})

            def add(slab: Tensor) -> None:
                for plane in slab.unbind(1):
                    scores = torch.softmax(plane.float(), dim=0) if accumulate == "logits" else plane
                    stream.write(scores.to("cpu", torch.float16).contiguous().numpy().tobytes())

            yield add


def network_affine(space: Space, grid_mapping: GridMapping) -> np.ndarray:
    """The 4×4 matrix from an index (slice, row, column, 1) of the network's grid to RAS millimetres.

    The network's grid covers the field of view's box: the borders of both coincide, not the centres of their corners.
    """
    order = grid_mapping.axis_order
    to_scan = np.zeros((4, 4))  # index of the network's grid -> index of the scan's
    to_scan[3, 3] = 1
    for network_axis, axis in enumerate(order):
        ratio = grid_mapping.box.shape[axis] / grid_mapping.network_shape[network_axis]
        to_scan[axis, network_axis] = ratio
        to_scan[axis, 3] = grid_mapping.box_lower[axis] + (ratio - 1) / 2
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ space.affine @ to_scan
