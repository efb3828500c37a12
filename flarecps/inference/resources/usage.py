"""The memory that this process and its GPU really use while something runs."""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from flarecps.inference.resources.devices import with_index

INTERVAL_S = 0.01
CUDA_CONTEXT_BYTES = 450 * 2**20  # usual: what the driver counts for a process beside its tensors (CUDA 12)
# The driver and the libraries on it refuse memory in words of their own, past PyTorch's allocator and its counts.
REFUSED = re.compile(r"(CUDA|HIP) error: out of memory|MPS backend out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")


def ram_bytes() -> int:
    """This process's resident memory now."""
    return int(psutil.Process().memory_info().rss)


def release_freed_memory() -> None:
    """Give the system back what the C library keeps of freed memory: it would be counted, and then used again unseen.

    Nothing where the library is not glibc, which keeps most.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class RamMeter:
    """The highest resident memory of this process while the ``with`` block ran, looked at every ``interval_s``.

    ``stop`` ends it from elsewhere.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.interval_s = interval_s
        self.before = self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RamMeter:
        self.before = self.peak = ram_bytes()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Look no longer; nothing when that is so already."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, ram_bytes())

    @property
    def rise(self) -> int:
        """By how much the peak exceeds what was used before."""
        return self.peak - self.before

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._over.wait(self.interval_s):
            self.peak = max(self.peak, process.memory_info().rss)


def peak_gpu_memory(device: torch.device) -> int:
    """The most that tensors have taken on a GPU since ``reset_peak_gpu_memory``; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def context_bytes(device: torch.device) -> int:
    """What the driver counts on a GPU for this process beside its tensors: the context, and kernels so far loaded.

    The driver tells what all programs together take. So this is exact on a card of one's own, at least the usual, and
    at most twice that where others use the card, too. 0 for the CPU.
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    beside = total - free - torch.cuda.memory_reserved(device)
    return min(max(beside, CUDA_CONTEXT_BYTES), 2 * CUDA_CONTEXT_BYTES)


def peak_as_counted(device: torch.device) -> int:
    """The most that the driver has counted for this process since ``reset_peak_gpu_memory``; 0 for the CPU."""
    return torch.cuda.max_memory_reserved(device) + context_bytes(device) if device.type == "cuda" else 0


@contextmanager
def limited_gpu_memory(limit_bytes: int | None, device: torch.device) -> Iterator[None]:
    """While the block runs, tensors take no more of a GPU than the limit, less what the driver counts beside them.

    Afterwards, whatever happened, this process's share of the GPU is again what it was. Without a limit, or on the
    CPU, nothing is done.
    """
    if limit_bytes is None or device.type != "cuda":
        yield
        return
    device = with_index(device)
    total = torch.cuda.get_device_properties(device).total_memory
    share = max(limit_bytes - context_bytes(device), 0) / total
    known = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # older versions of PyTorch can't tell
    before = 1.0 if known is None else float(known(device))
    torch.cuda.empty_cache()  # what earlier scans left there counts, too
    torch.cuda.set_per_process_memory_fraction(min(share, before), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def out_of_memory_count(device: torch.device) -> int:
    """How often PyTorch has refused this process memory of a GPU, caught errors included; 0 for the CPU."""
    return int(torch.cuda.memory_stats_as_nested_dict(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that a GPU has no room: PyTorch's own, or one that the driver, cuBLAS or cuDNN gave."""
    return isinstance(error, torch.OutOfMemoryError) or REFUSED.search(str(error)) is not None


def reset_peak_gpu_memory(device: torch.device) -> None:
    """Begin anew with the peak of a GPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
