"""Weighted means over windows, for those slices of a volume only that windows still touch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CERTAIN_LOGIT = 10.0  # of background against -10 where no window went: a probability of 1 to within 3e-9


class SlabSums:
    """The scores of windows, averaged by weight, slice by slice along the first axis of a volume.

    Windows come in order of their first slice. What lies before the next window is finished: ``finish`` hands it out
    and forgets it, so memory holds about a window's depth of the volume. In single precision weighted sums are
    kept and divided at the end; in half precision the running mean, which neither overflows nor underflows whatever the
    weights.

    ``plane`` is (rows, columns) of the volume; ``uncovered`` are the scores (K) of voxels that no window covers.
    """

    def __init__(self, plane: Sequence[int], uncovered: Sequence[float], device: torch.device, half: bool) -> None:
        self.first = 0  # the slice of the volume that the store begins with
        self.half = half
        self.uncovered = tuple(uncovered)
        kind = torch.float16 if half else torch.float32
        self._scores = torch.zeros((len(self.uncovered), 0, *plane), dtype=kind, device=device)
        self._weights = torch.zeros((0, *plane), dtype=torch.float32, device=device)

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self._scores.device

    def to(self, device: torch.device, half: bool) -> None:
        """Go on elsewhere; the precision can only be raised, and sums in half precision become sums in single."""
        scores, weights = self._scores.to(device), self._weights.to(device)
        if self.half and not half:
            scores = scores.float() * weights
            self.half = False
        self._scores, self._weights = scores, weights

    def reach(self, last: int) -> Tensor:
        """Hold the slices before ``last``, too; gives the sums."""
        missing = last - self.first - self._scores.shape[1]
        if missing > 0:
            k, _, *plane = self._scores.shape
            scores = self._scores.new_zeros((k, last - self.first, *plane))
            weights = self._weights.new_zeros((last - self.first, *plane))
            scores[:, : self._scores.shape[1]] = self._scores
            weights[: self._weights.shape[0]] = self._weights
            self._scores, self._weights = scores, weights
        return self._scores

    def add(self, place: tuple[slice, slice, slice], scores: Tensor, weights: Tensor) -> Tensor:
        """Count the ``scores`` (K, *patch) of a window at ``place`` of the volume with ``weights`` (*patch).

        Gives the sums. When memory runs out, nothing was counted.
        """
        slices = slice(place[0].start - self.first, place[0].stop - self.first)
        if slices.start < 0 or slices.stop > self._scores.shape[1]:
            raise ValueError(f"a window from slice {place[0].start}: the sums hold slices from {self.first} on")
        here = (slices, *place[1:])
        kept, total = self._scores[(slice(None), *here)], self._weights[here]
        if self.half:
            kept.copy_(torch.lerp(kept.float(), scores.float(), weights / (total + weights)))
        else:
            kept.addcmul_(scores, weights)
        total += weights
        return self._scores

    def finish(self, before: int) -> Tensor:
        """The means (K, n, rows, columns) of the slices held that lie before slice ``before``.

        A view, good until the next call of anything: use or copy it at once, then call ``forget``. When memory runs
        out, nothing was changed.
        """
        self.reach(before)
        count = before - self.first
        scores, weights = self._scores[:, :count], self._weights[:count]
        empty = weights == 0
        if not self.half:
            scores /= weights.masked_fill_(empty, 1)
        if empty.any():
            for one, value in zip(scores, self.uncovered, strict=True):
                one.masked_fill_(empty, value)
        return scores

    def forget(self, before: int) -> None:
        """Drop the slices before ``before`` and make room for as many behind."""
        count = before - self.first
        for store in (*self._scores, self._weights):
            rest = len(store) - count
            for start in range(0, rest, max(count, 1)):  # blocks that do not overlap: no second copy
                stop = min(start + count, rest)
                store[start:stop] = store[start + count : stop + count]
            store[max(rest, 0) :] = 0
        self.first = before


def uncovered_scores(classes: int, accumulate: str) -> tuple[float, ...]:
    """Background for certain, as probabilities ("softmax") or logits."""
    if accumulate == "softmax":
        return (1.0, *(0.0 for _ in range(classes - 1)))
    return (CERTAIN_LOGIT, *(-CERTAIN_LOGIT for _ in range(classes - 1)))
