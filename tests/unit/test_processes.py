"""Workers that obey their parent alone: other processes' signals, threads begun at the fork, and the parent's word."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import pytest

from flarecps.processes import blocked, kill, obey_only_the_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and tells who sent a signal")
FORK = multiprocessing.get_context("fork")


STOPS = (signal.SIGTERM, signal.SIGUSR1)


def _work(ready: Connection, with_thread: bool) -> None:
    if with_thread:  # as a library does that begins its threads anew after a fork
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    obey_only_the_parent(STOPS)
    ready.send("here")
    time.sleep(60)


@pytest.mark.parametrize("with_thread", [False, True])
def test_a_strangers_signal_ends_no_worker_and_the_parents_does(with_thread: bool) -> None:
    here, there = FORK.Pipe()
    worker = FORK.Process(target=_work, args=(there, with_thread), daemon=True)
    with blocked(STOPS):
        worker.start()
    assert here.recv() == "here"
    for name in ("-TERM", "-USR1", "-INT", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
    kill([worker])


def test_kill_ends_a_worker_whatever_it_does() -> None:
    here, there = FORK.Pipe()
    worker = FORK.Process(target=_work, args=(there, False), daemon=True)
    with blocked(STOPS):
        worker.start()
    assert here.recv() == "here"
    kill([worker])
    assert worker.exitcode == -signal.SIGKILL


def test_signals_wait_while_they_are_blocked() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with blocked(STOPS):
            signal.raise_signal(signal.SIGUSR1)
            assert not heard
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
