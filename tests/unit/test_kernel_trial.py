"""Triton's kernels are tried before a training relies on them."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from flarecps.training import kernel_trial

CPU = torch.device("cpu")


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_kernels_that_do_not_run_are_said_and_raise_nothing() -> None:
    assert "do not run here (ModuleNotFoundError: " in (kernel_trial.what_fails(CPU) or "")


@pytest.mark.parametrize(("factor", "said"), [(1.0, None), (1.001, "compute something else"), (torch.nan, "something")])
def test_kernels_that_compute_something_else_are_found(monkeypatch: pytest.MonkeyPatch, factor, said) -> None:
    computed = kernel_trial._computed

    def pretended(road, device):
        outputs = computed("composite", device)
        return [*outputs[:-1], outputs[-1] * (factor if road == "triton" else 1)]

    monkeypatch.setattr(kernel_trial, "_computed", pretended)
    found = kernel_trial.what_fails(CPU)
    assert found is None if said is None else said in (found or "")
