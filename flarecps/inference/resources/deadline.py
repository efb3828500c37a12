"""Keeping to a time: mirroring and overlap are traded while windows run, because machines differ."""

from __future__ import annotations

import time
from collections.abc import Callable

from flarecps.inference.mirroring import Mirroring

LARGER_STEPS = (0.85, 1.0)  # that are taken where time runs short


class WindowSchedule:
    """The windows' step and mirroring; this one keeps to them, whatever the time."""

    def __init__(self, step: float, mirroring: Mirroring | None = None) -> None:
        self.step = step
        self.mirroring = mirroring

    def ran(self, count: int, seconds: float, left: Callable[[float], int]) -> None:
        """Told after every batch: ``count`` windows took ``seconds``; ``left(step)`` windows remain."""


class DeadlineSchedule(WindowSchedule):
    """Step and mirroring of the windows to come, changed when the time left would not suffice.

    ``deadline_s`` is on ``clock`` (seconds); ``after_s`` is needed for what follows the windows. Mirroring goes first,
    then the overlap of windows. ``traded`` tells what was given up, ``say`` is told at once.
    """

    def __init__(
        self,
        step: float,
        mirroring: Mirroring | None,
        deadline_s: float,
        after_s: float,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(step, mirroring)
        self.deadline_s = deadline_s
        self.after_s = after_s
        self.traded: list[str] = []
        self._say = say
        self._clock = clock
        self._passes = 0
        self._seconds = 0.0

    def ran(self, count: int, seconds: float, left: Callable[[float], int]) -> None:
        """Look whether the rest fits, at the pace so far, and trade until it does or nothing is left to trade."""
        self._passes += count * _passes(self.mirroring)
        self._seconds += seconds
        rest_s = self.deadline_s - self.after_s - self._clock()
        pass_s = self._seconds / self._passes

        def too_long() -> bool:
            return left(self.step) * _passes(self.mirroring) * pass_s > rest_s

        if too_long() and self.mirroring is not None:
            self.mirroring = None
            self._traded("no mirroring any more")
        for step in LARGER_STEPS:
            if too_long() and step > self.step and left(step) < left(self.step):
                self.step = step
                self._traded(f"step {step:g} from here on")

    def _traded(self, words: str) -> None:
        self.traded.append(words)
        if self._say is not None:
            self._say(f"the time would not suffice: {words}")


def _passes(mirroring: Mirroring | None) -> int:
    return 1 if mirroring is None else mirroring.passes
