"""A CUDA card for machines without one: as strict about devices and memory as the real one, computing on the CPU.

``torch.cuda``'s functions that this program calls answer as PyTorch's own do, errors included; tensors that are sent to
the card stay where they are, but are counted, and more than the process's share of the card is ``OutOfMemoryError``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode


class PretendedCard(TorchFunctionMode):
    """``count`` cards of ``total_bytes`` each, of which ``current`` is the default; all tensors lie on that one."""

    def __init__(self, total_bytes: int, count: int = 2, current: int = 1) -> None:
        super().__init__()
        self.total_bytes, self.count, self.current = total_bytes, count, current
        self.shares = dict.fromkeys(range(count), 1.0)  # of each card, that the process may take
        self.history: list[float] = []  # every share that was ever set
        self.beside = 300 * 2**20  # the context, and other programs
        self.refused = 0
        self.asked: list[int] = []  # the cards that were waited for, or asked for their peak
        self.peak = 0
        self.pinned_bytes: list[int] = []  # of every block of pinned memory
        self.unpinned_copies = 0  # that were asked not to block: from pageable memory the driver lets the host wait
        self._pinned: dict[int, None] = {}
        self._held: dict[int, int] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let ``torch.cuda`` answer for this card."""
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "empty_cache": lambda: None,
            "synchronize": self._wait,
            "get_device_properties": self._properties,
            "set_per_process_memory_fraction": self._set_share,
            "get_per_process_memory_fraction": lambda device=None: self.shares[self._index(device)],
            "mem_get_info": self._free,
            "memory_reserved": lambda device=None: sum(self._held.values()),
            "max_memory_allocated": self._peak,
            "max_memory_reserved": self._peak,
            "memory_stats_as_nested_dict": lambda device=None: {"num_ooms": self.refused},
            "reset_peak_memory_stats": self._forget_peak,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def take(self, size: int) -> None:
        """Memory of a moment, as a network's feature maps are: an error where it is not there."""
        now = sum(self._held.values()) + size
        if now > self.shares[self.current] * self.total_bytes:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        self.peak = max(self.peak, now)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("pin_memory"):
            made = function(*args, **{key: one for key, one in kwargs.items() if key != "pin_memory"})
            self.pinned_bytes.append(made.nbytes)
            self._pinned[id(made)] = None
            weakref.finalize(made, self._pinned.pop, id(made), None)
            return made
        if function is torch.Tensor.to and (kwargs or {}).get("non_blocking"):
            self.unpinned_copies += id(args[0]) not in self._pinned
        here = [one for one in (*args, *(kwargs or {}).values()) if _is_card(one)]
        owner = id(args[0]) if args else None
        if not here and owner in self._held:
            if function is torch.Tensor.to and any(isinstance(one, torch.device) for one in args):
                del self._held[owner]  # it goes to the CPU
            elif function is torch.Tensor.new_zeros:
                return self._counted(function(*args, **(kwargs or {})))
        if not here or function is torch.device:
            return function(*args, **(kwargs or {}))
        index = torch.device(here[0]).index
        assert index is None or index < self.count
        args = tuple("cpu" if _is_card(one) else one for one in args)
        result = function(*args, **{key: "cpu" if _is_card(one) else one for key, one in (kwargs or {}).items()})
        return self._counted(result) if isinstance(result, torch.Tensor) else result

    def _counted(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, which lies on the card from now on."""
        size = tensor.numel() * tensor.element_size()
        if id(tensor) not in self._held:
            self.take(size)
            self._held[id(tensor)] = size
            weakref.finalize(tensor, self._held.pop, id(tensor), None)
        return tensor

    def _index(self, device: Any, optional: bool = False) -> int:
        if device is None:
            return self.current
        device = torch.device(device) if isinstance(device, str) else device
        if isinstance(device, torch.device) and device.type == "cuda" and device.index is None and optional:
            return self.current
        return int(_get_device_index(device))  # PyTorch's own: ValueError where the index is missing

    def _properties(self, device: Any) -> SimpleNamespace:
        self._index(device, optional=True)
        return SimpleNamespace(total_memory=self.total_bytes)

    def _free(self, device: Any = None) -> tuple[int, int]:
        self._index(device, optional=True)
        return self.total_bytes - self.beside - sum(self._held.values()), self.total_bytes

    def _set_share(self, share: float, device: Any = None) -> None:
        index = self._index(device)
        if not isinstance(share, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= share <= 1:
            raise ValueError(f"Invalid fraction value: {share}. Allowed range: 0~1")
        self.shares[index] = share
        self.history.append(share)

    def _wait(self, device: Any = None) -> None:
        self.asked.append(self._index(device, optional=True))

    def _peak(self, device: Any = None) -> int:
        self.asked.append(self._index(device, optional=True))
        return self.peak

    def _forget_peak(self, device: Any = None) -> None:
        self._index(device, optional=True)
        self.peak = sum(self._held.values())


def _is_card(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"
