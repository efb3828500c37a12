"""Meters: what the machine, a process tree and a graphics card use at this moment."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import psutil

from flarecps.errors import ConfigError

MIB = 2**20
LOOKING_SHARE = 0.2  # of the time may go into looking for new processes, on machines that run thousands


def read_host() -> tuple[float, float, float, float, float, float]:
    """The whole machine now: MB of memory in use, then processor seconds since it started.

    The seconds are: user, system, idle, waiting for disks, and all of these and the rest.
    """
    times = psutil.cpu_times()
    # psutil counts the time of guests in user and nice as well
    everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    waiting = getattr(times, "iowait", 0.0)
    return psutil.virtual_memory().used / MIB, times.user, times.system, times.idle, waiting, everything


class TreeMeter:
    """A command and its descendants: processor time counted up, and memory now.

    Where this process adopts orphans (`child_subreaper`), those of the tree stay in it. ``before`` are processes that
    are none of its: children that this process has for other purposes.
    """

    def __init__(self, root: int, before: frozenset[int] = frozenset()) -> None:
        self._root = root
        self._before = before
        self._processes: dict[int, psutil.Process] = {}
        self._look_again_at = 0.0
        self._orphans_cpu_s = 0.0
        self._cpu_s = 0.0
        with suppress(psutil.NoSuchProcess):
            self._processes[root] = psutil.Process(root)

    def signal(self, number: int, to_all: bool = False) -> None:
        """Send a signal to the command, if it is still there, or to every process of the tree.

        An id that another process has got meanwhile is not taken for it. May be called from a signal handler, in the
        midst of a reading.
        """
        if to_all:
            self._look(at_once=True)
        for pid, process in list(self._processes.items()):
            if to_all or pid == self._root:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    process.send_signal(number)

    @property
    def pids(self) -> frozenset[int]:
        """The processes known to be alive at the last reading."""
        return frozenset(self._processes)

    def read(self) -> tuple[float, float]:
        """(processor seconds since the start, MB resident now). What vanishes while it is read counts as gone."""
        self._look()
        cpu_s, ram = self._orphans_cpu_s, 0
        for pid, process in list(self._processes.items()):
            try:
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
            except psutil.NoSuchProcess:
                self._processes.pop(pid, None)
                continue
            except psutil.AccessDenied:  # another user's (sudo): it is there, and not ours to read
                continue
            cpu_s += _spent_s(times)
            ram += memory.rss
        self._cpu_s = max(self._cpu_s, cpu_s)
        return self._cpu_s, ram / MIB

    def close(self, root_cpu_s: float) -> tuple[float, list[psutil.Process]]:
        """(processor seconds in all, who is left) once the root has ended; ``root_cpu_s`` is its own, with children."""
        self._look(at_once=True)
        self._processes.pop(self._root, None)
        left = []
        for process in self._processes.values():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                root_cpu_s += _spent_s(process.cpu_times())
                if process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return max(self._cpu_s, root_cpu_s + self._orphans_cpu_s), left

    def _look(self, at_once: bool = False) -> None:
        """Take in new processes, bury orphans; not too often, unless it must be ``at_once``."""
        began = time.perf_counter()
        if began < self._look_again_at and not at_once:
            return
        us = os.getpid()
        for process in psutil.Process(us).children(recursive=True):
            if process.pid in self._before or (process.pid != self._root and self._buried(process, us)):
                continue
            self._processes.setdefault(process.pid, process)
        now = time.perf_counter()
        self._look_again_at = now + (now - began) * (1 / LOOKING_SHARE - 1)

    def _buried(self, process: psutil.Process, us: int) -> bool:
        """Whether this was an orphan that has ended; its processor time is kept."""
        try:
            if process.ppid() != us or process.status() != psutil.STATUS_ZOMBIE:
                return False
            pid, _, usage = os.wait4(process.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            return True
        if pid:
            self._orphans_cpu_s += usage.ru_utime + usage.ru_stime
            self._processes.pop(process.pid, None)
        return bool(pid)


def _spent_s(times: Any) -> float:
    # Who was waited for is in its parent's children_*, so nobody is lost and nobody counts twice.
    return times.user + times.system + times.children_user + times.children_system


class GpuMeter:
    """The memory of one NVIDIA card, through NVML. A reading that fails repeats the last; ``failures`` counts them."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(self._handle)
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.failures = 0
        self.tells_processes = True
        self._last = self._used_mb()

    def read(self, pids: frozenset[int]) -> tuple[float, float]:
        """(MB in use on the card: total - free, as FLARE; MB of these processes, 0 where the driver does not tell)."""
        try:
            self._last = self._used_mb()
        except self._nvml.NVMLError:
            self.failures += 1
        sizes: list[int | None] = []
        if self.tells_processes:
            try:
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
                sizes = [one.usedGpuMemory for one in running if one.pid in pids]
                self.tells_processes = None not in sizes
            except self._nvml.NVMLError:
                self.tells_processes = False
        return self._last, sum(size for size in sizes if size is not None) / MIB

    def close(self) -> None:
        """Let go of NVML."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _used_mb(self) -> float:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return (memory.total - memory.free) / MIB


def open_gpu(index: int | None, nvml: Any = None) -> GpuMeter | None:
    """The meter of a card; without ``index`` that of the first one, or None where there is none.

    ``nvml`` is the module to ask, pynvml by default. Raises ConfigError for an ``index`` that is no card.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        if index is None:
            return None
        raise ConfigError(
            f"--gpu {index}: no NVIDIA card can be asked here ({error}); leave --gpu out to measure without one"
        ) from error
    if not count and index is None:
        nvml.nvmlShutdown()
        return None
    if not 0 <= (index or 0) < count:
        nvml.nvmlShutdown()
        raise ConfigError(f"--gpu {index}: there is no such card; expected 0 to {count - 1} (nvidia-smi lists them)")
    return GpuMeter(nvml, index or 0)
