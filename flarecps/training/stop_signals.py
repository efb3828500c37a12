"""Being asked to stop: a signal sets a flag here, and the training stops where it can be resumed exactly.

SIGUSR1 is what SLURM sends shortly before a job's time is over (``#SBATCH --signal=USR1@...``): stop, to be started
again. SIGTERM is what ends a job for good, or what a scheduler that preempts sends before it requeues by itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any


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


def _note(number: int, frame: Any) -> None:
    """The whole signal handler: it may run between any two lines of Python, so it only sets a flag."""
    global _received
    _received = max(_received, SIGNALS[signal.Signals(number)])


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
    global _received, _listening
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    if earlier[signal.SIGUSR1] is signal.SIG_DFL:
        earlier[signal.SIGUSR1] = signal.SIG_IGN
    _received, _listening = StopRequest.NONE, True
    listen_again()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        _listening = False
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
