"""The optimiser and the learning rate's schedule: their numbers, what the plateau watches, and how it remembers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

SMOOTHING = 0.93  # weight of the past in nnU-Net v1's moving average of the epoch's loss


class NesterovSGD(SGD):
    """Stochastic gradient descent with nnU-Net's numbers.

    Args:
        params: a network's parameters.
        lr: learning rate.
        momentum: of the moving sum of gradients.
        nesterov: look ahead along the momentum.
        weight_decay: L2 penalty.
        fused: one kernel for a whole step; null: on a GPU, where it also passes over steps that are not finite, so that
            nothing waits for the device.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        momentum: float = 0.99,
        nesterov: bool = True,
        weight_decay: float = 3e-5,
        fused: bool | None = None,
    ) -> None:
        params = list(params)
        if fused is None and params and all(isinstance(one, Tensor) and one.is_cuda for one in params):
            fused = True
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)


class Plateau(ReduceLROnPlateau):
    """nnU-Net v1's plateau: 30 epochs in which the smoothed loss fell by less than 0.001 lower the rate.

    The threshold is absolute; torch's own default takes it relative to the loss.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 0.2, patience: int = 30, threshold: float = 1e-3) -> None:
        super().__init__(
            optimizer, mode="min", factor=factor, patience=patience, threshold=threshold, threshold_mode="abs"
        )


class SmoothedLoss(nn.Module):
    """An exponential moving average of each sibling's Lsup, kept in the checkpoint.

    EMA ← 0.93 EMA + 0.07 epoch mean; the first value is the first loss. Only Lsup is watched: L rises with λ, and a
    plateau on it would cut the rate for that reason alone.
    """

    values: Tensor  # float64, one per sibling; nan before the first epoch

    def __init__(self, siblings: int) -> None:
        super().__init__()
        # no buffer: DDP would broadcast it in every validation step, and hang where ranks have unequally many scans
        self.values = torch.full((siblings,), math.nan, dtype=torch.float64)

    def update(self, losses: Iterable[float]) -> list[float]:
        """The averages after one more epoch whose mean losses are ``losses``, one per sibling."""
        new = torch.tensor(list(losses), dtype=torch.float64)
        self.values = torch.where(self.values.isnan(), new, SMOOTHING * self.values + (1 - SMOOTHING) * new)
        return self.values.tolist()

    def get_extra_state(self) -> Tensor:
        """What the checkpoint keeps."""
        return self.values

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint's averages."""
        self.values = state.to("cpu", torch.float64)
