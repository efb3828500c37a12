"""Running stages: in order, each in a process of its own, what stands left out; one run in a folder.

A lock that the stage's process inherits keeps a second run, or a stage that outlived its killed run, from working on
the same folder.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path

from flarecps.errors import ConfigError, FlarecpsError, visible
from flarecps.experiments.stages import Stage, StageRecords, select_stages
from flarecps.installed_files import PLACES
from flarecps.locks import folder_lock

FIT_SCRIPTS = [place / "slurm" / "fit.sbatch" for place in PLACES]
FIT_SCRIPT = next((path for path in FIT_SCRIPTS if path.is_file()), FIT_SCRIPTS[0])
LOCK = "lock"
FLARECPS = (sys.executable, "-m", "flarecps")  # the words before a command's
STANDS = "stands"
NEEDS = "needs "
AGAIN = "the same command again goes on from here"


def run_stages(
    stages: Sequence[Stage],
    records: StageRecords,
    announce: Callable[[Stage, str, bool], None],
    lock: int | None = None,
) -> dict[str, str]:
    """Run these of the records' stages in order, leaving out what stands; stage → why it was not done, for the others.

    ``announce`` tells people of a stage: its command and True as it begins, or what else there is to say and False.
    ``lock``: the descriptor of a `run_lock` that the caller holds. Raises ConfigError while another run works in the
    folder, FlarecpsError when a command fails; KeyboardInterrupt says how to go on.
    """
    try:
        with run_lock(records.folder) if lock is None else nullcontext(lock) as descriptor:
            return _run_stages(stages, records, announce, descriptor)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(AGAIN) from None


def _run_stages(
    stages: Sequence[Stage],
    records: StageRecords,
    announce: Callable[[Stage, str, bool], None],
    descriptor: int,
) -> dict[str, str]:
    left: dict[str, str] = {}
    for stage in stages:
        state = records.state(stage)
        if state == "done":
            announce(stage, STANDS, False)
            continue
        missing = records.missing_before(stage)
        if state == "lacking" or missing:
            left[stage.name] = stage.lacking or f"{NEEDS}{', '.join(missing)} first"
            continue
        announce(stage, stage.command, True)
        run_stage(records, stage, lambda words: run_flarecps(words, descriptor))
    return left


def run_experiment(stages: Sequence[Stage], folder: Path, wanted: Sequence[str] | None = None) -> StageRecords:
    """Run the wanted stages with records in ``folder``, saying so in plain lines; the records.

    Raises ConfigError where a stage could not be done, and as ``run_stages``.
    """
    records = StageRecords(stages, folder)
    todo = select_stages(stages, wanted)
    if left := run_stages(todo, records, lambda stage, text, _: print(visible(f"{stage.name}: {text}"), flush=True)):
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
    state, ended = "started", {}
    records.write(stage, state, **kept)
    try:
        if stage.action is not None:
            stage.action()
        else:
            last, more = stage.resume or (None, ())
            if code := run([*stage.words, *(more if last is not None and last.exists() else ())]):
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                cure = stage.cure or f"its message stands above; what is done is kept, and {AGAIN}"
                raise FlarecpsError(f"stage '{stage.name}' {how}; {cure}")
        if missing := [path for path in stage.outputs if not path.exists()]:
            raise FlarecpsError(f"stage '{stage.name}' came to its end, but {missing[0]} is not there; {AGAIN}")
        state, ended = "done", {"wall_s": time.monotonic() - began, "finished": _now()}
    finally:
        kept["cpu_s"] += _children_cpu_s() - cpu_began
        records.write(stage, state, **kept, **ended)


def run_flarecps(words: Sequence[str], descriptor: int) -> int:
    """The exit code of ``flarecps WORDS``, run in a process of its own that holds the lock as long as it lives.

    When this process is interrupted it is, too, and is waited for: a training keeps what it has. A second time ends it.
    """
    held = (descriptor,) if os.name == "posix" else ()  # Windows hands over no descriptors
    with subprocess.Popen([*FLARECPS, *words], pass_fds=held) as process:
        try:
            try:
                return process.wait()
            except KeyboardInterrupt:
                if not _at_the_terminal():  # Ctrl-C reaches all processes there
                    process.send_signal(signal.SIGINT)
                process.wait()
                raise
        except KeyboardInterrupt:  # a second one may come at any moment of the above
            process.kill()  # nothing where it has ended
            raise


def _at_the_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, whose Ctrl-C goes to all of its processes."""
    try:
        with open("/dev/tty", encoding="utf-8") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except (OSError, AttributeError):  # no terminal; Windows, where Ctrl-C goes to all of a console
        return os.name != "posix"


def call_flarecps(*words: object) -> None:
    """Run ``flarecps WORDS`` in a process of its own. Raises FlarecpsError when it fails."""
    if code := subprocess.run([*FLARECPS, *map(str, words)], check=False).returncode:
        raise FlarecpsError(f"flarecps {words[0]} ended with exit code {code}, its message stands above")


def run_lock(folder: Path) -> AbstractContextManager[int]:
    """A lock on ``folder`` while the block runs; its descriptor is to be handed to the processes started there."""
    path = folder / LOCK
    cure = f"wait for it, or for a stage that outlived it (fuser {path} names it), or end it"
    return folder_lock(path, "a run", cure)


def _children_cpu_s() -> float:
    try:
        import resource
    except ImportError:  # Windows does not count it
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def processor_name() -> str:
    """The processor's name, as Linux tells it; the architecture elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def sbatch_words(options: str) -> list[str]:
    """The words of ``--sbatch``. ConfigError where a quotation has no end."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"--sbatch {options}: {error}; expected options of sbatch, quoted as in a shell") from None


def submitted_job(words: Sequence[str]) -> str:
    """Run ``sbatch --parsable ...``: the job's number. Raises ConfigError when sbatch is missing or refuses."""
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError("sbatch: not found; --submit works where SLURM's commands are at hand") from None
    if done.returncode:
        raise ConfigError(f"sbatch ended with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
