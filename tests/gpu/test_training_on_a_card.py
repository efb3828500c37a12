"""Training steps on a real card: the CPU's within rounding, the same every time, and no wait. Skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import batches, module_of, trained

from flarecps.training.module import SegmentationModule
from flarecps.training.optimisation import NesterovSGD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card on this machine"),
]
CARD = {"accelerator": "gpu", "devices": 1, "precision": "32-true"}


def data(count: int) -> list[Any]:
    return [
        {name: part | {"image": part["image"].float()} for name, part in batch.items()}
        for batch in batches(3, count=count, partial=True)
    ]


def module(**settings: Any) -> SegmentationModule:
    return module_of(3, optimizer=lambda p: NesterovSGD(p, lr=0.05, momentum=0.9), **settings)


def weights(one: SegmentationModule) -> list[torch.Tensor]:
    return [parameter.detach().cpu().clone() for parameter in one.siblings.parameters()]


@pytest.fixture(autouse=True)
def _without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_steps_are_the_cpus(kernels: str, tmp_path: Path) -> None:
    there, here = module(kernels=kernels), module(kernels="plain")
    trained(there, data(3), tmp_path, **CARD)
    trained(here, data(3), tmp_path, precision="32-true")
    for ours, theirs in zip(weights(there), weights(here), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_deterministic_runs_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    ones, others = module(), module()
    for one in (ones, others):
        trained(one, data(3), tmp_path, deterministic=True, **CARD)
    assert all(torch.equal(*pair) for pair in zip(weights(ones), weights(others), strict=True))


def test_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch itself raises where the host would wait for the card; the first step may, which compiles."""
    one = module()
    step = one.training_step

    def watched(batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")
        try:
            step(batch, batch_idx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(one, "training_step", watched)
    trained(one, data(4), tmp_path, **CARD)
