"""The memory of this process, from Linux's own counters."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> float:
    """Resident memory now, in MB; the peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """The most resident memory since `forget_peak`, in MB."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")
