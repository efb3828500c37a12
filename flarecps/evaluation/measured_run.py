"""A command run under meters: started as it is, without a shell, and read every 0.1 s until it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import numpy as np
import psutil

from flarecps.errors import ConfigError
from flarecps.evaluation.efficiency import INTERVAL_S, Trace
from flarecps.evaluation.resource_usage import GpuMeter, TreeMeter, read_host
from flarecps.processes import known_signals

FORWARDED = known_signals("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
FROM_THE_KEYBOARD = known_signals("SIGINT", "SIGQUIT")  # a terminal sends them to every process in the foreground
ENOUGH = 3  # signals after which the tree is killed
LEAVING_S = 0.5  # for children that are just about to end, too
GRACE_S = 5.0  # for what is left of an interrupted command to end by itself
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_MEMORY = slice(2, 6)  # columns of a row: of tree, card and machine


@dataclass(frozen=True)
class MeasuredRun:
    """A command that has ended: its readings, its exit code as shells give it (128 + signal), and who outlived it.

    ``left`` describes the descendants that still ran when it ended; they run on, unless ``interrupted``.
    """

    command: tuple[str, ...]
    trace: Trace
    exit_code: int
    left: tuple[str, ...]
    interrupted: bool


def run_measured(command: Sequence[str], interval_s: float = INTERVAL_S, card: GpuMeter | None = None) -> MeasuredRun:
    """Run the command to its end, with this process's input, output and environment.

    Signals to this process go on to the command. Raises ConfigError when it can't be started, and on Windows.
    """
    if not hasattr(os, "wait4"):
        raise ConfigError("a command's time and memory are read as Linux and macOS count them; on Windows use WSL")
    before = frozenset(child.pid for child in psutil.Process().children(recursive=True))
    signals = _Signals()
    with _child_subreaper(), signals.taken():
        readings = _Readings(interval_s, card)
        process = _start(command)
        tree = TreeMeter(process.pid, before)
        end = _End(process)
        signals.go_to(tree)
        readings.follow(tree, end)
        tree_cpu_s, left = tree.close(end.cpu_s)
        readings.take(end.time_s, tree_cpu_s, 0.0, frozenset())
        _, left = psutil.wait_procs(left, timeout=LEAVING_S)
        described = tuple(map(_described, left))
        if signals.came:
            for end_it in (psutil.Process.terminate, psutil.Process.kill):  # asked first
                for one in left:
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        end_it(one)
                _, left = psutil.wait_procs(left, timeout=GRACE_S)
    code = process.returncode
    return MeasuredRun(
        tuple(command), readings.trace(end.time_s), 128 - code if code < 0 else code, described, bool(signals.came)
    )


@contextmanager
def _child_subreaper() -> Iterator[None]:
    """While the block runs, descendants whose parents end become children of this process (Linux; else nothing)."""
    change = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *words: None
    change(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        change(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class _Readings:
    """Rows of a `Trace` as they come."""

    def __init__(self, interval_s: float, card: GpuMeter | None) -> None:
        self._interval_s = interval_s
        self._card = card
        self._rows: list[tuple[float, ...]] = []
        self.began = time.perf_counter()
        self.take(self.began, 0.0, 0.0, frozenset())

    def follow(self, tree: TreeMeter, end: _End) -> None:
        """Read at every tick until the end; a tick that was missed is left out, not made up for."""
        tick = 1
        while not end.wait(self.began + tick * self._interval_s - time.perf_counter()):
            now = time.perf_counter()
            tree_cpu_s, tree_ram_mb = tree.read()
            if end.wait(0):  # it ended while being read: what is gone already would look like a fall of memory
                tree_ram_mb = max(tree_ram_mb, self._rows[-1][2])
            self.take(now, tree_cpu_s, tree_ram_mb, tree.pids)
            tick = max(tick, int((time.perf_counter() - self.began) / self._interval_s)) + 1

    def take(self, now: float, tree_cpu_s: float, tree_ram_mb: float, pids: frozenset[int]) -> None:
        """One row: what was read of the tree, and the machine and the card now."""
        card = self._card.read(pids) if self._card is not None else (0.0, 0.0)
        self._rows.append((now - self.began, tree_cpu_s, tree_ram_mb, *card, *read_host()))

    def trace(self, ended: float) -> Trace:
        """All rows as arrays."""
        table = np.array(self._rows)
        if len(table) > 2:
            # The last row is read when the command has gone and its memory with it; until then it held what it had.
            table[-1, _MEMORY] = table[-2, _MEMORY]
        return Trace(
            duration_s=ended - self.began,
            interval_s=self._interval_s,
            cores=psutil.cpu_count() or 1,
            time_s=table[:, 0],
            tree_cpu_s=table[:, 1],
            tree_ram_mb=table[:, 2],
            card_mb=table[:, 3] if self._card is not None else None,
            tree_card_mb=table[:, 4] if self._card is not None and self._card.tells_processes else None,
            host_ram_mb=table[:, 5],
            host_cpu_s=table[:, 6:],
        )


class _End:
    """The end of a process, waited for in a thread of its own, so that its time is not rounded to the ticks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ended = threading.Event()
        self.time_s = 0.0
        self.cpu_s = 0.0
        threading.Thread(target=self._wait, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, at once or within so many seconds."""
        return self._ended.wait(max(0.0, seconds))

    def _wait(self) -> None:
        _, status, usage = os.wait4(self._process.pid, 0)
        self.time_s = time.perf_counter()
        self.cpu_s = usage.ru_utime + usage.ru_stime  # its own and that of all descendants waited for
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    if not command:
        raise ConfigError("no command to measure; write it after two dashes: flarecps efficiency -- COMMAND ARGUMENTS")
    shell = f"what only a shell knows (aliases, cd, pipes, >) needs one: -- sh -c {' '.join(command)!r}"
    try:
        return subprocess.Popen(list(command))
    except FileNotFoundError:
        raise ConfigError(f"{command[0]}: no such program, in PATH or as a file; {shell}") from None
    except PermissionError:
        raise ConfigError(
            f"{command[0]}: not a program that may be run; make it executable (chmod +x), or name what runs it first "
            "(sh FILE, python FILE)"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{command[0]}: can't be started ({error.strerror}); expected a program or a script with a #! line"
        ) from error


class _Signals:
    """Signals to this process: they go on to the command, if it did not get them already."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._tree: TreeMeter | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Signals come here while the block runs."""
        former = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere signals are not to be had
            for number in FORWARDED:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it, for the command too
                    former[number] = signal.signal(number, self._forward)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def go_to(self, tree: TreeMeter) -> None:
        """Forward to this tree, and what came before it was there."""
        self._tree = tree
        for number in self.came:
            tree.signal(number)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if self._tree is None:
            return
        if len(self.came) >= ENOUGH:
            self._tree.signal(signal.SIGKILL, to_all=True)
        elif number not in FROM_THE_KEYBOARD:
            self._tree.signal(number)
        elif not _in_the_foreground():
            # As a terminal does: to all. A shell that waits for its child would otherwise not even look.
            self._tree.signal(number, to_all=True)


def _in_the_foreground() -> bool:
    """Whether the terminal that this process has, if any, sends its keyboard's signals to it and its children."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({process.pid})"
    except psutil.Error:
        return str(process.pid)
