"""What a run was: its plan, and the command, machine and versions of every session, beside its results."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import atomic
from flarecps.data.datamodule import ScanDataModule
from flarecps.planning.plan import plan_to_json
from flarecps.text_files import read_own_json
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import warn
from flarecps.training.side_files import side_file

PACKAGES = ("flarecps", "torch", "lightning", "torchio", "SimpleITK", "numpy", "blosc2")
JOB = {"SLURM_JOB_ID": "slurm_job", "SLURM_RESTART_COUNT": "slurm_restart", "SLURM_JOB_NODELIST": "slurm_nodes"}
FILE = "environment.json"


class RunRecord(Callback):
    """Writes ``RUN/plan.json`` and ``RUN/environment.json``; warns when the store's scans have changed meanwhile.

    A session is one start of the program: a run that was requeued or resumed has several, and ``sessions`` lists them
    in order. ``seen`` is when a session last completed an epoch (or ended), so one that was killed has a length, too.
    ``finished`` is null but in a session that trained to the end. What stands outside ``sessions`` is the last one's.
    """

    def __init__(self, run: Path, command: list[str]) -> None:
        self.run = run
        self.session: dict[str, Any] = {"command": shlex.join(command), **environment()}
        self.earlier: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.run.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self.run / "plan.json", plan_to_json(segmentation_module(pl_module).plan))
            data = getattr(trainer, "datamodule", None)
            if isinstance(data, ScanDataModule) and (changes := data.source_changes()):
                warn(changes)
            self.earlier = earlier_sessions(self.run / FILE) if trainer.ckpt_path is not None else []
            self.session["world_size"] = trainer.world_size
            self.session["precision"] = str(trainer.precision)
            self.session["started"] = now()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A finished run that is resumed has nothing to do, does not come here, and keeps its record."""
        self._write(trainer, finished=None, first_epoch=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, completed_epochs=trainer.current_epoch + 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if "seen" in self.session:
            self._write(trainer, ended_by=type(exception).__name__)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_complete(trainer):
            self._write(trainer, finished=now(), completed_epochs=trainer.current_epoch)
        else:
            self._write(trainer, ended_by="a stop before the last epoch")

    def _write(self, trainer: Trainer, **more: Any) -> None:
        if trainer.is_global_zero:
            self.session |= {"seen": now(), **more}
            sessions = [*self.earlier, self.session]
            with side_file(self.run / FILE):
                atomic.write_json(self.run / FILE, {**self.session, "sessions": sessions})


def is_complete(trainer: Trainer) -> bool:
    """Whether a training has done all its epochs (or steps), as against one that was stopped to go on later."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return (epochs in (None, -1) or trainer.current_epoch >= (epochs or 0)) or 0 <= steps <= trainer.global_step


def earlier_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions in an ``environment.json``; a file of before there were several is one; [] without a file."""
    content = read_own_json(path)
    if not content:
        return []
    return list(content["sessions"]) if isinstance(content.get("sessions"), list) else [content]


def environment() -> dict[str, Any]:
    """Versions, machine, commit and, in a SLURM job, its number: what a session runs on."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "git": _git_state(Path(__file__)),
        **{name: os.environ[variable] for variable, name in JOB.items() if variable in os.environ},
    }


def _git_state(source: Path) -> dict[str, str] | None:
    """Commit of the repository that ``source`` is tracked in, and whether files differ from it; None outside one."""
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        commit = _git(source.parent, "rev-parse", "HEAD")
        changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "state": "changed" if changed else "clean"}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def now() -> str:
    """The present moment in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
