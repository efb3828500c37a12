"""What a data worker was doing when it died, and what usually helps.

A worker that is killed can't say so itself. Each therefore notes, before it reads a patch, whose it is and how much
memory was free, in a table that the training process shares; PyTorch's error names only the process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil

from flarecps.data.draws import Draw
from flarecps.errors import WorkerError
from flarecps.processes import known_signals

NO_ANSWER = "no data worker has answered for"  # what a queue says that waited in vain
LINE_BYTES = 512
MORE_SHARED_MEMORY = (
    "give the container more shared memory (docker run --shm-size 8g), or set data.workers, data.global_batch or "
    "data.patch_voxels lower; data.workers 0 needs none"
)
SHARED_MEMORY = Path("/dev/shm")
_CURE_OF_HANDING_OVER = (
    "Batches go through shared memory, open files and a socket: raise the limit of open files ('ulimit -n 4096'), see "
    f"that {SHARED_MEMORY} is not full, set TMPDIR to a short path of a folder that can be written, or train with "
    "data.workers 0"
)
GIB = 2**30


class WorkerTrace:
    """One line of text per worker, in memory that all processes share; made before the workers are."""

    def __init__(self, workers: int) -> None:
        self._lines = multiprocessing.RawArray(ctypes.c_char, max(workers, 1) * LINE_BYTES)

    def note(self, worker: int, case: str, draw: Draw) -> None:
        """Write down what ``worker``, the present process, is about to read, and what memory is free."""
        line = f"{os.getpid()}\tcase '{case}' ({draw.stream}, epoch {draw.epoch}, index {draw.index})\t{_free_memory()}"
        self._table()[worker] = line.encode()

    def note_undelivered(self, worker: int, error: BaseException) -> None:
        """Write down why ``worker``, the present process, could not hand over a batch."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._table()[worker] = f"{os.getpid()}\t\t\t{reason}".encode()

    def lines(self) -> dict[int, tuple[str, str, str]]:
        """By process id, what it read last, what memory was free then, and why it could not hand over a batch."""
        found = {}
        for line in self._table():
            process, reading, memory, reason = [*line.decode(errors="replace").split("\t", 3), "", "", ""][:4]
            if process.isdigit():
                found[int(process)] = (reading, memory, reason)
        return found

    def _table(self) -> np.ndarray:
        """The lines as an array of byte strings; NumPy cuts and pads them."""
        return np.frombuffer(memoryview(self._lines), dtype=f"S{LINE_BYTES}")


def _free_memory() -> str:
    """RAM and shared memory that are free now, in words."""
    memory = psutil.virtual_memory()
    words = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB RAM"
    if SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(SHARED_MEMORY)
        words += f" and {shared.free / GIB:.2f} of {shared.total / GIB:.2f} GiB shared memory"
    return words + " free"


def no_shared_memory(what: str, error: Exception) -> str:
    """What to tell the user when shared memory does not suffice to do ``what``."""
    reason = " ".join(str(error).split())
    return (
        f"the training can't {what}: shared memory ({SHARED_MEMORY}) is full, with {_free_memory()}; "
        f"{MORE_SHARED_MEMORY} ({reason})"
    )


@contextmanager
def deaths_left_alone() -> Iterator[None]:
    """Undo what a loader of PyTorch does to SIGCHLD when it starts workers.

    Its handler raises an error wherever the training is, also while another error is handled: what that still had to
    do, such as ending the other workers, was left out. ``PatchLoader`` looks for dead workers where it waits for them.
    """
    numbers = known_signals("SIGCHLD") if threading.current_thread() is threading.main_thread() else ()
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def dead_worker(process: BaseProcess) -> RuntimeError:
    """What PyTorch's loader says of a worker that has ended, for ``diagnosis``."""
    code = process.exitcode or 0
    end = f"is killed by signal: {signal.strsignal(-code)}" if code < 0 else f"ended with exit code {code}"
    return RuntimeError(f"DataLoader worker (pid {process.pid}) {end}")


def diagnosis(error: BaseException, tables: list[WorkerTrace], workers: int) -> WorkerError | None:
    """What to tell the user when ``error`` says that a data worker died or does not answer; None when it does not."""
    message = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if message.startswith(NO_ANSWER):
        last = [f"{what}, with {memory} before" for table in tables for what, memory, _ in table.lines().values()]
        return WorkerError(
            f"{message}, last they read {'; '.join(last) or 'nothing'}; now {_free_memory()}. If the store's disk does "
            f"not answer, go on when it does with --ckpt_path last; if shared memory is short, {MORE_SHARED_MEMORY}"
        )
    named = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    if named is None:
        return None
    dead = map(int, named[1].split(","))
    noted = {process: line for table in tables for process, line in table.lines().items()}
    read = [noted[process] for process in dead if process in noted]
    if undelivered := [reason for _, _, reason in read if reason]:
        return WorkerError(f"a data worker could not hand over its batch ({undelivered[0]}). {_CURE_OF_HANDING_OVER}")
    doing = "; ".join(f"while it read {what}, with {memory} before" for what, memory, _ in read) or (
        f"before it read a patch; now {_free_memory()}"
    )
    killed = re.search(r"killed by signal: ([\w ]+)", message)
    by = f" ({killed[1].strip()})" if killed else ""
    if killed and killed[1].startswith("Bus"):
        cure = f"shared memory ran out: {MORE_SHARED_MEMORY}"
    else:
        cure = (
            f"usually memory ran out: set data.workers lower than {workers}, ask the cluster for more memory per job "
            "(--mem), or train with data.workers 0 to see whether this case is the cause; 'flarecps preprocess "
            "DATASET PLAN --out STORE' says whether it is whole"
        )
    return WorkerError(f"a data worker died{by} {doing}. {cure[0].upper()}{cure[1:]}")
