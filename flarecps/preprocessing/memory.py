"""How much RAM preprocessing takes: the bound of one case, and how many workers fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import psutil

from flarecps.datasets.catalogue import Case
from flarecps.errors import ScanError
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import shape_at_target
from flarecps.preprocessing.store_writing import size_bytes
from flarecps.volumes.io import read_space

PROCESS_BYTES = 250 << 20  # a worker with its libraries, before its first case
SLAB_BYTES = 64 << 20  # what is converted, resampled or compressed at a time


def case_bytes(voxels_in: int, voxels_out: int, channels: int, ct: bool, stored_bytes: int = 2) -> int:
    """The most RAM, in bytes, that a case of these sizes takes on top of its worker's own.

    Per voxel of the scan its stored type (usually 2) for each channel and 1 for labels; per voxel of the result 2 for
    each channel of CT, or 6 of another modality (float32, then int16), and 1 for labels; 4 per voxel of the larger of
    the two, for what lies between two axes.
    """
    scan = voxels_in * (stored_bytes * channels + 1)
    result = voxels_out * ((2 if ct else 6) * channels + 1)
    return scan + result + 4 * max(voxels_in, voxels_out) + SLAB_BYTES


def workers_that_fit(cases: Sequence[Case], plan: Plan, workers: int, available: int | None = None) -> tuple[int, int]:
    """How many of ``workers`` have RAM enough if they meet the largest cases at once (at least 1); bytes all need.

    The largest are found by file size, their voxels read from the header. ``available``: bytes, by default what the
    machine has free now.
    """
    if available is None:
        available = psutil.virtual_memory().available
    by_size = sorted(cases, key=lambda case: sum(size_bytes(path) for path in case.images if path.exists()))
    needs = sorted((_bytes_of(case, plan) for case in by_size[-workers:]), reverse=True)
    fitting = sum(sum(needs[: count + 1]) <= available for count in range(len(needs)))
    return max(1, fitting if fitting < len(needs) else workers), sum(needs)


def _bytes_of(case: Case, plan: Plan) -> int:
    """Bytes of a worker with this case; of the worker alone when the case can't be read (it will say so itself)."""
    try:
        space = read_space(case.images[0])
    except ScanError:
        return PROCESS_BYTES
    sizes = math.prod(space.shape), math.prod(shape_at_target(plan, space.shape, space.spacing_mm))
    return PROCESS_BYTES + case_bytes(*sizes, len(case.images), plan.integer_hu)
