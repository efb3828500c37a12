"""Paths of scans: one stack of several in a DICOM folder; links that lead nowhere, pipes, folders that can't be opened.

What can't be reached is said of the scan it belongs to, never left out.
"""

from __future__ import annotations

import os
from pathlib import Path

from flarecps.errors import ScanError, counted, cure_of

FETCH = "fetch the files (git annex get, dvc pull), or mend the links"

STACK = "stack:"  # FOLDER/stack:NAME is one of the stacks of slices in a DICOM folder, or in a multi-frame file


def place_of(path: Path) -> Path:
    """The file or folder that holds a scan: the path itself, or of FOLDER/stack:NAME the folder.

    >>> place_of(Path("patient/stack:echo2")).name
    'patient'
    """
    return path.parent if stack_of(path) else path


def stack_of(path: Path) -> str:
    """Which of several stacks a path names; "" for any other path."""
    return path.name[len(STACK) :] if path.name.startswith(STACK) else ""


def leads_nowhere(path: Path) -> bool:
    """Whether ``path`` is a link to what is not there, to itself, or to what can't be reached."""
    if not path.is_symlink():
        return False
    try:
        path.stat()
    except OSError:
        return True
    return False


def check_reachable(path: Path) -> None:
    """Nothing, or ScanError for a link to nowhere, a pipe, and a folder that holds such links or can't be opened."""
    path = place_of(path)
    if leads_nowhere(path):
        raise ScanError(f"{path}: a link to {os.readlink(path)}, which can't be reached: {FETCH}")
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise ScanError(f"{path}: not a regular file (a pipe or a device); expected a scan or labels: check the path")
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise ScanError(f"{path}: can't be opened ({error.strerror}): {cure_of(error, 'check the path')}") from error
    lost = [one for one in inside if leads_nowhere(one) and not one.name.startswith(".")]
    if lost:
        raise ScanError(f"{path}: {counted(len(lost), 'link')} in it can't be followed, first {lost[0].name}: {FETCH}")
