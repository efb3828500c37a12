"""Stages of an experiment and their records: what is asked for, what it depends on, and how far it came.

The stages that every training goes through are made here, too: plan and case store; fit.

FOLDER/NAME.json is a stage's record. It belongs to one command and to the records of the stages before it; when those
change, the stage is done anew.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flarecps.atomic import write_json
from flarecps.errors import ConfigError
from flarecps.json_fields import is_number
from flarecps.text_files import read_own_json, read_yaml

State: TypeAlias = Literal["done", "to do", "lacking"]


@dataclass(frozen=True)
class Stage:
    """One command of ``flarecps`` (``words``), or an ``action`` in this process, and what stands when it is done."""

    name: str
    words: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    action: Callable[[], None] | None = None
    description: str = ""  # of ``action``, for people and for the record
    depends_on: str = ""  # contents of files that the words only name
    resume: tuple[Path, tuple[str, ...]] | None = None  # if this file is there, more words: an interrupted training
    protected: bool = False  # its outputs are never removed to be made anew
    is_finished: Callable[[], bool] | None = None  # asked of a stage that has no record, as of a job's
    lacking: str = ""  # why it can't be done with this data; it is passed over then
    always: bool = False  # done every time, with whatever there is
    cure: str = ""  # what people do when its command fails
    gpus: int = 0  # of the SLURM job it may be run in; 0: it needs none

    @property
    def command(self) -> str:
        """What is done, as a line to read."""
        return f"flarecps {shlex.join(self.words)}" if self.words else f"({self.description})"


def command_stage(name: str, words: Iterable[object], output: Path, *after: str, **more: Any) -> Stage:
    """The stage that runs ``flarecps WORDS`` (any objects, written out) and leaves ``output``; ``more``: of Stage."""
    return Stage(name, tuple(map(str, words)), (output,), after, **more)


class StageRecords:
    """The records of stages in a folder. Reading makes nothing; ``folder`` is made by the first record."""

    def __init__(self, stages: Sequence[Stage], folder: Path) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.folder = folder

    def digest(self, stage: Stage) -> str:
        """What a stage's outputs depend on: its own words, and those of all stages before it.

        Not where it all lies, nor how many workers make it.
        """
        words = [word.replace(str(self.folder.parent), "OUT") for word in stage.words if word != sys.executable]
        if "--workers" in words:
            del words[(at := words.index("--workers")) : at + 2]
        before = [self.digest(self.stages[name]) for name in stage.after]
        content = json.dumps([words, stage.description, stage.depends_on, before])
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self, stage: Stage) -> dict[str, Any]:
        """The stage's record; {} without one, or when it is damaged."""
        content = read_own_json(self.folder / f"{stage.name}.json")
        starts = content.get("starts", [])
        whole = isinstance(starts, list) and all(isinstance(one, str) for one in (*starts, content.get("digest")))
        return content if whole and is_number(content.get("cpu_s", 0.0)) else {}

    def state(self, stage: Stage) -> State:
        """Whether a stage is done: its record says so for this very command, and its outputs are there."""
        if stage.lacking:
            return "lacking"
        record = self.read(stage)
        if not record and stage.is_finished is not None:
            return "done" if stage.is_finished() else "to do"
        if stage.always or record.get("digest") != self.digest(stage):
            return "to do"
        there = all(path.exists() for path in stage.outputs)
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
        """Remove outputs that another command made; ConfigError when they are not to be removed."""
        record = self.read(stage)
        if not record or record.get("digest") == self.digest(stage):
            return
        there = [path for path in stage.outputs if path.exists()]
        if stage.resume is not None and stage.resume[0].exists():
            there.append(stage.resume[0])
        if there and stage.protected:
            other = "" if stage.action else f"by another command ({record.get('command', 'unknown')}), or "
            raise ConfigError(
                f"{there[0]}: made {other}from other data; it is not overwritten: choose another --out, or remove it "
                f"and {self.folder / stage.name}.json yourself"
            )
        for path in there:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def select_stages(
    stages: Sequence[Stage], wanted: Sequence[str] | None = None, without: Sequence[str] | None = None
) -> list[Stage]:
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


def last_checkpoint(run: Path) -> Path:
    """Where a training in ``run`` keeps its newest checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def store_stages(
    dataset: Path,
    plan: Path,
    store: Path,
    plan_words: Sequence[object] = (),
    more: Sequence[object] = (),
    preprocess_more: Sequence[object] | None = None,
    after: Sequence[str] = (),
    suffix: str = "",
) -> list[Stage]:
    """Stages ``planSUFFIX`` and ``preprocessSUFFIX``.

    ``plan_words`` come before ``--out``, ``more`` at the end of both commands, or ``preprocess_more`` at the second's.
    """
    planning = ("plan", dataset, *plan_words, "--out", plan, *more)
    writing = ("preprocess", dataset, plan, "--out", store, *(more if preprocess_more is None else preprocess_more))
    return [
        command_stage(f"plan{suffix}", planning, plan, *after),
        command_stage(f"preprocess{suffix}", writing, store, f"plan{suffix}"),
    ]


def fit_stage(name: str, words: Sequence[object], config: Path | None, run: Path, after: str, gpus: int = 1) -> Stage:
    """A training by ``words`` (fit or a command around it) in ``run``; its checkpoints are never removed.

    An interrupted one goes on from its newest checkpoint. The stage depends on the content of its ``config``, if any.
    """
    last = last_checkpoint(run)
    return command_stage(
        name,
        words,
        last,
        after,
        depends_on=config.read_text(encoding="utf-8") if config else "",
        resume=(last.parent, ("--ckpt_path", "auto")),
        protected=True,
        is_finished=partial(training_is_finished, run),
        gpus=gpus,
    )


def training_is_finished(run: Path) -> bool:
    """Whether a training in ``run`` came to its end, by its own record and not only to a stop before a requeue."""
    record = read_own_json(run / "environment.json")
    try:
        wanted = read_yaml(run / "config.yaml", ConfigError, "expected the settings of a run")["trainer"]["max_epochs"]
        return bool(record["finished"]) and record["completed_epochs"] >= wanted
    except (ConfigError, KeyError, TypeError):
        return False
