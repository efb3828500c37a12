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

from flarecps.processes import kill, obey_only_the_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and tells who sent a signal")
FORK = multiprocessing.get_context("fork")


def _work(ready: Connection, with_thread: bool) -> None:
    if with_thread:  # as a library does that begins its threads anew after a fork
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    obey_only_the_parent([signal.SIGTERM, signal.SIGUSR1])
    ready.send("here")
    time.sleep(60)


@pytest.mark.parametrize("with_thread", [False, True])
def test_a_strangers_signal_ends_no_worker(with_thread: bool) -> None:
    here, there = FORK.Pipe()
    worker = FORK.Process(target=_work, args=(there, with_thread), daemon=True)
    worker.start()
    assert here.recv() == "here"
    for name in ("-TERM", "-USR1", "-INT", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    if not with_thread:  # else the signal may reach the thread, and only ``kill`` ends the worker
        worker.terminate()
        worker.join(5)
        assert worker.exitcode == 0
    kill([worker])
    assert not worker.is_alive()
