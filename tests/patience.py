"""Limits of time for tests on a machine that other programs use as well."""

from __future__ import annotations

import os

from flarecps.processes import usable_cores


def patient(seconds: float) -> float:
    """A limit for a machine with a core to spare, as many times as programs wait for one: what hangs does for ever."""
    return seconds * max(1.0, os.getloadavg()[0] / usable_cores())
