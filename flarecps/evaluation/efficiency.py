"""What a command cost: FLARE's figures of the whole machine, and the true ones of machine and process tree.

Everything here is arithmetic on a `Trace`, the readings taken while the command ran (`measured_run` takes them).
MB are MiB (2²⁰ bytes), as FLARE's and NVML's are. 100 % of the processor is all cores busy.

Source of FLARE's rules: the organisers' meters, JunMa11/FLARE, folder FLARE22/Evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

INTERVAL_S = 0.1  # FLARE's period
TOLERATED_MB = 2048  # of the card, which FLARE22's page forgives (its script does not)
HELD_SHARE = 0.02  # of the samples, for a value of the card's memory to count
QUIRK_S = 0.1  # see `flare_cpu_percent`

FLARE_COLUMNS = (
    "Name", "Time", "GPU_Mem", "AUC_GPU_Time", "CPU_Utilization", "AUC_CPU_Time", "RAM", "AUC_RAM_Time",
)  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """Readings over a run of ``duration_s``. Row 0 is from before the start, the last row from the end.

    ``*_cpu_s`` are seconds of processor time counted up: ``host_cpu_s`` has the columns user, system, idle, waiting for
    disks, and all of these and the rest. ``tree_cpu_s`` is that of the command and all its
    descendants. ``card_mb`` and ``tree_card_mb`` are None without a card, the latter also where the driver does not
    tell processes apart.
    """

    duration_s: float
    interval_s: float
    cores: int
    time_s: np.ndarray
    host_cpu_s: np.ndarray
    host_ram_mb: np.ndarray
    tree_cpu_s: np.ndarray
    tree_ram_mb: np.ndarray
    card_mb: np.ndarray | None
    tree_card_mb: np.ndarray | None

    @property
    def ticks(self) -> slice:
        """The rows read at the period: FLARE's samples. The last row comes early, so it counts only if it is alone."""
        return slice(1, max(2, len(self.time_s) - 1))


def flare_figures(trace: Trace) -> dict[str, float]:
    """FLARE's figures by column, Name left out, rounded as its tables are; without a card the GPU's are 0.

    Maxima and sums are of the samples; an area is their sum × the nominal period, though the real one is longer.
    """
    card = _card_samples(trace)
    cpu = flare_cpu_percent(trace)[trace.ticks]
    ram = trace.host_ram_mb[trace.ticks]
    numbers = (
        round(trace.duration_s, 2),
        round(held_memory_mb(card)),
        round(float(card.sum() * trace.interval_s)),
        round(float(cpu.max()), 2),
        round(float(cpu.sum() * trace.interval_s), 2),
        round(float(ram.max()), 2),
        round(float(ram.sum() * trace.interval_s)),
    )
    return dict(zip(FLARE_COLUMNS[1:], numbers, strict=True))


def tolerated_figures(trace: Trace) -> dict[str, float]:
    """FLARE's two figures of the card after the tolerance of 2048 MB: what exceeds it counts."""
    card = _card_samples(trace)
    return {
        "GPU_Mem_over_2048MB": round(max(0.0, held_memory_mb(card) - TOLERATED_MB)),
        "AUC_GPU_Time_over_2048MB": round(float(np.maximum(card - TOLERATED_MB, 0).sum() * trace.interval_s)),
    }


def _card_samples(trace: Trace) -> np.ndarray:
    return np.zeros(1) if trace.card_mb is None else trace.card_mb[trace.ticks]


def true_figures(trace: Trace) -> dict[str, float | None]:
    """Peaks, means and areas over the whole run from real times, for the machine (``host_``) and the process tree.

    ``host_ram_rise_mb`` is the machine's peak above what was in use before the start: shared memory counts once there,
    and several times in ``tree_ram_mb_max``, the sum of resident sizes. None: no card, or it does not tell.
    """

    def processor(name: str, percent: np.ndarray) -> dict[str, float | None]:
        area = area_of_rates(trace.time_s, percent)
        most = min(100.0, float(percent[trace.ticks].max()))
        return {f"{name}_max": most, f"{name}_mean": area / trace.duration_s, f"{name}_s": area}

    def memory(name: str, mb: np.ndarray | None) -> dict[str, float | None]:
        """The peak of the run, and the area by trapezoids: memory is read at a moment."""
        if mb is None:
            return {f"{name}_max": None, f"{name}_s": None}
        return {f"{name}_max": float(mb[1:].max()), f"{name}_s": float(trapezoid(mb, trace.time_s))}

    return {
        "duration_s": trace.duration_s,
        "samples": len(trace.time_s[trace.ticks]),
        **processor("host_cpu_percent", host_cpu_percent(trace)),
        **memory("host_ram_mb", trace.host_ram_mb),
        "host_ram_rise_mb": max(0.0, float(trace.host_ram_mb[1:].max() - trace.host_ram_mb[0])),
        **memory("card_mb", trace.card_mb),
        "tree_cpu_s": float(trace.tree_cpu_s[-1]),
        **processor("tree_cpu_percent", tree_cpu_percent(trace)),
        **memory("tree_ram_mb", trace.tree_ram_mb),
        **memory("tree_card_mb", trace.tree_card_mb),
    }


def held_memory_mb(samples_mb: np.ndarray) -> float:
    """The largest value that more than 2 % of the samples have, exactly: a short peak does not count.

    The organisers' script fails where no value is held so long; here it is then the largest that more than 2 % of the
    samples reach.

    >>> held_memory_mb(np.array([500.0] * 49 + [900.0] * 50 + [3000.0]))
    900.0
    """
    values, counts = np.unique(samples_mb, return_counts=True)
    needed = HELD_SHARE * samples_mb.size
    held = values[counts > needed]
    if held.size:
        return float(held.max())
    reached = np.cumsum(counts[::-1])[::-1]  # samples at this value or above
    return float(values[reached > needed].max())


def area_of_rates(time_s: np.ndarray, percent: np.ndarray) -> float:
    """The integral of means over the intervals that end at ``time_s``: exact. The first row has no interval."""
    return float((percent[1:] * np.diff(time_s)).sum())


def host_cpu_percent(trace: Trace) -> np.ndarray:
    """How busy all cores were between a row and the one before, in percent; 0 for the first row."""
    _, _, idle, waiting, everything = np.diff(trace.host_cpu_s, axis=0).T
    share = np.divide(everything - idle - waiting, everything, out=np.zeros_like(idle), where=everything > 0)
    return _with_zero(100 * np.clip(share, 0, 1))  # kernels let the time of waiting fall now and then


def tree_cpu_percent(trace: Trace) -> np.ndarray:
    """The share of all cores that the process tree took between a row and the one before, in percent."""
    used, available = np.diff(trace.tree_cpu_s), np.diff(trace.time_s) * trace.cores
    return _with_zero(100 * np.divide(used, available, out=np.zeros_like(used), where=available > 0))


def flare_cpu_percent(trace: Trace) -> np.ndarray:
    """What FLARE's script takes for the host's use of its processor, row by row; 0 for the first."""
    user, system, idle, _, _ = np.diff(trace.host_cpu_s, axis=0).T
    # Quirk: 0.1 s is added to the time that user, system and idle had (against division by 0). The idle share comes
    # out too small and the use, 100 - idle, too large: an idle machine of 2 cores shows 33 %, one of 12 cores 8 %.
    return _with_zero(100 - 100 * idle / (user + system + idle + QUIRK_S))


def figures_row(name: str, trace: Trace, exit_code: int) -> Mapping[str, str | float | None]:
    """All figures of one run under their column names, FLARE's first."""
    return {
        "Name": name,
        **flare_figures(trace),
        **tolerated_figures(trace),
        **true_figures(trace),
        "exit_code": exit_code,
    }


def _with_zero(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], values])
