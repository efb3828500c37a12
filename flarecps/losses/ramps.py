"""How λ, the weight of the pseudo-labels, rises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Ramp(Protocol):
    """λ by epoch: any function, or object that can be called, from an epoch (counted from 0) to λ ≥ 0."""

    def __call__(self, epoch: int, /) -> float: ...


@dataclass(frozen=True)
class LinearRamp:
    """λ of an epoch (from 0): 0 up to ``start``, then linear over ``length`` epochs up to ``final``, then constant.

    The paper's is ``final=0.5, length=500, start=0`` (section 2.2; the length is the authors' code's). A later
    ``start`` lets the siblings first learn small classes, which early pseudo-labels would teach them to ignore.

    Args:
        final: λ at the end of the ramp.
        length: epochs from 0 to ``final``; 0 means ``final`` at once.
        start: epochs before the ramp begins.

    >>> [LinearRamp(0.5, 4)(epoch) for epoch in (0, 2, 4, 9)]
    [0.0, 0.25, 0.5, 0.5]
    >>> LinearRamp(0.5, 4, start=2)(3)
    0.125
    """

    final: float = 0.5
    length: int = 500
    start: int = 0

    def __call__(self, epoch: int) -> float:
        if epoch < self.start:
            return 0.0
        if self.length == 0:
            return self.final
        return self.final * min((epoch - self.start) / self.length, 1.0)
