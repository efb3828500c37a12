"""The SHA-256 of every file of a stored case, in the format of ``sha256sum``: written with it, checked when it is read.

A process checks each file once, before it takes the first voxel from it; a file that has changed since, by its size and
times, is checked again. Reading a patch decompresses a few blocks and would not notice a flipped bit elsewhere, or in
blocks that still decompress.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from flarecps.errors import StoreError, may_be_whole

CHECKSUMS = "checksums.sha256"
DAMAGED = (
    "missing or damaged; 'flarecps preprocess … --verify' finds all such cases, a run without it writes them again"
)

_checked: dict[Path, tuple[int, ...]] = {}  # what this process has found whole: size and times


def check_file(path: Path) -> None:
    """Nothing, or ``StoreError`` when a file of a case is not what its case's list says; each file once per process.

    Without a list (stores of version 1) nothing can be said. Raises OSError where it can't be read just now.
    """
    try:
        stat = os.stat(path)
        mark = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        if _checked.get(path) == mark:
            return
        if not (path.parent / CHECKSUMS).is_file():
            return
        whole = checksums_of(path.parent).get(path.name) == sha256(path)
    except (OSError, ValueError) as error:
        if may_be_whole(error):
            raise
        raise StoreError(f"{path}: {DAMAGED}") from error
    if not whole:
        raise StoreError(f"{path}: {DAMAGED}")
    _checked[path] = mark


def checksums_of(folder: Path) -> dict[str, str]:
    """Digest by file name; ``ValueError`` when the list does not name the case's record."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "case.json" not in listed:
        raise ValueError(f"{folder / CHECKSUMS}: not a list of a case's files")
    return listed


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal digits. ``OSError`` for a pipe or device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
