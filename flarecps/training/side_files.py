"""What a training writes beside its checkpoints is not worth the training: pictures, tables, its sessions' record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flarecps.training.ranks import warn

_said: set[Path] = set()


@contextmanager
def side_file(path: Path) -> Iterator[None]:
    """The block writes ``path``; where it can't, that is said once, and the training goes on."""
    try:
        yield
    except OSError as error:
        if path not in _said:
            _said.add(path)
            warn(f"{path}: can't be written ({error.strerror or error}); the training goes on without it")
