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
    card = np.zeros(1) if trace.card_mb is None else trace.card_mb[trace.ticks]
    cpu = flare_cpu_percent(trace)[trace.ticks]
    ram = trace.host_ram_mb[trace.ticks]
    numbers = (
        round(trace.duration_s, 2),
        round(held_memory_mb(card)),
        round(nominal_area(card, trace.interval_s)),
        round(float(cpu.max()), 2),
        round(nominal_area(cpu, trace.interval_s), 2),
        round(float(ram.max()), 2),
        round(nominal_area(ram, trace.interval_s)),
    )
    return dict(zip(FLARE_COLUMNS[1:], numbers, strict=True))


def tolerated_figures(trace: Trace) -> dict[str, float]:
    """FLARE's two figures of the card after the tolerance of 2048 MB: what exceeds it counts."""
    card = np.zeros(1) if trace.card_mb is None else trace.card_mb[trace.ticks]
    return {
        "GPU_Mem_over_2048MB": round(max(0.0, held_memory_mb(card) - TOLERATED_MB)),
        "AUC_GPU_Time_over_2048MB": round(nominal_area(np.maximum(card - TOLERATED_MB, 0), trace.interval_s)),
    }


def true_figures(trace: Trace) -> dict[str, float | None]:
    """Peaks, means and areas over the whole run from real times, for the machine (``host_``) and the process tree.

    ``host_ram_rise_mb`` is the machine's peak above what was in use before the start: shared memory counts once there,
    and several times in ``tree_ram_mb_max``, the sum of resident sizes. None: no card, or it does not tell.
    """
    host_cpu, tree_cpu = host_cpu_percent(trace), tree_cpu_percent(trace)
    figures: dict[str, float | None] = {
        "duration_s": trace.duration_s,
        "samples": len(trace.time_s[trace.ticks]),
        "host_cpu_percent_max": float(host_cpu[trace.ticks].max()),
        "host_cpu_percent_mean": area_of_rates(trace.time_s, host_cpu) / trace.duration_s,
        "host_cpu_percent_s": area_of_rates(trace.time_s, host_cpu),
        "host_ram_mb_max": float(trace.host_ram_mb[1:].max()),
        "host_ram_mb_s": area_of_states(trace.time_s, trace.host_ram_mb),
        "host_ram_rise_mb": max(0.0, float(trace.host_ram_mb[1:].max() - trace.host_ram_mb[0])),
        "card_mb_max": None,
        "card_mb_s": None,
        "tree_cpu_s": float(trace.tree_cpu_s[-1]),
        "tree_cpu_percent_max": min(100.0, float(tree_cpu[trace.ticks].max())),
        "tree_cpu_percent_mean": area_of_rates(trace.time_s, tree_cpu) / trace.duration_s,
        "tree_cpu_percent_s": area_of_rates(trace.time_s, tree_cpu),
        "tree_ram_mb_max": float(trace.tree_ram_mb.max()),
        "tree_ram_mb_s": area_of_states(trace.time_s, trace.tree_ram_mb),
        "tree_card_mb_max": None,
        "tree_card_mb_s": None,
    }
    if trace.card_mb is not None:
        figures |= {
            "card_mb_max": float(trace.card_mb[1:].max()),
            "card_mb_s": area_of_states(trace.time_s, trace.card_mb),
        }
    if trace.tree_card_mb is not None:
        figures |= {
            "tree_card_mb_max": float(trace.tree_card_mb.max()),
            "tree_card_mb_s": area_of_states(trace.time_s, trace.tree_card_mb),
        }
    return figures


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


def nominal_area(samples: np.ndarray, interval_s: float) -> float:
    """Sum of the samples × the period they should have."""
    return float(samples.sum() * interval_s)


def area_of_rates(time_s: np.ndarray, percent: np.ndarray) -> float:
    """The integral of means over the intervals that end at ``time_s``: exact. The first row has no interval."""
    return float((percent[1:] * np.diff(time_s)).sum())


def area_of_states(time_s: np.ndarray, states: np.ndarray) -> float:
    """The integral (trapezoids) of momentary values.

    >>> area_of_states(np.array([0.0, 1.0, 3.0]), np.array([0.0, 10.0, 10.0]))
    25.0
    """
    return float(trapezoid(states, time_s))


def host_cpu_percent(trace: Trace) -> np.ndarray:
    """How busy all cores were between a row and the one before, in percent; 0 for the first row."""
    spent = np.diff(trace.host_cpu_s, axis=0)
    _, _, idle, waiting, everything = spent.T
    share = np.divide(everything - idle - waiting, everything, out=np.zeros_like(idle), where=everything > 0)
    return _with_zero(100 * np.clip(share, 0, 1))  # kernels let the time of waiting fall now and then


def tree_cpu_percent(trace: Trace) -> np.ndarray:
    """The share of all cores that the process tree took between a row and the one before, in percent."""
    elapsed = np.diff(trace.time_s)
    used = np.diff(trace.tree_cpu_s)
    available = elapsed * trace.cores
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
