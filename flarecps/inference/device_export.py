"""From the network's grid to labels on the scan's, on a GPU: all classes of all voxels, and only labels come back.

The same taps as in `flarecps.inference.export`, and the same order of sums: columns, rows, slices. There, only borders
are interpolated; here, looking for them would cost more than it saves, and the time does not depend on the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from flarecps.inference.export import Taps, axis_taps, neighbouring_planes
from flarecps.inference.resources.placement import CPU
from flarecps.inference.resources.usage import is_out_of_memory
from flarecps.preprocessing.case import GridMapping
from flarecps.typing import LabelArray

T = TypeVar("T")

PLANES_HELD = 5  # of float32 scores on the scan's grid: two, a third on its way and what it is made of
LABELS_AT_ONCE = 16  # planes of labels that are sent together


def device_labels(
    slabs: Iterable[Tensor],
    grid_mapping: GridMapping,
    device: torch.device,
    say: Callable[[str], None] = lambda words: None,
) -> LabelArray:
    """What ``scan_labels`` gives in its mode ``normal``, but for ties within rounding, computed on ``device``.

    Beside the slab that it was given last, ``device`` holds a few planes of scores. Where it has no room for them,
    the rest is done on the CPU, and ``say`` is told.
    """
    labels = np.zeros(grid_mapping.scan_shape, np.uint8)
    landing = _Landing(labels[grid_mapping.box.slices].transpose(grid_mapping.axis_order))
    first, rows, columns = axis_taps(grid_mapping)
    road = _Road(device, say)

    def in_plane(scores: Tensor) -> Tensor:
        def work(device: torch.device) -> Tensor:
            plane = scores.detach().to(device, torch.float32, copy=True)  # what was handed on is soon overwritten
            return _lerped(_lerped(plane, 2, columns), 1, rows)

        return road.do(work)

    planes = (in_plane(scores) for slab in slabs for scores in slab.unbind(1))
    for below, above, share in neighbouring_planes(planes, first):

        def highest(device: torch.device, below: Tensor = below, above: Tensor = above, share: float = share) -> Tensor:
            scores = (below if share < 1 else above).to(device)
            if 0 < share < 1:
                scores = torch.lerp(scores, above.to(device), share)
            return scores.argmax(0).to(torch.uint8)  # among equal scores the lowest label

        landing.add(road.do(highest))
    landing.finish()
    return labels


class _Road:
    """Does work on a device, and from the first time that its memory does not suffice on the CPU."""

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self.device, self.say = device, say

    def do(self, work: Callable[[torch.device], T]) -> T:
        try:
            return work(self.device)
        except RuntimeError as error:
            if self.device == CPU or not is_out_of_memory(error):
                raise
        self.say(f"no room on {self.device} for the way to the scan's grid; the rest of it is done on the CPU")
        self.device = CPU
        return work(CPU)


def _lerped(scores: Tensor, dim: int, taps: Taps) -> Tensor:
    """``scores`` (K, rows, columns) interpolated along one axis; the same tensor where nothing changes."""
    if len(taps.lower) == scores.shape[dim] and not taps.share.any():
        return scores
    there = scores.device
    made = scores.index_select(dim, torch.from_numpy(taps.lower).to(there))
    if taps.share.any():
        share = torch.from_numpy(taps.share).to(there)
        upper = scores.index_select(dim, torch.from_numpy(taps.upper).to(there))
        made.lerp_(upper, share if dim == 2 else share[:, None])
    return made


class _Landing:
    """Planes of labels on their way to RAM, several at a time; a GPU goes on meanwhile."""

    def __init__(self, view: np.ndarray) -> None:
        self.view = view  # (slice, row, column) in network order, to be filled
        self._landed = 0
        self._waiting: list[Tensor] = []
        self._under_way: tuple[Tensor, torch.cuda.Event | None] | None = None

    def add(self, plane: Tensor) -> None:
        """The next plane, uint8 (rows, columns)."""
        if self._waiting and self._waiting[0].device != plane.device:
            self._send()
        self._waiting.append(plane)
        if len(self._waiting) == LABELS_AT_ONCE:
            self._send()

    def finish(self) -> None:
        """Everything is in ``view`` afterwards."""
        self._send()
        self._land()

    def _send(self) -> None:
        self._land()
        if not self._waiting:
            return
        first = self._waiting[0]
        there = torch.empty((len(self._waiting), *first.shape), dtype=torch.uint8, pin_memory=first.is_cuda)
        for row, plane in zip(there, self._waiting, strict=True):
            row.copy_(plane, non_blocking=first.is_cuda)
        event = torch.cuda.current_stream(first.device).record_event() if first.is_cuda else None
        self._under_way = there, event
        self._waiting = []

    def _land(self) -> None:
        if self._under_way is None:
            return
        planes, event = self._under_way
        if event is not None:
            event.synchronize()
        self.view[self._landed : self._landed + len(planes)] = planes.numpy()
        self._landed += len(planes)
        self._under_way = None
