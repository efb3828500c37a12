"""Two at once: a folder's lock, and work in progress that nobody else takes for a crash's leftovers."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_model import write_model, write_scan
from test_store import a_plan, catalogue  # noqa: F401  # a fixture

from flarecps import locks
from flarecps.atomic import atomic_path
from flarecps.cli.main import main
from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import ConfigError
from flarecps.inference import segment_case
from flarecps.inference.outputs import remove_partial_file
from flarecps.locks import folder_lock, in_progress, remove_abandoned
from flarecps.preprocessing.dataset import preprocess_dataset
from flarecps.preprocessing.store import CaseStore
from flarecps.preprocessing.store_writing import find_damage, whole_case
from flarecps.training.checkpoint_files import remove_leftovers

HOLD = """
import sys, time
from pathlib import Path
from flarecps.locks import folder_lock
with folder_lock(Path(sys.argv[1]), "a test", ""):
    print("held", flush=True)
    time.sleep(60)
"""


def lock(path: Path) -> Any:
    return folder_lock(path, "another training", "wait for it")


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A function that starts a process which holds the lock; it is killed at the end."""
    started = []

    def start(**environment: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, str(tmp_path / "run.lock")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GRACE_S", 0.3)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_the_second_is_refused_by_the_firsts_host_and_process(tmp_path: Path, other: Any) -> None:
    process = other()
    words = (
        f"{tmp_path}: another training is at work here .process {process.pid} on {socket.gethostname()}, since 2.*wait"
    )
    with pytest.raises(ConfigError, match=words), lock(tmp_path / "run.lock"):
        pass


def test_a_crash_leaves_no_lock_behind(tmp_path: Path, other: Any) -> None:
    other().send_signal(signal.SIGKILL)
    with lock(tmp_path / "run.lock"):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    with lock(tmp_path / "run.lock"):
        pass


@pytest.mark.parametrize(("start", "enters"), [("1", True), ("0", False)])
def test_a_requeued_job_takes_over_from_its_earlier_start(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch, start: str, enters: bool
) -> None:
    """Whose node may have gone without releasing the lock; two trainings of one start are two."""
    other(SLURM_JOB_ID="77", SLURM_RESTART_COUNT="0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", start)
    if not enters:
        with pytest.raises(ConfigError, match="at work here"), lock(tmp_path / "run.lock"):
            pass
        return
    with lock(tmp_path / "run.lock"):
        monkeypatch.delenv("SLURM_JOB_ID")
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), lock(tmp_path / "run.lock"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "\\u001b[2J"}', b"\xff" * 100])
def test_whatever_the_file_says_the_lock_counts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with lock(path):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="at work here"), lock(path):
            pass


def no_locks(descriptor: int, how: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_nothing_is_refused_and_only_what_is_old_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock(tmp_path / "run.lock"), lock(tmp_path / "run.lock"):
        pass
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    for path in (fresh, old):
        path.touch()
    os.utime(old, (time.time() - locks.UNTOUCHED_S - 60,) * 2)
    for path in (fresh, old):
        remove_abandoned(path)
    assert fresh.exists()
    assert not old.exists()


def test_work_in_progress_is_left_alone_and_what_was_abandoned_goes(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    with in_progress(file), in_progress(folder, folder=True):
        (folder / "part").touch()
        remove_abandoned(file)
        remove_abandoned(folder)
        assert file.exists()
        assert (folder / "part").exists()
    remove_abandoned(file)
    remove_abandoned(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_none_of_ours_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone"):
        remove_abandoned(tmp_path / name)  # and does not hang
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize("remove", [remove_partial_file, lambda path: remove_leftovers(path.parent, False)])
def test_files_being_written_are_nobodys_leftovers(tmp_path: Path, remove: Callable[[Path], None]) -> None:
    path = tmp_path / "labels.nii.gz"
    with atomic_path(path) as partial:
        partial.write_text("half")
        remove(path)
        assert partial.exists()
    assert path.read_text() == "half"
    left = tmp_path / ".partial-01234567-labels.nii.gz"
    left.touch()
    remove(path)
    assert not left.exists()


def test_a_case_being_written_is_no_leftover(catalogue: Catalogue, tmp_path: Path) -> None:  # noqa: F811
    store = tmp_path / "store"
    preprocess_dataset(catalogue, a_plan(), store, workers=1, progress=False)
    with whole_case(store, "a") as partial:
        preprocess_dataset(catalogue, a_plan(), store, workers=1, progress=False)
        assert partial.is_dir()
        for path in (store / "cases" / "a").iterdir():
            if path.name != "checksums.sha256":
                shutil.copy(path, partial)
    assert find_damage(store / "cases" / "a") == ""


def _preprocess(catalogue: Catalogue, store: Path, start: Any) -> None:  # noqa: F811
    start.wait()
    outcomes = preprocess_dataset(catalogue, a_plan(), store, workers=1, progress=False)
    os._exit(any(one.failed for one in outcomes))


def test_three_may_preprocess_into_one_store_at_once(catalogue: Catalogue, tmp_path: Path) -> None:  # noqa: F811
    fork = multiprocessing.get_context("fork")
    for attempt in range(3):
        store, start = tmp_path / f"store_{attempt}", fork.Barrier(3)
        processes = [fork.Process(target=_preprocess, args=(catalogue, store, start)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        cases = sorted((store / "cases").iterdir())
        assert [path.name for path in cases] == list(CaseStore(store).names)
        assert [find_damage(path) for path in cases] == [""] * len(cases)


def test_two_may_segment_into_one_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins, and ends, while the first writes."""
    model, scans = write_model(tmp_path / "model.ckpt"), tmp_path / "scans"
    write_scan(scans / "one.nii.gz")
    words = ["segment", str(model), str(scans), str(tmp_path / "out")]
    write, nested = segment_case.write_labels, []

    def slowly(path: Path, *more: Any) -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            if not nested:
                nested.append(0)
                nested[0] = main(words)
                assert partial.exists()
            partial.unlink()
            write(partial, *more)

    monkeypatch.setattr(segment_case, "write_labels", slowly)
    assert main(words) == 0
    assert nested == [0]
    assert not list((tmp_path / "out").glob(".partial*"))
