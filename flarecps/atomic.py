"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flarecps.errors import FULL_DISK, WriteError
from flarecps.locks import in_progress

PARTIAL_PREFIX = ".partial-"  # what an interrupted run leaves behind is recognised, and never taken for a result


def partial_path(path: Path) -> Path:
    """A name beside ``path``, with its suffixes, for what is not whole yet."""
    return path.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffixes, which takes the name ``path`` when the block succeeds.

    It is there, empty, and is held against `locks.remove_abandoned`. On an exception it is removed and ``path`` is
    untouched. The parent folder must exist. Raises
    ``WriteError``, which names ``path``, when the file can't be written.
    """
    partial = partial_path(Path(path))
    try:
        with in_progress(partial):
            yield partial
            os.replace(partial, path)
    except OSError as error:
        if isinstance(error, WriteError) or not (_is(error.filename, partial) or error.errno in FULL_DISK):
            raise
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses to remove what is not there
            partial.unlink(missing_ok=True)


def _is(name: object, path: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name) == path


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically, with the line ends it has: the same bytes on every system.

    Of file names that are not UTF-8, bytes are written as escapes, as JSON has them: ``\\udcfc``.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path | str, content: Any) -> None:
    """Write ``content`` as indented JSON to ``path`` atomically; NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
