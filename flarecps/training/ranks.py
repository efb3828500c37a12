"""What the processes of one training must agree on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from flarecps.errors import visible
from flarecps.losses.ranks import rank_count

_log = logging.getLogger("flarecps.training")
_FACTOR = 1_000_003  # odd, so that no bit of an earlier tensor is lost as the sums wrap around
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


@rank_zero_only
def warn(message: str) -> None:
    """Say something once, on rank 0, on standard error (by Python's logging, so that a program can listen)."""
    _log.warning("warning: %s", visible(message))


def true_on_all_ranks(value: Tensor) -> bool:
    """Whether ``value`` (one truth value) is true on every rank; all ranks must ask, and all get the same answer."""
    return bool(on_all_ranks(value))


def on_all_ranks(value: Tensor) -> Tensor:
    """``true_on_all_ranks`` as a truth value that stays on its device: nobody waits for it."""
    if rank_count() > 1:
        value = value.to(torch.int32)
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return value.bool()


def gather_from_ranks(value: Any) -> list[Any]:
    """Every rank's ``value``, in the order of the ranks; all ranks must ask."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    dist.all_gather_object(values, value)
    return values


def leave_group() -> None:
    """Take this process out of its gloo group, if it is in one; for a process that has nothing left to do with others.

    Lightning does so for NCCL alone. Left to the interpreter's end, gloo's threads can abort a process whose work is
    done (PyTorch issue 190489): its exit code would then say that the work failed.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == dist.Backend.GLOO:
        dist.destroy_process_group()


@torch.no_grad()
def digest(tensors: Iterable[Tensor]) -> int:
    """One number that depends on every bit of ``tensors`` and on their order.

    >>> weights = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    >>> digest(weights) == digest([tensor.clone() for tensor in weights])
    True
    >>> digest(weights) == digest(weights[::-1])
    False
    """
    total: Tensor | None = None
    for tensor in tensors:
        own = tensor.contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
        total = own if total is None else total * _FACTOR + own
    return 0 if total is None else int(total)
