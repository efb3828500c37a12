"""Worker processes that end with their parent, however it ends, and that a parent ends without waiting for ever.

A worker that ignored SIGTERM would be joined for ever when its parent leaves (multiprocessing terminates and joins);
one that obeyed everybody would die of the signals that SLURM sends to all processes of a job, before a step is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import TracebackType

import psutil

from flarecps.errors import visible

LOOKS_S = 1.0  # seconds between two looks whether the parent is still there
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends
FOLLOWS_S = 8.0  # in which a process that outlives its parent may finish what it writes
SOCKETS_BELOW_BYTES = 70  # of a folder's path: a socket's may have 107 (macOS: 103), and two made-up names take 32
OPEN_FILES = 65536
JOINED_WITHIN_S = 5.0  # a killed process that is not gone then hangs in the kernel (a lost network disk)


def usable_cores() -> int:
    """The cores that this process may use: of a cluster's job, its share of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of these signals that the system has, in this order: Windows lacks most of them.

    >>> [one.name for one in known_signals("SIGINT", "SIGNONE")]
    ['SIGINT']
    """
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def peak_memory_bytes() -> int:
    """The most RAM that this process has held at once, of shared libraries' pages too."""
    try:
        import resource
    except ImportError:  # Windows, which tells it with the rest
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in the system's unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """While the block runs, these signals wait; workers forked in it begin with them blocked.

    Libraries may begin threads in a forked worker before ``obey_only_the_parent`` is called there: a signal that one of
    them does not block would end the worker.
    """
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raise_limit_of_open_files() -> None:
    """Let this process and its workers open ``OPEN_FILES``, or as many as the system's hard limit allows.

    Each tensor that a worker hands over is an open file; shells begin programs with a soft limit of 1024 (macOS: 256).
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_folder_for_sockets() -> None:
    """Before there are workers: one folder for the sockets by which they hand over shared memory.

    multiprocessing makes it in the folder of temporary files and removes it at this process's end; a worker's own would
    stay when the worker is killed. Where a site has set a long TMPDIR for its jobs, it is made where sockets' paths are
    short enough: what is handed over would never arrive.
    """
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > SOCKETS_BELOW_BYTES:
        writable = (folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK | os.X_OK))
        tempfile.tempdir = next(writable, before)
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def obey_only_the_parent(left_to_the_parent: Iterable[signal.Signals] = ()) -> None:
    """In a new worker: ignore Ctrl-C and the signals given, unless the parent sends SIGTERM; end when it is gone.

    And say nothing when the parent leaves while it fetches something: that is told by the parent.
    """
    sys.excepthook = _all_but_hung_up
    signal.set_wakeup_fd(-1)  # a forked worker has the parent's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waited = {one for one in left_to_the_parent if one != signal.SIGINT}
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    else:  # macOS, where PyTorch's own handler of SIGTERM obeys the parent, and Windows
        for number in waited - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)
        waited = set()
    parent = multiprocessing.parent_process()
    if parent is not None:
        if sys.platform == "linux":  # also in the middle of a library's long work, and when this process is stopped
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        threading.Thread(target=_end_after, args=(parent, waited), daemon=True).start()


def hung_up(error: BaseException) -> bool:
    """Whether the parent has left the handshake in which multiprocessing hands over shared memory: interrupted."""
    return isinstance(error, (ConnectionError, EOFError))


def _all_but_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """For the thread in which multiprocessing hands over shared memory; a worker's own errors do not come here."""
    if not hung_up(error):
        sys.__excepthook__(kind, error, traceback)


def _end_after(parent: BaseProcess, waited: set[signal.Signals]) -> None:
    # Windows gives the number of a parent that is gone, too; a fork holds open what its siblings' parents are known by
    while parent.is_alive() if os.name == "nt" else os.getppid() == parent.pid:
        if not waited:
            time.sleep(LOOKS_S)
            continue
        came = signal.sigtimedwait(waited, LOOKS_S)
        if came is not None and came.si_signo == signal.SIGTERM and came.si_pid == parent.pid:
            break
    os._exit(0)


def end_soon_after(parent: int) -> None:
    """Let this process end ``FOLLOWS_S`` after its parent, the process ``parent``, is gone; nothing on Windows."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(LOOKS_S)
        time.sleep(FOLLOWS_S)
        end_at_once(1, f"flarecps: ended, for the process {parent} that had started this one is gone")

    if os.name != "nt":
        threading.Thread(target=follow, daemon=True).start()


def kill(processes: Iterable[BaseProcess]) -> None:
    """Kill this process's workers and wait until they are gone. What they write must be written atomically."""
    processes = list(processes)
    for process in processes:
        process.kill()
    deadline = time.monotonic() + JOINED_WITHIN_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def end_at_once(code: int, words: str) -> None:
    """Say why and leave, from whatever thread, without another look at anything; all that this process started is taken
    along."""
    leaving = threading.Timer(LOOKS_S, os._exit, (code,))  # whoever reads standard error may be stopped
    leaving.daemon = True
    for process in _descendants():
        with contextlib.suppress(psutil.Error):
            process.kill()
    leaving.start()
    print(visible(words), file=sys.stderr, flush=True)
    os._exit(code)


def _descendants() -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []
