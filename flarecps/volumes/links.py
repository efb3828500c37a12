"""Links that lead nowhere and folders that can't be opened: said of the scan they belong to, never passed over."""

from __future__ import annotations

import os
from pathlib import Path

from flarecps.errors import ScanError, counted

FETCH = "fetch the files (git annex get, dvc pull), or mend the links"


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
    """Nothing, or ScanError for a link that leads nowhere and for a folder that holds such or can't be opened."""
    if leads_nowhere(path):
        raise ScanError(f"{path}: a link to {os.readlink(path)}, which can't be reached: {FETCH}")
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise ScanError(f"{path}: can't be opened ({error.strerror}): check its permissions") from error
    lost = [one for one in inside if leads_nowhere(one) and not one.name.startswith(".")]
    if lost:
        raise ScanError(f"{path}: {counted(len(lost), 'link')} in it can't be followed, first {lost[0].name}: {FETCH}")
