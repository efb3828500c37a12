"""Files that ``torch.save`` wrote: whether they are whole, and their weights numbers.

Such a file is a zip archive without compression, with a CRC-32 for every entry, which ``torch.load`` does not look at.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from flarecps.errors import CheckpointError, may_be_whole

COPY_AGAIN = "if it was not copied completely, copy it again, or use another of the run's checkpoints"
ARCHIVE = b"PK\x03\x04"  # what torch.load goes by
ENCRYPTED = 1  # of a part's flags
PLAIN = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
DEEPEST = 6  # levels at which tensors are looked for: optimiser, "state", parameter, its "momentum_buffer"


def save(content: Any, path: Path) -> None:
    """``torch.save`` to the disk itself; ``OSError`` says why the file could not be written.

    PyTorch, left to write, knows only that it could not.
    """
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of the last write, which PyTorch's own error hides
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())


def check_whole(path: Path) -> None:
    """Nothing, or ``CheckpointError`` when a byte of the file that matters is not what was written.

    OSError where it can't be read just now. Reads all of it once, a megabyte at a time. What no checksum covers, as the
    entries' dates, torch does not use. A file that does not begin as an archive is left to torch.load, which refuses
    it, or knows it as of before 2020.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(ARCHIVE)) != ARCHIVE:
                return
        with zipfile.ZipFile(path) as parts:
            for part in parts.infolist():  # a "folder" PyTorch would not read, but leave its memory as it was
                if part.compress_type != zipfile.ZIP_STORED or part.flag_bits & ENCRYPTED or part.external_attr:
                    raise zipfile.BadZipFile(f"{part.filename} is not stored as PyTorch does it")
            damaged = parts.testzip()
    except Exception as error:  # a damaged directory leads zipfile to many kinds of errors
        if may_be_whole(error):
            raise
        raise CheckpointError(f"{path}: damaged ({error}); {COPY_AGAIN}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged ({damaged} is not what was written); {COPY_AGAIN}")


def check_finite(path: Path | str, held: Mapping[str, Any], what: str = "weights") -> None:
    """Nothing, or ``CheckpointError`` when one of the tensors in ``held`` (or in what it holds) is not all finite.

    Or is none that a training writes: sparse, quantised, complex, without values, or with more values than its file.
    """
    for name, tensor in _tensors(held):
        if not _is_plain(tensor):
            found = f"{name} is {tensor.dtype}, {tensor.layout}, {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{path}: its {what} are not plain numbers ({found}); use the file that the training wrote"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: its {what} are not finite numbers (the first is {name}), as of a training that diverged; use "
                "an earlier checkpoint, or train again with a lower learning rate"
            )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has each of its values in memory, as a real number: a file may announce any other."""
    return (
        tensor.dtype in PLAIN
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _tensors(value: Any, name: str = "", depth: int = DEEPEST) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif depth and isinstance(value, Mapping | list | tuple):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(one, f"{name}.{key}" if name else str(key), depth - 1)
