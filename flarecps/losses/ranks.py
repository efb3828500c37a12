"""Sums over the processes of a distributed training, with their gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_count() -> int:
    """The number of processes that train together; 1 where training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them; 0 where training is not distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's ``values``, equal on all ranks; ``values`` itself where there is only one.

    Its gradient is summed over the ranks too: each rank's loss depends on every rank's values. DDP then averages the
    parameters' gradients, so a loss that is a function of such sums needs no further factor: with L equal on W ranks,
    every rank's values receive W ∂L/∂sum, and the average over ranks divides by W. All ranks must call this equally
    often, and call backward on it.
    """
    return _SumOverRanks.apply(values) if rank_count() > 1 else values


def average_of_ranks(number: Tensor, least: float = 1.0) -> Tensor:
    """What a rank divides its own sum by, so that the average over ranks is the whole sum over the whole number.

    Where there is nothing at all, the ``least`` whole number there can be: the sum is 0 then, and so is the quotient.
    """
    return (sum_over_ranks(number) / rank_count()).clamp_min(least / rank_count())


class _SumOverRanks(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce does the same, but torch 2.13 calls it deprecated

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all_reduced(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
