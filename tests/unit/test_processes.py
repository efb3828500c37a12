"""Workers that obey their parent alone: other processes' signals, threads begun at the fork, and the parent's word."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import reduction
from multiprocessing.connection import Client, Connection
from multiprocessing.resource_sharer import DupFd
from pathlib import Path

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


def _share(ready: Connection, said: Path) -> None:
    obey_only_the_parent()
    sys.stderr = said.open("w", buffering=1)
    ready.send(DupFd(ready.fileno())._id)
    time.sleep(60)


def _fetched(address: str, key: int) -> int:
    """What a worker hands over; it serves one caller after the other, so an earlier one is done with."""
    with Client(address, authkey=multiprocessing.current_process().authkey) as caller:
        caller.send((key, os.getpid()))
        return reduction.recv_handle(caller)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """Where a worker hands over a file, as PyTorch's workers do with batches, the file's key, and what it says."""
    here, there = FORK.Pipe()
    worker = FORK.Process(target=_share, args=(there, tmp_path / "said"), daemon=True)
    worker.start()
    yield *here.recv(), tmp_path / "said"
    kill([worker])


@pytest.mark.parametrize("heard", [8, 4096], ids=["reset", "end of file"])
def test_a_parent_that_hangs_up_is_no_traceback(shared: tuple[str, int, Path], heard: int) -> None:
    """In the handshake in which a worker hands over a batch, where Ctrl-C can find the parent."""
    address, key, said = shared
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)
        caller.recv(heard)
    os.close(_fetched(address, key))
    assert not said.read_text()


def test_another_error_of_a_worker_is_told(shared: tuple[str, int, Path]) -> None:
    address, key, said = shared
    with pytest.raises(EOFError):
        _fetched(address, key + 1)
    os.close(_fetched(address, key))
    assert "KeyError" in said.read_text()


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
