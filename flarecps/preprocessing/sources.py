"""Which files a stored case was made from, and whether they still are what they were.

``case.json`` holds name, size and SHA-256 of each: the same wherever the data set lies. ``STORE/sources/NAME.json``
holds where they lay and their times, so that files nobody has touched need not be read again. Size, time of change
and, where the system keeps it, the time that nobody can set (ctime) must all agree; else the content decides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flarecps import atomic
from flarecps.case_names import file_name
from flarecps.datasets.catalogue import Case
from flarecps.errors import StoreError
from flarecps.preprocessing.checksums import sha256
from flarecps.text_files import read_json, read_own_json
from flarecps.volumes.links import place_of

FOLDER = "sources"  # of a store
MOST_HASHED_BYTES = 1 << 30  # by one start of a training: it is a courtesy there, and must not cost minutes
# A file may change twice within one tick of its file system's clock (2 s on FAT), the second time unseen.
TICK_NS = 2_000_000_000
DETACHED = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(.+)", re.MULTILINE | re.DOTALL)
HEADER_BYTES = 1 << 16

FileHash = list[Any]  # [name, bytes, SHA-256]; [name, bytes] in a store of before there were hashes


def source_files(case: Case) -> list[Path]:
    """Every file the case is made from, in order: images, then labels; of a DICOM folder its files by name, of a header
    (.mhd, .nhdr) also its data file."""
    named = [*case.images, *([] if case.labels is None else [case.labels])]
    return [file for path in named for file in _files_of(path)]


def _files_of(path: Path) -> Iterator[Path]:
    path = place_of(path)
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return
    yield path
    if path.suffix.lower() in (".mhd", ".nhdr") and path.is_file():  # a pipe would be waited for
        with open(path, "rb") as file:
            found = DETACHED.search(file.read(HEADER_BYTES))
        for line in found[1].splitlines() if found else []:  # one name, or LIST and a name a line
            name = os.fsdecode(line.strip())
            if name and Path(name).name == name and (path.parent / name).is_file():
                yield path.parent / name


def hashes_of(case: Case) -> list[FileHash]:
    """Name, size and SHA-256 of every source file, which are read for it; ``OSError`` when one can't be."""
    return [[path.name, path.stat().st_size, sha256(path)] for path in source_files(case)]


def is_made_from(files: Sequence[FileHash], case: Case) -> bool:
    """Whether a record's ``files`` are the case's present ones; read only where names and sizes agree."""
    there = source_files(case)
    return [entry[:2] for entry in files] == [[path.name, path.stat().st_size] for path in there] and all(
        entry[2] == sha256(path) for entry, path in zip(files, there, strict=True)
    )


def sizes_of(case: Case) -> list[FileHash]:
    """What a store of an earlier version says of its sources: name and bytes of each file or DICOM folder."""
    named = [*case.images, *([] if case.labels is None else [case.labels])]
    return [[path.name, size_bytes(path)] for path in named]


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder (a DICOM series)."""
    path = place_of(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size


def have_hashes(files: Sequence[FileHash]) -> bool:
    """Whether what a record says of its sources holds their hashes."""
    return all(len(entry) == 3 for entry in files)


def are_same_files(some: Sequence[FileHash], others: Sequence[FileHash]) -> bool:
    """Whether two records name the same files: by name, bytes and, where both have them, hashes."""
    return len(some) == len(others) and all(
        one[: len(other)] == other[: len(one)] for one, other in zip(some, others, strict=True)
    )


def recorded_files(store: Path, name: str) -> list[FileHash]:
    """What a case's record says of the files it was made from; [] without a readable record."""
    try:
        content = read_own_json(store / "cases" / file_name(name) / "case.json")
        return list(content["made_from"]["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def times_of(case: Case) -> list[list[Any]]:
    """Path, size and times of every source file; ``OSError`` when one is missing."""
    return [_times(path.absolute()) for path in source_files(case)]


def _times(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def note_times(store: Path, name: str, times: list[list[Any]]) -> None:
    """Remember where a case's files lie and when they last changed, as ``times_of`` gave it before they were read."""
    place = _place(store, name)
    place.parent.mkdir(exist_ok=True)
    atomic.write_json(place, times)


def forget_times(store: Path, name: str) -> None:
    """Remember nothing of a case that leaves the store."""
    _place(store, name).unlink(missing_ok=True)


def untouched(store: Path, case: Case) -> bool:
    """Whether the case's files are where they were, with the same sizes and times: the quick answer, without reading.

    False also where a file changed so shortly before the times were noted that it may have changed once more.
    """
    place = _place(store, case.name)
    try:
        noted, now = read_json(place, StoreError, ""), times_of(case)
        latest = max(max(mtime, ctime) for _, _, mtime, ctime in now)
        return bool(noted == now) and latest + TICK_NS < place.stat().st_mtime_ns
    except (OSError, ValueError, StoreError):
        return False


def changed_sources(store: Path, recorded: dict[str, list[FileHash]]) -> tuple[list[str], list[str]]:
    """Of ``recorded`` (the files in case.json, by case), the cases whose files have another content now, and those of
    which it is not known: their times differ, and reading all of them would take too long.

    A case whose files are no longer there, or which has no hashes, is in neither.
    """
    changed, unknown = [], []
    left = MOST_HASHED_BYTES
    for name, files in recorded.items():
        try:
            noted = read_json(_place(store, name), StoreError, "")
            if not have_hashes(files) or len(noted) != len(files):
                continue
            for (path, _, mtime, _), (_, size, digest) in zip(noted, files, strict=True):
                stat = os.stat(path)
                if stat.st_size != size:
                    changed.append(name)
                elif stat.st_mtime_ns == mtime:
                    continue
                elif size > left:
                    unknown.append(name)
                else:
                    left -= size
                    if sha256(Path(path)) == digest:
                        continue
                    changed.append(name)
                break
        except (OSError, ValueError, TypeError, StoreError):
            continue
    return changed, unknown


def _place(store: Path, name: str) -> Path:
    return store / FOLDER / file_name(name, ".json")
