"""One thread, seconds and resident memory, the same way on both sides. No library of either side is needed here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def one_thread() -> None:
    """Call this before NumPy, torch or ITK are imported."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    os.environ["nnUNet_def_n_proc"] = "1"  # noqa: SIM112  # nnU-Net reads this spelling


def resident_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the highest so far) of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


class Laps:
    """Seconds by name, summed over calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its seconds counted under ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return run


def report(whole: Callable[[], object], laps: Laps) -> None:
    """Run ``whole`` and print one line of JSON. Peak memory is above what the process took after its imports."""
    before = resident_bytes("VmRSS")
    began = time.perf_counter()
    whole()
    seconds = time.perf_counter() - began
    network = laps.seconds.get("network", 0.0)
    laps.seconds["between"] = seconds - sum(laps.seconds.values())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "network_seconds": network,
                "other_seconds": seconds - network,
                "laps": laps.seconds,
                "after_imports_bytes": before,
                "peak_above_imports_bytes": resident_bytes("VmHWM") - before,
            }
        )
    )
