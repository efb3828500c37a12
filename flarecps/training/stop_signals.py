"""Being asked to stop: a signal sets a flag here, and the training stops where it can be resumed exactly.

SIGUSR1 is what SLURM sends shortly before a job's time is over (``#SBATCH --signal=USR1@...``): stop, to be started
again. SIGTERM is what ends a job for good, or what a scheduler that preempts sends before it requeues by itself.
Ctrl-C asks for the same once steps are taken; before, it interrupts. Whoever asks a second time does not want to wait
for a step any more: the process ends at once, also where it waits for another rank.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from flarecps.processes import end_at_once, known_signals

ENDED_BY_SIGNAL = 128  # plus the signal's number: the exit code of a process that a signal ended
ONE_S = 1.0  # a scheduler may send one signal to a job's processes by two ways at once


class StopRequest(IntEnum):
    """What a process was asked to do; of several ranks' requests, and of several signals, the greatest counts."""

    NONE = 0
    REQUEUE = 1
    END = 2
    INTERRUPT = 3

    @property
    def signal(self) -> signal.Signals:
        """The signal that asks for it."""
        return {asked: number for number, asked in SIGNALS.items()}[self]


ASKING = {"SIGUSR1": StopRequest.REQUEUE, "SIGTERM": StopRequest.END, "SIGINT": StopRequest.INTERRUPT}
SIGNALS = {number: ASKING[number.name] for number in known_signals(*ASKING)}  # Windows has no SIGUSR1
WATCHED = tuple(SIGNALS)  # the weakest request first

_received = StopRequest.NONE
_listening = False
_saving_interrupts = False  # Ctrl-C sets the flag, too


def _note(number: int, frame: Any) -> None:
    """The whole signal handler: it may run between any two lines of Python, so it only sets a flag."""
    global _received
    _received = max(_received, SIGNALS[signal.Signals(number)])


def _end_at_second(heard: socket.socket) -> None:
    """End the process when a second request is heard; until the other end is closed. Runs in a thread of its own."""
    strongest, since_s = -1, 0.0
    while numbers := heard.recv(64):
        for number in (one for one in numbers if one in WATCHED):
            strength, now_s = WATCHED.index(signal.Signals(number)), time.monotonic()
            if (strength > strongest and WATCHED[strength] != signal.SIGINT) or strongest < 0:
                strongest, since_s = strength, now_s
                if _saving_interrupts and number == signal.SIGINT:
                    print("flarecps fit: stops after this step; Ctrl-C again ends at once", file=sys.stderr, flush=True)
            elif now_s - since_s > ONE_S:
                name = signal.Signals(number).name
                print(f"flarecps fit: ended at once by a second signal ({name})", file=sys.stderr, flush=True)
                end_at_once(ENDED_BY_SIGNAL + number)


def handle_interrupts() -> None:
    """Hear Ctrl-C again, which Lightning ignores while it shuts down after the first; nothing but to end at once."""
    if _listening:
        signal.signal(signal.SIGINT, lambda number, frame: None)


def received() -> StopRequest:
    """What this process has been asked to do since ``listening`` began."""
    return _received


def reinstall_handlers(with_interrupts: bool = False) -> None:
    """Take the signals back from a library that has set handlers of its own; nothing when nobody is listening.

    From the first call ``with_interrupts`` on, Ctrl-C sets the flag as well: who calls looks at it after every step.
    """
    global _saving_interrupts
    if _listening:
        _saving_interrupts = _saving_interrupts or with_interrupts
        for number in SIGNALS:
            if number != signal.SIGINT or _saving_interrupts:
                signal.signal(number, _note)


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGUSR1 and SIGTERM set the flag instead of ending the process, and clear it first.

    A second signal ends the process, and all that it has started, at once with exit code 128 + its number. Two within a
    second are one, and SIGTERM after SIGUSR1, which SLURM sends when a job's time is over, is a first one.

    Signals that a job script has blocked since before Python started (``env --block-signal=USR1``) arrive now. When
    the block ends, SIGTERM ends the process again; SIGUSR1, late for a training that has ended, is ignored. Nothing
    changes outside of the main thread, where Python allows no handlers.
    """
    global _received, _listening, _saving_interrupts
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in WATCHED}
    for number in known_signals("SIGUSR1"):
        if earlier[number] is signal.SIG_DFL:
            earlier[number] = signal.SIG_IGN
    _received, _listening = StopRequest.NONE, True
    # Python's handlers run in the main thread, which may wait for another rank; this is written whatever it does
    written, heard = socket.socketpair()
    written.setblocking(False)
    former = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_at_second, args=(heard,), daemon=True)
    watch.start()
    reinstall_handlers()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    try:
        yield
    finally:
        _listening = _saving_interrupts = False
        signal.set_wakeup_fd(former)
        written.shutdown(socket.SHUT_RDWR)  # closed alone, it would stay open in workers that were forked meanwhile
        watch.join()
        written.close()
        heard.close()
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
