"""Which road is taken, and whether this machine has it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Road = Literal["plain", "composite", "triton"]
Kernels = Literal["auto", "plain", "composite", "triton"]
OLDEST = (8, 0)  # compute capability from which a card has bfloat16 and Triton is tested

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_road: Road = "plain"  # no context variable: backward passes run in threads of their own, which would not see it


def no_triton(device: torch.device) -> str | None:
    """Why Triton's kernels can't run on ``device``, in words; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu" and not _interpreted():
        return "Triton's kernels need a GPU"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"the GPU is older than compute capability {OLDEST[0]}.{OLDEST[1]}"
    if device.type not in ("cpu", "cuda"):
        return f"Triton's kernels do not run on {device.type}"
    return None


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def chosen_road(setting: Kernels, device: torch.device) -> Road:
    """The road that ``setting`` means on ``device``: ``auto`` is Triton on a CUDA device that has it, else plain.

    ``triton`` is plain where ``no_triton`` has a reason.
    """
    if setting == "auto":
        setting = "triton" if device.type == "cuda" else "plain"
    return "plain" if setting == "triton" and no_triton(device) else setting


def current_road() -> Road:
    """The road of the innermost ``using``; inside of ``torch.compile`` the composite stands for Triton's kernels."""
    return "composite" if _road == "triton" and torch.compiler.is_compiling() else _road


def triton_takes(x: Tensor) -> bool:
    """Whether the kernels compute in this tensor's precision."""
    return x.dtype in _DTYPES


@contextmanager
def using(road: Road) -> Iterator[None]:
    """Take ``road``, forward and backward, until the block ends; for the whole process, one training at a time."""
    global _road
    before, _road = _road, road
    try:
        yield
    finally:
        _road = before
