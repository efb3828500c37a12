"""Checkpoints that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from flarecps import atomic


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint, to the disk, then renames.

    Lightning's own goes through the system's temporary folder: on another disk the last step is a copy, which can be
    cut short, and the folder must hold a second copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(target) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def remove_partial(folder: Path) -> None:
    """Delete what killed processes left half written in ``folder``, which need not exist."""
    for path in folder.glob(f"{atomic.PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)
