"""Ranks that end together, in processes of their own with stand-ins for Lightning's trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from patience import patient

WATCHING = """
import signal, subprocess, sys, threading, time
from types import SimpleNamespace
from flarecps.training import stop_signals
from flarecps.training.callbacks import rank_watch

class Observer(threading.Thread):  # Lightning's, in short
    def __init__(self, procs):
        super().__init__(daemon=True, name=rank_watch.LIGHTNINGS)
        self._child_processes = procs
    def run(self):
        while self._child_processes:
            time.sleep(0.05)
        print("observer off duty", flush=True)

rank_watch.LOOKS_S, rank_watch.HEARS_WITHIN_S = 0.05, 0.5
launcher = SimpleNamespace(procs=[], cluster_environment=SimpleNamespace(creates_processes_externally=False))
trainer = SimpleNamespace(
    _signal_connector=SimpleNamespace(), strategy=SimpleNamespace(launcher=launcher), world_size=2
)
watch = rank_watch.RankWatch("fit")
with stop_signals.listening():
    watch.begin(trainer)
    launcher.procs = [subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])]
    Observer(launcher.procs).start()
    BLOCK
    print("ended by itself", flush=True)
"""


def run(block: str) -> subprocess.CompletedProcess[str]:
    program = WATCHING.replace("BLOCK", block)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=patient(60))


def test_rank_0_ends_when_another_has_failed_and_it_does_not_hear_of_it() -> None:
    done = run("time.sleep(3600)")
    assert done.returncode == 2
    assert "observer off duty" in done.stdout
    assert "flarecps fit: rank 1 (process " in done.stderr
    assert "has ended with exit code 3" in done.stderr


def test_a_signal_that_rank_0_could_not_note_decides_the_exit_code() -> None:
    done = run("import os; os.kill(os.getpid(), signal.SIGTERM); time.sleep(3600)")
    assert done.returncode == 128 + signal.SIGTERM


def test_rank_0_ends_by_itself_where_it_has_heard() -> None:
    done = run("watch.on_exception(trainer, None, ValueError()); launcher.procs[0].wait(); time.sleep(1.5)")
    assert done.returncode == 0, done.stderr
    assert "ended by itself" in done.stdout


def test_a_training_that_was_asked_to_stop_does_not_begin() -> None:
    done = run("pass; import os; os.kill(os.getpid(), signal.SIGHUP); watch.begin(trainer)")
    assert "StoppedBySignal: stopped before the training began" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a parent's number")
def test_a_rank_ends_with_rank_0_that_has_started_it() -> None:
    """Killed outright, while the other imports, say, and waits for nobody yet."""
    rank = (
        "import time\nfrom flarecps import processes\nprocesses.LOOKS_S = processes.FOLLOWS_S = 0.1\n"
        "from flarecps.training.stop_signals import listening\n"
        "with listening():\n    print('here', flush=True)\n    time.sleep(3600)\n"
    )
    rank_0 = (
        "import os, subprocess, sys, time\n"
        "more = {'LOCAL_RANK': '1', 'FLARECPS_RANK_0': str(os.getpid())}\n"
        "one = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=os.environ | more)\n"
        "print(one.pid, flush=True)\ntime.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", rank_0, rank], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        other = psutil.Process(int(first.stdout.readline()))
        assert first.stdout.readline() == "here\n"
        first.kill()
    _, left = psutil.wait_procs([other], patient(20))
    assert not left
