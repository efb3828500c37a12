"""Being asked to stop: a signal sets a flag here, and the training stops where it can be resumed exactly.

SIGUSR1 is what SLURM sends shortly before a job's time is over (``#SBATCH --signal=USR1@...``): stop, to be started
again. SIGTERM is what ends a job for good, or what a scheduler that preempts sends before it requeues by itself. SIGHUP
comes when the terminal is closed (not under ``nohup``). Ctrl-C asks for the same once steps are taken; before, it
interrupts. Whoever asks a second time, or sends SIGQUIT (Ctrl-\\), does not want to wait for a step any more: the
process ends at once, also where it waits for another rank. So it does by the first signal where nothing can be saved.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from flarecps.errors import visible
from flarecps.processes import end_at_once, end_soon_after, known_signals

ENDED_BY_SIGNAL = 128  # plus the signal's number: the exit code of a process that a signal ended
STARTER = "FLARECPS_RANK_0"  # environment variable of ranks: the process that has started them
ONE_S = 1.0  # a scheduler may send one signal to a job's processes by two ways at once


class StopRequest(IntEnum):
    """What a process was asked to do; of several ranks' requests, and of several signals, the greatest counts."""

    NONE = 0
    REQUEUE = 1
    HANG_UP = 2
    END = 3
    INTERRUPT = 4

    @property
    def signal(self) -> signal.Signals:
        """The signal that asks for it."""
        return {asked: number for number, asked in SIGNALS.items()}[self]


ASKING = {
    "SIGUSR1": StopRequest.REQUEUE,
    "SIGHUP": StopRequest.HANG_UP,
    "SIGTERM": StopRequest.END,
    "SIGINT": StopRequest.INTERRUPT,
}
SIGNALS = {number: ASKING[number.name] for number in known_signals(*ASKING)}  # Windows has no SIGUSR1 and no SIGHUP
WATCHED = tuple(SIGNALS)  # the weakest request first
QUIT = known_signals("SIGQUIT")

_received = StopRequest.NONE
_heard: int | None = None  # the signal of the strongest request, also when the main thread could not note it yet
_listening = False
_leaving = False
_taken: set[signal.Signals] = set()  # that this process listens to
_saving_interrupts = False  # Ctrl-C sets the flag, too


def _note(number: int, frame: Any) -> None:
    """The whole signal handler: it may run between any two lines of Python, so it only sets a flag."""
    global _received
    _received = max(_received, SIGNALS.get(signal.Signals(number), StopRequest.NONE))


def _end_when_asked(heard: socket.socket, command: str, at_once: Container[int]) -> None:
    """End the process by a signal ``at_once``, or by a second request, until the other end is closed; in a thread."""
    global _heard
    strongest, since_s = -1, 0.0
    while numbers := heard.recv(64):
        for number in map(signal.Signals, (one for one in numbers if one in _taken)):
            if number in at_once:
                end_at_once(ENDED_BY_SIGNAL + number, f"flarecps {command}: ended by {number.name}")
            strength, now_s = WATCHED.index(number), time.monotonic()
            if (strength > strongest and number != signal.SIGINT) or strongest < 0:
                strongest, since_s, _heard = strength, now_s, number
                if _saving_interrupts and number == signal.SIGINT:
                    told = f"flarecps {command}: stops after this step; Ctrl-C again ends at once"
                    print(visible(told), file=sys.stderr, flush=True)
            elif now_s - since_s > ONE_S:
                told = f"flarecps {command}: ended at once by a second signal ({number.name})"
                end_at_once(ENDED_BY_SIGNAL + number, told)


def leave_in_peace() -> None:
    """From the end of ``listening`` on, SIGTERM is ignored: this rank's work is done, and it is about to end.

    ``srun`` sends it as soon as rank 0 has ended with its code, and would hand on this rank's instead.
    """
    global _leaving
    _leaving = True


def handle_interrupts() -> None:
    """Hear Ctrl-C again, which Lightning ignores while it shuts down after the first; nothing but to end at once."""
    if _listening and signal.SIGINT in _taken:
        signal.signal(signal.SIGINT, lambda number, frame: None)


def received() -> StopRequest:
    """What this process has been asked to do since ``listening`` began."""
    return _received


def exit_code(otherwise: int) -> int:
    """The exit code of a process that is ended now: by the signal that it was sent, if it was sent one."""
    return otherwise if _heard is None else ENDED_BY_SIGNAL + _heard


def reinstall_handlers(with_interrupts: bool = False) -> None:
    """Take the signals back from a library that has set handlers of its own; nothing when nobody is listening.

    From the first call ``with_interrupts`` on, Ctrl-C sets the flag as well: who calls looks at it after every step.
    """
    global _saving_interrupts
    if _listening:
        _saving_interrupts = _saving_interrupts or with_interrupts
        for number in _taken:
            if number != signal.SIGINT or _saving_interrupts:
                signal.signal(number, _note)


@contextmanager
def listening(command: str = "fit") -> Iterator[None]:
    """Let the signals that ask ``fit`` to stop set the flag instead of ending the process, and clear it first.

    A second signal ends the process, and all that it has started, at once with exit code 128 + its number; so does the
    first one, but Ctrl-C, in another ``command``. Two within a second are one, and SIGTERM after SIGUSR1, which SLURM
    sends when a job's time is over, is a first one. SIGHUP and Ctrl-C stay ignored where they were (``nohup``, ``&``).

    Signals that a job script has blocked since before Python started (``env --block-signal=USR1``) arrive now. When
    the block ends, SIGTERM ends the process again; SIGUSR1, late for a training that has ended, is ignored. Nothing
    changes outside of the main thread, where Python allows no handlers. A rank that rank 0 has started ends with it.
    """
    global _received, _heard, _listening, _leaving, _saving_interrupts
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    starter = os.environ.get(STARTER, "")
    if os.environ.get("LOCAL_RANK", "0") != "0" and starter.isdigit():  # alone it would wait for others for minutes
        end_soon_after(int(starter))
    earlier = {number: signal.getsignal(number) for number in (*WATCHED, *QUIT)}
    spared = known_signals("SIGHUP", "SIGINT")
    _taken.update(number for number, former in earlier.items() if not (former == signal.SIG_IGN and number in spared))
    at_once = {*QUIT, *(WATCHED if command != "fit" else ())} - {signal.SIGINT}
    for number in known_signals("SIGUSR1"):
        if earlier[number] is signal.SIG_DFL:
            earlier[number] = signal.SIG_IGN
    _received, _heard, _listening, _leaving = StopRequest.NONE, None, True, False
    # Python's handlers run in the main thread, which may wait for another rank; this is written whatever it does
    written, heard = socket.socketpair()
    written.setblocking(False)
    former = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_when_asked, args=(heard, command, at_once), daemon=True)
    watch.start()
    reinstall_handlers()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken)
    try:
        yield
    finally:
        _listening = _saving_interrupts = False
        _taken.clear()
        signal.set_wakeup_fd(former)
        written.shutdown(socket.SHUT_RDWR)  # closed alone, it would stay open in workers that were forked meanwhile
        watch.join(ONE_S)  # it may be printing to a stream that nobody reads
        written.close()
        heard.close()
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if _leaving:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
