"""What a run was: its plan, command, machine and versions, beside its results."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import atomic
from flarecps.planning.plan import plan_to_json

PACKAGES = ("flarecps", "torch", "lightning", "torchio", "SimpleITK", "numpy", "blosc2")


class RunRecord(Callback):
    """Writes ``RUN/plan.json`` and ``RUN/environment.json`` when training starts; adds the time when it ends."""

    def __init__(self, run: Path, command: list[str]) -> None:
        self.run = run
        self.content: dict[str, Any] = {
            "command": shlex.join(command),
            "versions": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": machine(),
            "git": git_state(Path(__file__)),
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if trainer.is_global_zero:
            self.run.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self.run / "plan.json", plan_to_json(module.plan))
            self.content["world_size"] = trainer.world_size
            self.content["precision"] = str(trainer.precision)
            self._write(started=_now(), finished=None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(finished=_now(), completed_epochs=trainer.current_epoch)

    def _write(self, **more: Any) -> None:
        self.content |= more
        atomic.write_json(self.run / "environment.json", self.content)


def machine() -> dict[str, Any]:
    """Processor, cores, threads and graphics cards of this computer."""
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": cards,
    }


def git_state(source: Path) -> dict[str, str] | None:
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


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
