"""Flags that signals set, and asking SLURM for another start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from patience import patient

from flarecps.cli import training
from flarecps.training import stop_signals
from flarecps.training.callbacks.requeue import (
    REQUEUE_ALLOWED,
    REQUEUE_FILE,
    StoppedBySignal,
    requeue_job,
)
from flarecps.training.stop_signals import StopRequest, listening, received


@pytest.mark.parametrize(
    ("numbers", "asked"),
    [
        ([], StopRequest.NONE),
        ([signal.SIGUSR1], StopRequest.REQUEUE),
        ([signal.SIGTERM], StopRequest.END),
        ([signal.SIGHUP, signal.SIGUSR1], StopRequest.HANG_UP),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1], StopRequest.END),  # whoever ends a job wants no requeue
    ],
)
def test_signals_set_a_flag_and_nothing_else(numbers: list[int], asked: StopRequest) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening():
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received() == asked
    assert signal.getsignal(signal.SIGTERM) is before
    os.kill(os.getpid(), signal.SIGUSR1)  # late: does not end this process
    with listening():
        assert received() == StopRequest.NONE


def test_the_signals_are_taken_back_from_a_library() -> None:
    with listening():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop_signals.reinstall_handlers()
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() == StopRequest.END
    before = signal.getsignal(signal.SIGTERM)
    stop_signals.reinstall_handlers()  # nobody listens
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_sets_the_flag_once_steps_are_taken() -> None:
    before = signal.getsignal(signal.SIGINT)
    with listening():
        assert signal.getsignal(signal.SIGINT) is before, "nobody looks at a flag yet"
        stop_signals.reinstall_handlers(with_interrupts=True)
        os.kill(os.getpid(), signal.SIGINT)
        assert received() == StopRequest.INTERRUPT
        assert received().signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_ignored_stays_ignored() -> None:
    """As ``nohup`` and a shell's ``&`` leave it."""
    program = (
        "import os, signal\n"
        "from flarecps.training import stop_signals\n"
        "for number in (signal.SIGHUP, signal.SIGINT):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "with stop_signals.listening():\n"
        "    stop_signals.reinstall_handlers(with_interrupts=True)\n"
        "    for number in (signal.SIGHUP, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
        "    print(stop_signals.received().name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["NONE"]


@pytest.mark.parametrize(
    ("command", "name"), [("fit", "SIGQUIT"), ("predict", "SIGTERM"), ("validate", "SIGHUP"), ("test", "SIGUSR1")]
)
def test_a_signal_ends_at_once_what_has_nothing_to_save(command: str, name: str) -> None:
    """Also while the main thread waits for another rank, where no handler of Python's runs; children end, too."""
    program = (
        "import subprocess, sys, threading\n"
        "from flarecps.training.stop_signals import listening\n"
        f"with listening({command!r}):\n"
        "    print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(getattr(signal, name))
        try:
            assert process.wait(patient(20)) == 128 + getattr(signal, name)
        finally:
            process.kill()
        assert process.stderr.read() == f"flarecps {command}: ended by {name}\n"
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_signal_that_was_blocked_before_python_began_arrives() -> None:
    """What ``env --block-signal=USR1`` in the job script is for."""
    program = "from flarecps.training.stop_signals import listening, received\nwith listening(): print(received().name)"
    start = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
    start += "os.kill(os.getpid(), signal.SIGUSR1); os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", start, program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["REQUEUE"]


def test_outside_of_the_main_thread_nothing_changes() -> None:
    def listen() -> None:
        with listening():
            pass

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a forked process")
def test_a_process_forked_meanwhile_is_not_waited_for() -> None:
    """A data worker that lives on holds a copy of all that was open."""
    program = (
        "import os, time\n"
        "from flarecps.training.stop_signals import listening\n"
        "with listening():\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "print('over', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.wait(patient(20)) == 0
            assert process.stdout is not None
            assert process.stdout.readline() == "over\n"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


# -- requeueing


def put_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> Path:
    """A program of that name, which writes its words down and ends with ``code``; the file of words."""
    program, words = folder / "scontrol", folder / "words"
    program.write_text(f'#!/bin/sh\necho "$@" > {words}\necho "Invalid job id" >&2\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return words


def test_a_task_of_an_array_is_requeued_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = put_scontrol(tmp_path, monkeypatch, 0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert requeue_job() is None
    assert words.read_text() == "requeue 12\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue_job() is None
    assert words.read_text() == "requeue 12_3\n"


@pytest.mark.parametrize("there", [True, False])
def test_where_scontrol_fails_or_is_missing_the_job_script_is_told(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        put_scontrol(tmp_path, monkeypatch, 1)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv(REQUEUE_FILE, raising=False)
    complaint = requeue_job()
    assert complaint is not None
    assert ("Invalid job id" if there else "no scontrol") in complaint
    monkeypatch.setenv(REQUEUE_FILE, str(tmp_path / "requeue"))
    assert requeue_job() is None
    assert (tmp_path / "requeue").exists()


@pytest.mark.parametrize(("rank", "code"), [(0, 128 + signal.SIGUSR1), (1, 0)])
def test_a_job_that_may_not_be_requeued_is_not(
    rank: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 says by its code that the training isn't done; of another rank's code ``srun`` would kill rank 0."""
    words = put_scontrol(tmp_path, monkeypatch, 0)
    job = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "fit"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training.rank_zero_only, "rank", rank)
    stop = StoppedBySignal(StopRequest.REQUEUE, "in epoch 1", None)
    monkeypatch.setenv(REQUEUE_ALLOWED, "no")
    assert training._leave(stop) == code
    assert not words.exists()
    assert ("go on with --ckpt_path auto" in capsys.readouterr().err) == (rank == 0)
    monkeypatch.delenv(REQUEUE_ALLOWED)
    assert training._leave(stop) == 0
    assert words.exists() == (rank == 0)
