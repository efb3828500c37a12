"""What an experiment ran on, as its tables say it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's name, as Linux tells it; the architecture elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
