"""Triton's kernels are tried before a training relies on them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tiny_training import batches, module_of, trained

from flarecps.kernels import no_triton
from flarecps.training import kernel_trial, module

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


class Roads(Callback):
    """Writes down, on each rank, the road that is taken, its layout and the weights after training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = float(sum(one.detach().double().sum() for one in pl_module.parameters()))
        found = [pl_module.road, pl_module.channels_last, weights]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def roads_of_two_ranks(folder: Path, **settings: object) -> list[list[object]]:
    trained(module_of(3, **settings), batches(3), folder, ranks=2, callbacks=[Roads(folder)])  # type: ignore[arg-type]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("failing", [0, 1])
def test_kernels_that_fail_on_one_rank_are_taken_by_none(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretended failure; the other rank's kernels run, and would go channels last and round otherwise."""
    monkeypatch.setattr(module, "no_triton", lambda device: None)
    monkeypatch.setattr(module, "chosen_road", lambda setting, device: "triton")
    monkeypatch.setattr(
        module, "what_fails", lambda device: "pretended: no assembler" if dist.get_rank() == failing else None
    )
    said = tmp_path / "said"
    monkeypatch.setattr(module, "warn", rank_zero_only(said.write_text))
    ours, theirs = roads_of_two_ranks(tmp_path, kernels="triton")
    assert ours == theirs
    assert ours[:2] == ["plain", None]
    assert said.read_text().endswith(f"slower: pretended: no assembler (rank {failing} of 2)")


@pytest.mark.skipif(no_triton(CPU) is not None, reason=f"{no_triton(CPU)}; or set TRITON_INTERPRET=1")
def test_two_ranks_by_triton_take_the_steps_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    """In single precision; of the plain road one rank's weights are as near as rounding allows, too."""
    data = [
        {name: part | {"image": part["image"].float()} for name, part in batch.items()}
        for batch in batches(3, partial=True)
    ]
    found = {}
    for road, ranks in (("triton", 1), ("triton", 2), ("plain", 1)):
        one = module_of(3, kernels=road)
        folder = tmp_path / f"{road}_{ranks}"
        folder.mkdir()
        trainer = trained(one, data, folder, ranks=ranks, precision="32-true", callbacks=[Roads(folder)])
        assert json.loads((folder / "0.json").read_text())[:2] == (
            ["triton", True] if road == "triton" else ["plain", None]
        )
        losses = trainer.callback_metrics
        found[road, ranks] = [value.double() for value in (*one.siblings.parameters(), *losses.values())]
    for other in (("triton", 2), ("plain", 1)):
        for ours, theirs in zip(found["triton", 1], found[other], strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=2e-5)
