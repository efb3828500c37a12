"""Stages of a long piece of work: each done once, in order, and left out while its result stands.

FOLDER/NAME.json is a stage's record: what was asked for, and how far it came. A record belongs to one command and to
the records of the stages before it; when those change, the stage is done anew. A lock that the stage's process inherits
keeps a second run, or a stage that outlived its killed run, from working on the same folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flarecps.atomic import write_json
from flarecps.errors import ConfigError, FlarecpsError

State: TypeAlias = Literal["done", "to do", "submitted", "lacking"]
LOCK = "lock"


@dataclass(frozen=True)
class Stage:
    """One command of ``flarecps`` (``words``), or ``work`` done in this process, and what stands when it is done."""

    name: str
    words: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    work: Callable[[], None] | None = None
    says: str = ""  # what ``work`` does, for people and for the record
    made_from: str = ""  # contents of files that the words only name
    more_when: tuple[Path, tuple[str, ...]] | None = None  # if this file is there, more words: an interrupted training
    precious: bool = False  # its results are never removed to be made anew
    finished: Callable[[], bool] | None = None  # tells of a submitted one whether it is done
    lacking: str = ""  # why it can't be done with this data; it is passed over then
    always: bool = False  # done every time, with whatever there is

    @property
    def command(self) -> str:
        """What is done, as a line to read."""
        return f"flarecps {shlex.join(self.words)}" if self.words else f"({self.says})"


class Ledger:
    """The records of stages in a folder. Reading makes nothing; ``folder`` is made by the first record."""

    def __init__(self, stages: Sequence[Stage], folder: Path) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.folder = folder

    def digest(self, stage: Stage) -> str:
        """What a stage's result depends on: its own words, and those of all stages before it; not where it all lies."""
        words = [word.replace(str(self.folder.parent), "OUT") for word in stage.words]
        before = [self.digest(self.stages[name]) for name in stage.after]
        return hashlib.sha256(json.dumps([words, stage.says, stage.made_from, before]).encode()).hexdigest()

    def record(self, stage: Stage) -> dict[str, Any]:
        """The stage's record; {} without one, or when it is damaged."""
        try:
            content = json.loads((self.folder / f"{stage.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def state(self, stage: Stage) -> State:
        """Whether a stage is done: its record says so for this very command, and its results are there."""
        if stage.lacking:
            return "lacking"
        record = self.record(stage)
        if stage.always or record.get("digest") != self.digest(stage):
            return "to do"
        if record.get("state") == "submitted":
            return "done" if stage.finished is not None and stage.finished() else "submitted"
        there = all(path.exists() for path in stage.results)
        return "done" if record.get("state") == "done" and there else "to do"

    def write(self, stage: Stage, state: str, **more: Any) -> None:
        """Keep the stage's record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"stage": stage.name, "state": state, "command": stage.command, "digest": self.digest(stage), **more}
        write_json(self.folder / f"{stage.name}.json", content)

    def missing_before(self, stage: Stage) -> list[str]:
        """The names of the stages that must be done before this one and are not."""
        return [name for name in stage.after if self.state(self.stages[name]) != "done"]

    def clear_stale(self, stage: Stage) -> None:
        """Remove results that another command made; ConfigError when they are not to be removed."""
        record = self.record(stage)
        if not record or record.get("digest") == self.digest(stage):
            return
        there = [path for path in stage.results if path.exists()]
        if stage.more_when is not None and stage.more_when[0].exists():
            there.append(stage.more_when[0])
        if there and stage.precious:
            raise ConfigError(
                f"{there[0]}: made by another command ({record.get('command', 'unknown')}), or from other data; it is "
                f"not overwritten: choose another --out, or remove it and {self.folder / stage.name}.json yourself"
            )
        for path in there:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def chosen(stages: Sequence[Stage], wanted: Sequence[str] | None, without: Sequence[str] | None) -> list[Stage]:
    """The stages whose names fit one of ``wanted`` (all without it) and none of ``without``; both may hold * and ?.

    Raises ConfigError for a word that fits no stage.
    """
    for word in (*(wanted or ()), *(without or ())):
        if not any(fnmatch(stage.name, word) for stage in stages):
            raise ConfigError(f"no stage {word!r}; stages: {', '.join(stage.name for stage in stages)}")
    return [
        stage
        for stage in stages
        if (wanted is None or any(fnmatch(stage.name, word) for word in wanted))
        and not any(fnmatch(stage.name, word) for word in without or ())
    ]


@contextmanager
def only_run(folder: Path) -> Iterator[int]:
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


def run_program(words: Sequence[str], descriptor: int) -> int:
    """The exit code of ``flarecps WORDS``, run in a process of its own that holds the lock as long as it lives."""
    done = subprocess.run([sys.executable, "-m", "flarecps", *words], check=False, pass_fds=(descriptor,))
    return done.returncode


def do_stage(ledger: Ledger, stage: Stage, run: Callable[[Sequence[str]], int]) -> None:
    """Do one stage and keep its record. Raises FlarecpsError when its command fails."""
    ledger.clear_stale(stage)
    before = ledger.record(stage)
    same = before.get("digest") == ledger.digest(stage)
    starts = [*(before.get("starts", []) if same else []), _now()]
    ledger.write(stage, "started", starts=starts)
    if stage.work is not None:
        stage.work()
    else:
        there = stage.more_when is not None and stage.more_when[0].exists()
        code = run([*stage.words, *(stage.more_when[1] if there and stage.more_when is not None else ())])
        if code:
            raise FlarecpsError(
                f"stage '{stage.name}' ended with exit code {code}, its message stands above; the same command again "
                f"goes on from here, --without {stage.name} leaves it out"
            )
    ledger.write(stage, "done", starts=starts, finished=_now())


def do_all(stages: Sequence[Stage], folder: Path, wanted: Sequence[str] | None = None) -> None:
    """Do the chosen stages in order, each command in a process of its own, leaving out what stands; for experiments.

    Raises ConfigError where a stage needs one that was not done, and as ``do_stage``.
    """
    ledger = Ledger(stages, folder)
    with only_run(folder) as descriptor:
        for stage in chosen(stages, wanted, None):
            if ledger.state(stage) == "done":
                print(f"{stage.name}: stands", flush=True)
                continue
            if missing := ledger.missing_before(stage):
                raise ConfigError(f"stage '{stage.name}' needs {', '.join(missing)} first")
            print(f"{stage.name}: {stage.command}", flush=True)
            do_stage(ledger, stage, lambda words: run_program(words, descriptor))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
