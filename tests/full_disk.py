"""A disk with no room left, by the limit that the system sets on a file's length."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def full_disk(room: int = 60) -> Iterator[None]:
    """No file may grow beyond ``room`` bytes: a real error of the system, where a full disk gives its own.

    Python keeps a module's bytecode that is cut short, and stumbles over it ever after: none is written meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
