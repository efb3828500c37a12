"""Running stages: in order, each in a process of its own, what stands left out; one run at a time in a folder.

A lock that the stage's process inherits keeps a second run, or a stage that outlived its killed run, from working on
the same folder.
"""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from flarecps.errors import ConfigError, FlarecpsError
from flarecps.experiments.slurm_jobs import SlurmJobs, queue_state
from flarecps.experiments.stages import Stage, StageRecords, select_stages

LOCK = "lock"
FLARECPS = (sys.executable, "-m", "flarecps")  # the words before a command's
STANDS = "stands"
NEEDS = "needs "
GONE = "its job is no longer in the queue and the training is not finished"


class Announce(Protocol):
    """Tells people of a stage that ``begins`` (``text`` is its command), or what else there is to say of it."""

    def __call__(self, stage: Stage, text: str, begins: bool) -> None: ...


def run_stages(
    stages: Sequence[Stage],
    records: StageRecords,
    announce: Announce,
    slurm: SlurmJobs | None = None,
) -> dict[str, str]:
    """Run these of the records' stages in order, leaving out what stands; stage → why it was not done, for the others.

    Stages that need GPUs are handed to ``slurm`` where it is given; a job that waits or runs is left alone. Raises
    ConfigError while another run works in the folder, FlarecpsError when a command fails.
    """
    left: dict[str, str] = {}
    with run_lock(records.folder) as descriptor:
        for stage in stages:
            state = records.state(stage)
            if state == "done":
                announce(stage, STANDS, False)
                continue
            missing = records.missing_before(stage)
            if state == "lacking" or missing:
                left[stage.name] = stage.lacking or f"{NEEDS}{', '.join(missing)} first"
                continue
            if records.read(stage).get("state") == "submitted":  # with whatever words: no folder is shared by two jobs
                if still := queue_state(records.read(stage).get("job", "")):
                    left[stage.name] = still
                    continue
                announce(stage, GONE, False)
            if slurm is not None and stage.gpus:
                announce(stage, slurm.command(stage), True)
                left[stage.name] = slurm.submit(stage, records)
                continue
            announce(stage, stage.command, True)
            run_stage(records, stage, lambda words: run_flarecps(words, descriptor))
    return left


def run_experiment(stages: Sequence[Stage], folder: Path, wanted: Sequence[str] | None = None) -> StageRecords:
    """Run the wanted stages with records in ``folder``, saying so in plain lines; the records.

    Raises ConfigError where a stage could not be done, and as ``run_stages``.
    """

    def announce(stage: Stage, text: str, begins: bool) -> None:
        print(f"{stage.name}: {text}", flush=True)

    records = StageRecords(stages, folder)
    if left := run_stages(select_stages(stages, wanted), records, announce):
        raise ConfigError("; ".join(f"stage '{name}' {why}" for name, why in left.items()))
    return records


def run_stage(records: StageRecords, stage: Stage, run: Callable[[Sequence[str]], int]) -> None:
    """Run one stage and keep its record, with its time. Raises FlarecpsError when its command fails."""
    records.clear_stale(stage)
    before = records.read(stage)
    if before.get("digest") != records.digest(stage):
        before = {}
    kept = {"starts": [*before.get("starts", []), _now()], "cpu_s": before.get("cpu_s", 0.0)}
    began, cpu_began = time.monotonic(), _children_cpu_s()
    records.write(stage, "started", **kept)
    try:
        if stage.action is not None:
            stage.action()
        else:
            resumes = stage.resume is not None and stage.resume[0].exists()
            code = run([*stage.words, *(stage.resume[1] if resumes and stage.resume is not None else ())])
            if code:
                raise FlarecpsError(
                    f"stage '{stage.name}' ended with exit code {code}, its message stands above; the same command "
                    f"again goes on from here, --without {stage.name} leaves it out"
                )
    except BaseException:
        kept["cpu_s"] += _children_cpu_s() - cpu_began
        records.write(stage, "started", **kept)
        raise
    kept["cpu_s"] += _children_cpu_s() - cpu_began
    records.write(stage, "done", **kept, wall_s=time.monotonic() - began, finished=_now())


def run_flarecps(words: Sequence[str], descriptor: int) -> int:
    """The exit code of ``flarecps WORDS``, run in a process of its own that holds the lock as long as it lives."""
    done = subprocess.run([*FLARECPS, *words], check=False, pass_fds=(descriptor,))
    return done.returncode


def call_flarecps(*words: object) -> None:
    """Run ``flarecps WORDS`` in a process of its own. Raises FlarecpsError when it fails."""
    if code := subprocess.run([*FLARECPS, *map(str, words)], check=False).returncode:
        raise FlarecpsError(f"flarecps {words[0]} ended with exit code {code}, its message stands above")


@contextmanager
def run_lock(folder: Path) -> Iterator[int]:
    """A lock on ``folder`` while the block runs; its descriptor is to be handed to the processes started there."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: a run is at work here, or a stage that outlived one (fuser {folder / LOCK} names it); "
                "wait for it, or end it"
            ) from None
        except OSError:  # a file system without locks: two runs at once are then the user's care
            pass
        yield descriptor
    finally:
        os.close(descriptor)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def processor_name() -> str:
    """The processor's name, as Linux tells it; the architecture elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
