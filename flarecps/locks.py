"""Which process is at work where: locks on folders; another's work in progress told from what a crash left behind.

The locks are the operating system's (``flock``), which go with the last process that holds them, however it ends. Where
a file system has none, nothing is locked (docs/reliability.md, "Two at once").
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flarecps.errors import ConfigError
from flarecps.text_files import read_own_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GRACE_S = 2.0  # a process that ends is given that long
UNTOUCHED_S = 24 * 3600.0  # without locks, what has not changed for so long is nobody's work in progress
TRIES = 100  # to make a file before somebody takes it for abandoned
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a link is none of ours, a pipe must not hang


@contextmanager
def folder_lock(path: Path, what: str, cure: str) -> Iterator[int]:
    """Hold the lock file ``path`` while the block runs; its descriptor, for processes that are to hold it as well.

    The file names its holder and stays; the lock goes. A SLURM job that was requeued takes it over from its own earlier
    start, whose node may have gone without a word. Raises ConfigError, naming the holder's host and process, while
    another holds it: ``what`` is at work there, ``cure`` is the advice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    this = _this_process()
    until = time.monotonic() + GRACE_S
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while _try_lock(descriptor) is False:
            holder = read_own_json(path)
            if "job" in holder and holder["job"] == this.get("job") and holder.get("start") != this["start"]:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            elif time.monotonic() < until:
                time.sleep(0.05)
            else:
                who = "process {process} on {host}, since {started}".format_map({**dict.fromkeys(this, "?"), **holder})
                raise ConfigError(f"{path.parent}: {what} is at work here ({who}); {cure}")
        with suppress(OSError):  # on a full disk it is a lock all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(this).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, Any]:
    job = {"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "start": os.environ.get("SLURM_RESTART_COUNT", "0"),
        **job,
    }


def _try_lock(descriptor: int) -> bool | None:
    """Whether this process got the lock; None where the file system, or the system, has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def in_progress(path: Path, folder: bool = False) -> Iterator[None]:
    """Make ``path``, an empty file or folder, and hold it while the block fills it: `remove_abandoned` leaves it alone.

    The block may rename it. Raises OSError as making it does.
    """
    descriptor = None
    try:
        for _ in range(TRIES):
            if folder:
                path.mkdir(parents=True, exist_ok=True)
            if fcntl is None and folder:  # Windows opens no folders
                break
            with suppress(*(FileNotFoundError,) * folder):  # gone again before it was held
                descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
                if _try_lock(descriptor) is not False and _is_at(descriptor, path):
                    break
                os.close(descriptor)
            descriptor = None
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def remove_abandoned(path: Path) -> None:
    """Remove a file or folder that was made `in_progress`, unless a process, here or elsewhere, still fills it.

    Without locks, what was changed within the last day is left alone.
    """
    try:
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | NO_FOLLOW)
    except OSError:  # gone, or none of this program's
        return
    try:
        locked = _try_lock(descriptor)
        if locked or (locked is None and time.time() - os.fstat(descriptor).st_mtime > UNTOUCHED_S):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
