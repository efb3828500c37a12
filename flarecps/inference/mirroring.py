"""Test-time augmentation by mirroring: the network also sees flipped windows, and the answers are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from flarecps.errors import ConfigError
from flarecps.planning.plan import Plan


@dataclass(frozen=True)
class Mirroring:
    """Which axes of a patch are mirrored, in all combinations.

    ``axes`` count from 0 over the patch's own axes, (slice, row, column) in 3D and (row, column) in 2D. In a scan
    mirrored along ``lateral_axis``, a network trained with swapped labels calls the right kidney the left one: the
    classes of each of ``pairs`` (right id, left id) are then exchanged. Without ``lateral_axis`` none are.
    """

    axes: tuple[int, ...]
    lateral_axis: int | None = None
    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.axes)) != len(self.axes) or not all(0 <= axis <= 2 for axis in self.axes):
            raise ValueError(f"axes is {self.axes}, expected each of the patch's axes (0, 1, 2) at most once")

    @property
    def passes(self) -> int:
        """How often a window goes through the network."""
        return int(2 ** len(self.axes))

    def average(self, scores_of: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
        """The mean of ``scores_of`` (B, K, *patch) over the mirrored ``tiles`` (B, C, *patch), each turned back."""
        subsets = [subset for size in range(len(self.axes) + 1) for subset in combinations(self.axes, size)]
        total: Tensor | None = None
        for subset in subsets:
            dims = [axis + 2 for axis in subset]
            scores = scores_of(torch.flip(tiles, dims)) if dims else scores_of(tiles)
            scores = torch.flip(scores, dims) if dims else scores
            if self.lateral_axis in subset and self.pairs:
                scores = scores[:, _swapped(scores.shape[1], self.pairs)]
            total = scores if total is None else total + scores
        assert total is not None  # the empty subset is always there
        return total / len(subsets)


def mirroring_of(plan: Plan, axes: Sequence[int] | Literal["all"], swap_left_right: bool) -> Mirroring | None:
    """The mirroring along ``axes`` of the plan's patch, or None without axes.

    Raises ConfigError for axes that the patch has not, and for a swap without mirroring.
    """
    chosen = tuple(range(plan.dimensions)) if axes == "all" else tuple(int(axis) for axis in axes)
    if not chosen:
        if swap_left_right:
            raise ConfigError("swap_left_right without mirroring does nothing: choose the mirror axes, too")
        return None
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(plan.dimensions)):
        names = "0 slice, 1 row, 2 column" if plan.dimensions == 3 else "0 row, 1 column"
        raise ConfigError(f"mirror axes {list(chosen)}: expected each of the patch's axes at most once ({names})")
    lateral = lateral_patch_axis(plan) if swap_left_right else None
    return Mirroring(chosen, lateral, plan.left_right_pairs)


def lateral_patch_axis(plan: Plan) -> int | None:
    """The axis of a patch that runs from left to right, or None when a 2D patch has none (sagittal slices)."""
    axis = plan.lateral_axis - (3 - plan.dimensions)
    return axis if axis >= 0 else None


def _swapped(classes: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    order = list(range(classes))
    for right, left in pairs:
        order[right], order[left] = order[left], order[right]
    return order
