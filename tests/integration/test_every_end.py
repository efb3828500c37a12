"""Every end of ``fit`` with data workers is an end: in time, with its exit code, and no process is left behind."""

from __future__ import annotations

import errno
import multiprocessing.reduction
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from lightning.pytorch import Callback
from patience import patient
from stores import TinyStores, fit, fit_words

from flarecps.cli.main import main
from flarecps.data.draws import Draw
from flarecps.data.patch_stream import PatchBatches

WITHIN_S = 20.0  # from the signal or fault to the last process's end, on a machine that has a core to spare
UNTIL_IT_TRAINS_S = 300.0
ENDLESS = [
    "--data.iterations_per_epoch",
    100000,
    "--data.workers",
    2,
    "--data.global_batch",
    "{labelled: 2, unlabelled: 2}",
]


@dataclass
class Running:
    """A training in processes of its own."""

    process: subprocess.Popen[str]
    error: Path
    record: Callable[[str, object], None]

    def everyone(self) -> list[psutil.Process]:
        """All its processes, ranks and data workers, the first one first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The data workers of all ranks: forked, and without children; programs that a library starts are none."""
        found = []
        for one in self.everyone()[1:]:
            with suppress(psutil.NoSuchProcess):
                parent = one.parent()
                found += [one] if parent and one.cmdline() == parent.cmdline() and not one.children() else []
        return found

    def ended(self, family: list[psutil.Process]) -> tuple[int, str]:
        """Its exit code and what it said, once all of ``family`` are gone, which must be soon."""
        began, within_s = time.monotonic(), patient(WITHIN_S)
        code = self.process.wait(within_s)
        _, left = psutil.wait_procs(family, max(0.0, within_s - (time.monotonic() - began)))
        self.record("exit code", code)
        self.record("seconds", f"{time.monotonic() - began:.1f}")
        assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]
        return code, self.error.read_text()


class SayWhenStepping(Callback):
    """Makes a file when the training has made its third step: from there on it may be disturbed."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            Path(trainer.default_root_dir, f"steps_{trainer.global_rank}").touch()


class StandStill(Callback):
    """Neither steps nor waits for another rank, as in the validation of a large scan."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            Path(trainer.default_root_dir, f"stands_{trainer.global_rank}").touch()
            time.sleep(3600)


class DamageFrom(Callback):
    """Lets the patches of this training go wrong from some index on, in the workers: ``fault`` is a name below."""

    def __init__(self, fault: str, index: int = 40) -> None:
        before = PatchBatches.subject_at

        def subject_at(batches: PatchBatches, draw: Draw, worker: int | None = None) -> Any:
            if draw.index >= index and worker is not None:
                FAULTS[fault]()
            return before(batches, draw, worker)

        PatchBatches.subject_at = subject_at  # type: ignore[method-assign]  # the workers are forked from this process


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _get_stuck() -> None:
    time.sleep(3600)


def _hand_over_no_more() -> None:
    def no_file(descriptor: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    multiprocessing.reduction.DupFd = no_file  # type: ignore[assignment]


FAULTS = {"die": _die, "get stuck": _get_stuck, "hand over no more": _hand_over_no_more}


@pytest.fixture
def start(tiny_stores: TinyStores, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Any]:
    """A function that starts ``fit`` and waits until every rank takes steps; what is left is killed at the end.

    Exit codes and times are what benchmarks/reliability/ends.py prints.
    """
    started: list[Running] = []

    def begin(
        *more: object, callbacks: str = "", ranks: int = 1, wait: bool = True, program: str = "", **variables: str
    ) -> Running:
        run = tmp_path / "run"
        run.mkdir()
        listed = f"[{{class_path: test_every_end.SayWhenStepping}}{callbacks}]"
        words = fit_words("phantom_2d.yaml", tiny_stores, run, *ENDLESS, "--trainer.callbacks", listed, *more, epochs=1)
        if ranks > 1:
            words += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
        here = Path(__file__).parent
        program = program or "from flarecps.cli.main import main; import sys; sys.exit(main())"
        environment = (
            os.environ
            | variables
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), str(here.parents[1])]),
            }
        )
        script = tmp_path / "program.py"  # a file, for Lightning starts rank 1 by the command that started rank 0
        script.write_text(program)
        error = tmp_path / "error.txt"
        with error.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, str(script), *map(str, words)],
                stderr=stream,
                stdout=subprocess.DEVNULL,
                env=environment,
                text=True,
                start_new_session=True,
            )
        running = Running(process, error, record_property)
        started.append(running)
        deadline = time.monotonic() + UNTIL_IT_TRAINS_S
        while wait and not all((run / f"steps_{rank}").exists() for rank in range(ranks)):
            assert process.poll() is None, error.read_text()
            assert time.monotonic() < deadline, error.read_text()
            time.sleep(0.05)
        return running

    yield begin
    for running in started:
        try:
            os.killpg(running.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        running.process.wait()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 128 + signal.SIGINT, "go on with --ckpt_path auto"),
        (signal.SIGTERM, 128 + signal.SIGTERM, "go on with --ckpt_path auto"),
        (signal.SIGUSR1, 128 + signal.SIGUSR1, "go on with --ckpt_path auto"),
        (signal.SIGHUP, 128 + signal.SIGHUP, "go on with --ckpt_path auto"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"],
)
def test_a_signal_is_an_end(start: Any, number: int, code: int, words: str, ranks: int) -> None:
    """To all processes, as terminals and SLURM send them; of two ranks one is asked, and asks the other."""
    to_all = ranks == 1 or number == signal.SIGINT
    running = start(ranks=ranks)
    family = running.everyone()
    assert len(family) >= ranks * 3, "two workers a rank"
    for process in family if to_all else family[:1]:
        process.send_signal(number)
    found, said = running.ended(family)
    assert found == code, said
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_a_step(start: Any, number: signal.Signals) -> None:
    """Rank 1 is stopped, so that rank 0 waits for it in an all-reduce, where no handler of Python's runs."""
    running = start(ranks=2)
    family = running.everyone()
    (other,) = (one for one in family[1:] if one.children())  # rank 1 is a child of rank 0, and has its own
    other.suspend()
    time.sleep(1.0)
    family[0].send_signal(number)
    time.sleep(1.5)
    assert running.process.poll() is None
    family[0].send_signal(number)
    code, said = running.ended(family)
    assert code == 128 + number
    assert f"ended at once by a second signal ({number.name})" in said


def test_the_signal_that_waits_for_nothing_is_an_end(start: Any) -> None:
    """Ctrl-\\; what is run by the training ends with it."""
    running = start()
    family = running.everyone()
    family[0].send_signal(signal.SIGQUIT)
    code, said = running.ended(family)
    assert code == 128 + signal.SIGQUIT
    assert "flarecps fit: ended by SIGQUIT" in said


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_an_end_also_when_the_other_does_not_ask_for_it(
    start: Any, tmp_path: Path, killed: int
) -> None:
    running = start(ranks=2, callbacks=", {class_path: test_every_end.StandStill}")
    deadline = time.monotonic() + UNTIL_IT_TRAINS_S
    while not all((tmp_path / "run" / f"stands_{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = running.everyone()
    (other,) = (one for one in family[1:] if one.children())
    (other if killed else family[0]).kill()
    code, said = running.ended(family)
    if killed:
        assert code == 2, said
        assert f"flarecps fit: rank 1 (process {other.pid}) has ended with exit code -9" in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_worker_is_an_end(start: Any, ranks: int) -> None:
    running = start(ranks=ranks)
    family, workers = running.everyone(), running.workers()
    assert len(workers) >= 2 * ranks
    workers[-1].kill()
    code, said = running.ended(family)
    assert code == 2, said
    assert "Traceback" not in said
    assert re.search(r"a data worker died.* while it read case '", said), said
    assert "data.workers lower" in said
    assert ("another process of this training has ended" in said) == (ranks == 2)


def test_a_parent_killed_outright_takes_its_workers_along(start: Any) -> None:
    running = start()
    family = running.everyone()
    family[0].kill()
    assert running.ended(family)[0] == -signal.SIGKILL


def test_a_worker_that_never_answers_is_an_end(start: Any) -> None:
    program = (
        "import flarecps.data.patch_loader as loader, sys\n"
        "loader.LOOKS_S, loader.ANSWER_WITHIN_S = 1, 4\n"
        "from flarecps.cli.main import main; sys.exit(main())\n"
    )
    stuck = ", {class_path: test_every_end.DamageFrom, init_args: {fault: get stuck}}"
    running = start(callbacks=stuck, program=program)
    code, said = running.ended(running.everyone())
    assert code == 2, said
    assert "no data worker has answered for 4 s" in said
    assert "shared memory" in said


def test_a_batch_that_cannot_be_handed_over_is_an_end(start: Any) -> None:
    running = start(callbacks=", {class_path: test_every_end.DamageFrom, init_args: {fault: hand over no more}}")
    code, said = running.ended(running.everyone())
    assert code == 2, said
    assert "a data worker could not hand over its batch (OSError: [Errno 24] Too many open files)" in said
    assert "ulimit -n" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files")
@pytest.mark.parametrize("limit", [24, 40])  # too few to start all workers; too few for what they make
def test_too_few_open_files_are_an_end(start: Any, limit: int) -> None:
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "from flarecps.cli.main import main; sys.exit(main())\n"
    )
    running = start("--data.workers", 8, program=program, wait=False)
    code = running.process.wait(UNTIL_IT_TRAINS_S)
    said = running.error.read_text()
    assert code == 2, said
    assert "Too many open files" in said
    assert "ulimit -n" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files")
def test_a_low_limit_that_may_be_raised_is_no_end(start: Any) -> None:
    program = (
        "import resource as r, sys; r.setrlimit(r.RLIMIT_NOFILE, (40, r.getrlimit(r.RLIMIT_NOFILE)[1]))\n"
        "from flarecps.cli.main import main; sys.exit(main())\n"
    )
    running = start("--data.workers", 8, program=program)
    family = running.everyone()
    family[0].terminate()
    assert running.ended(family)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("is_long", [False, True])
def test_any_folder_of_temporary_files_will_do_and_is_left_empty(start: Any, tmp_path: Path, is_long: bool) -> None:
    """Sites name it by user, job and node; a socket's path may have 107 bytes."""
    place = tmp_path / ("job " * 30) if is_long else Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    place.mkdir(exist_ok=True)
    running = start(TMPDIR=str(place))
    family = running.everyone()
    family[0].terminate()
    code, said = running.ended(family)
    assert code == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    place.rmdir()  # nothing is left in it


def test_a_damaged_file_is_an_end(start: Any, tiny_stores: TinyStores, tmp_path: Path) -> None:
    running = start()
    family = running.everyone()
    store = Path(next(word for word in family[0].cmdline() if word.endswith(tiny_stores.two.name)))
    images = sorted(store.glob("cases/*/image.b2nd"))
    kept = {path: path.read_bytes() for path in images}
    try:
        for path in images:
            path.write_bytes(b"not an array")
        code, said = running.ended(family)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert code == 2, said
    assert re.search(r"flarecps fit: .*cases", said), said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small /dev/shm, which takes root")
@pytest.mark.parametrize(("size", "what"), [("20k", "start its data workers"), ("60k", "hand over a patch")])
def test_full_shared_memory_is_an_end(start: Any, size: str, what: str) -> None:
    """In a mount namespace of its own, where /dev/shm holds as little as in a container that was given too little."""
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.unshare(0x00020000) or libc.mount(None, b'/', None, 0x4000 | 0x40000, None):\n"
        "    sys.exit(99)\n"
        f"if libc.mount(b'tmpfs', b'/dev/shm', b'tmpfs', 0, b'size={size}'):\n"
        "    sys.exit(99)\n"
        "from flarecps.cli.main import main; sys.exit(main())\n"
    )
    running = start(program=program, wait=False)
    began = time.monotonic()
    code = running.process.wait(UNTIL_IT_TRAINS_S)
    running.record("exit code", code)
    running.record("seconds", f"{time.monotonic() - began:.1f} (from its start)")
    said = running.error.read_text()
    if code == 99:
        pytest.skip("may not mount here")
    assert code == 2, said
    assert "shared memory" in said
    assert what in said
    assert "docker run --shm-size" in said
    assert any(line.startswith("flarecps fit: ") for line in said.splitlines())


def test_a_second_training_in_a_run_folder_is_refused(
    start: Any, tiny_stores: TinyStores, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the first's host and process, whatever it was asked to do; the ranks of the first are one training."""
    running = start(ranks=2)
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name.startswith((".partial", "config"))}
    for more in (["--ckpt_path", "auto"], ["--overwrite", "true"]):
        assert main(fit_words("phantom_2d.yaml", tiny_stores, run, *more)) == 2
        said = capfd.readouterr().err
        assert f"another training is at work here (process {running.process.pid} on {socket.gethostname()}" in said
        assert "Traceback" not in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    family = running.everyone()
    family[0].kill()
    running.ended(family)
    fit("phantom_2d.yaml", tiny_stores, run)  # what was killed holds nothing
