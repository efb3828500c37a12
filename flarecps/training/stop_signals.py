"""Being asked to stop: a signal sets a flag here, and the training stops where it can be resumed exactly.

SIGUSR1 is what SLURM sends shortly before a job's time is over (``#SBATCH --signal=USR1@...``): stop, to be started
again. SIGTERM is what ends a job for good, or what a scheduler that preempts sends before it requeues by itself.
Whoever sends SIGTERM or Ctrl-C a second time does not want to wait for a step any more.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from flarecps.processes import end_at_once

ENDED_BY_SIGNAL = 128  # plus the signal's number: the exit code of a process that a signal ended
ONE_S = 1.0  # a scheduler may send one signal to a job's processes by two ways at once


class StopRequest(IntEnum):
    """What a process was asked to do; of several ranks' requests, and of several signals, the greatest counts."""

    NONE = 0
    REQUEUE = 1
    END = 2

    @property
    def signal(self) -> signal.Signals:
        """The signal that asks for it."""
        return {asked: number for number, asked in SIGNALS.items()}[self]


SIGNALS = {signal.SIGUSR1: StopRequest.REQUEUE, signal.SIGTERM: StopRequest.END}

_received = StopRequest.NONE
_listening = False
_ended_s: float | None = None  # when SIGTERM came first


def _note(number: int, frame: Any) -> None:
    """The whole signal handler: it may run between any two lines of Python, so it only sets a flag."""
    global _received, _ended_s
    _received = max(_received, SIGNALS[signal.Signals(number)])
    if number == signal.SIGTERM:
        now_s = time.monotonic()
        if _ended_s is not None and now_s - _ended_s > ONE_S:
            end_at_once(ENDED_BY_SIGNAL + number)
        _ended_s = _ended_s or now_s


def end_at_next_interrupt() -> None:
    """From now on Ctrl-C ends the process at once; Lightning would ignore it while it shuts down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: end_at_once(ENDED_BY_SIGNAL + number))


def received() -> StopRequest:
    """What this process has been asked to do since ``listening`` began."""
    return _received


def listen_again() -> None:
    """Take the signals back from a library that has set handlers of its own; nothing when nobody is listening."""
    if _listening:
        for number in SIGNALS:
            signal.signal(number, _note)


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGUSR1 and SIGTERM set the flag instead of ending the process, and clear it first.

    Signals that a job script has blocked since before Python started (``env --block-signal=USR1``) arrive now. When
    the block ends, SIGTERM ends the process again; SIGUSR1, late for a training that has ended, is ignored. Nothing
    changes outside of the main thread, where Python allows no handlers.
    """
    global _received, _listening, _ended_s
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    if earlier[signal.SIGUSR1] is signal.SIG_DFL:
        earlier[signal.SIGUSR1] = signal.SIG_IGN
    _received, _listening, _ended_s = StopRequest.NONE, True, None
    listen_again()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        _listening = False
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
