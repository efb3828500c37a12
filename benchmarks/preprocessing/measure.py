"""Time and memory of one piece of work in this process: standard library only, so both environments can import it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def one_core() -> None:
    """Keep this process, and threads it starts later, on one logical core. Call it before numpy is imported."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measured(work: Callable[[], Any], laps: dict[str, float]) -> None:
    """Do the work, print JSON: wall and CPU seconds, MB of RAM at its peak above what the process held before it."""
    CLEAR.write_text("5")  # the kernel's high-water mark starts again from here
    before, started, cpu = _kilobytes("VmRSS"), time.perf_counter(), time.process_time()
    work()
    result = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": (_kilobytes("VmHWM") - before) / 1024,
        "imports_mb": before / 1024,
        "steps_s": laps,
    }
    print(json.dumps(result))


def timed(owner: Any, name: str, laps: dict[str, float], step: str) -> None:
    """From now on, calls of ``owner.name`` add their seconds to ``laps[step]``."""
    function = getattr(owner, name)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            laps[step] = laps.get(step, 0.0) + time.perf_counter() - started

    setattr(owner, name, wrapper)


def _kilobytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
