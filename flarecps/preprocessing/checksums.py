"""Checksums of stored cases: one list in every case folder, and one of the whole store made from them.

Both are in the format of ``sha256sum``, so that ``sha256sum -c manifest.sha256`` in a store checks it without this
program. Every case is written by one process, with its own list; the store's list is only ever derived from those.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from flarecps import atomic

CHECKSUMS = "checksums.sha256"
MANIFEST = "manifest.sha256"
BLOCK_BYTES = 1 << 20


def write_checksums(folder: Path) -> None:
    """List the SHA-256 of every file in ``folder`` (no folders in it) as its ``checksums.sha256``."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def find_damage(folder: Path) -> str:
    """What is wrong with a case folder by its own list, in words; "" when every file is as it was written."""
    try:
        listed = _listed(folder)
    except (OSError, ValueError):
        return f"{CHECKSUMS} is missing or unreadable"
    for name, expected in listed.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written"
    return ""


def write_manifest(store: Path) -> None:
    """Write STORE/manifest.sha256 from the lists of all finished cases.

    Jobs may end at once, each having missed what the others finished last. So a job looks again after it has written:
    whoever writes last has then seen everything.
    """
    written = None
    while (content := _manifest(store)) != written:
        atomic.write_text(store / MANIFEST, content)
        written = content


def _manifest(store: Path) -> str:
    lines = []
    for folder in sorted((store / "cases").iterdir()):
        if not folder.name.startswith(atomic.PARTIAL_PREFIX):
            with suppress(OSError, ValueError):  # being replaced at this moment, or damaged: not vouched for
                lines += [f"{digest}  cases/{folder.name}/{name}\n" for name, digest in _listed(folder).items()]
    return "".join(lines)


def _listed(folder: Path) -> dict[str, str]:
    """Digest by file name; ``ValueError`` when the list does not name the case's record."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if "case.json" not in listed:
        raise ValueError(f"{folder / CHECKSUMS}: not a list of a case's files")
    return listed


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
