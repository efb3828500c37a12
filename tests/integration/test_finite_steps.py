"""Losses that are no numbers: said with their patches, repeated in full precision, never in the weights."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from stores import TinyStores, fit_words
from tiny_training import batches, tiny_plan, trained

from flarecps.cli.main import main
from flarecps.errors import TrainingError
from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision
from flarecps.training.module import SegmentationModule

RAMP = LinearRamp(final=0.3, length=0)

SGD = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)}


def crossed(**settings: Any) -> SegmentationModule:
    return SegmentationModule(tiny_plan(3), CrossPseudoSupervision(ramp=RAMP), **SGD, **settings)


class Overflowing(CrossPseudoSupervision):
    """Whose logits are infinite in the given steps: under autocast only, or always."""

    def __init__(self, steps: set[int], always: bool = False, rank: int | None = None) -> None:
        super().__init__(ramp=RAMP)
        self.steps, self.always, self.rank = steps, always, rank
        self.number = 0  # of the step

    def outputs(self, *arguments: Any, **settings: Any) -> list[list[torch.Tensor]]:
        found = super().outputs(*arguments, **settings)
        there = self.rank is None or dist.get_rank() == self.rank
        if there and self.number in self.steps and (self.always or torch.is_autocast_enabled("cpu")):
            found[1][0] = found[1][0] * torch.inf
        return found

    def after_step(self, siblings: Any) -> None:
        self.number += 1


def overflowing(steps: set[int], always: bool = False, rank: int | None = None, **settings: Any) -> SegmentationModule:
    return SegmentationModule(tiny_plan(3), Overflowing(steps, always, rank), **SGD, **settings)


def single(data: list[Any]) -> list[Any]:
    return [{name: part | {"image": part["image"].float()} for name, part in batch.items()} for batch in data]


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.siblings.parameters()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loss_that_is_no_number_stops_with_its_patches_and_leaves_the_weights(precision: str, tmp_path: Path) -> None:
    """The second step's image holds a nan; the weights are those after the first step."""
    data = single(batches(3))
    data[1]["labelled"]["image"][0, 0, 1, 2, 3] = torch.nan
    module = crossed()
    with pytest.raises(TrainingError) as caught:
        trained(module, data, tmp_path, precision=precision)
    message = str(caught.value)
    assert "epoch 0" in message
    assert "from labelled labelled_2 at voxel (2, 2, 2) (epoch 0, index 2)" in message
    assert not any(other in message for other in ("labelled_1", "labelled_3", "unlabelled_2"))
    assert "L nan" in message
    assert ("model.on_nonfinite fp32" in message) == (precision == "bf16-mixed")
    one_step = crossed()
    trained(one_step, data[:1], tmp_path, precision=precision)
    for ours, theirs in zip(weights(module), weights(one_step), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path) -> None:
    """A loss may be finite where its gradient is not: the square root's at 0."""

    class Rooted(CrossPseudoSupervision):
        def supervised_losses(self, *arguments: Any) -> list[torch.Tensor]:
            losses = super().supervised_losses(*arguments)
            return [losses[0], losses[1] + (losses[1] - losses[1].detach()).abs().sqrt()]

    module = SegmentationModule(tiny_plan(3), Rooted(ramp=RAMP), **SGD)
    before = weights(module)
    with pytest.raises(TrainingError, match=r"gradient norms .*nan") as caught:
        trained(module, single(batches(3)), tmp_path, precision="32-true")
    assert "L nan" not in str(caught.value)
    assert "though the logits are, in labelled labelled_0" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def test_a_repeated_step_is_the_step_of_full_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = single(batches(3, count=1))
    module = overflowing(steps={0}, on_nonfinite="fp32")
    with caplog.at_level(logging.WARNING, logger="flarecps.training"):
        trained(module, data, tmp_path, precision="bf16-mixed")
    assert "the step is repeated in full precision" in caplog.text
    full = crossed()
    trained(full, data, tmp_path, precision="32-true")
    half = crossed()
    trained(half, data, tmp_path, precision="bf16-mixed")
    for ours, wanted in zip(weights(module), weights(full), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-8)
    assert any((a - b).abs().max() > 1e-5 for a, b in zip(weights(module), weights(half), strict=True))


def test_too_many_repetitions_in_a_row_stop_the_training(tmp_path: Path) -> None:
    """Two in a row are allowed; a finite step between them starts the count anew."""
    data = single(batches(3, count=6))
    module = overflowing(steps={0, 1, 3, 4}, on_nonfinite="fp32", most_repeats_in_a_row=2)
    trained(module, data, tmp_path, precision="bf16-mixed")
    assert module.finite_steps.repeats_in_a_row == 0
    module = overflowing(steps={2, 3, 4}, on_nonfinite="fp32", most_repeats_in_a_row=2)
    with pytest.raises(TrainingError, match=r"2 steps in a row before it were repeated.*32-true"):
        trained(module, data, tmp_path, precision="bf16-mixed")
    assert module.method.number == 4
    resumed = overflowing(steps=set())
    resumed.load_state_dict(copy.deepcopy(module.state_dict()))
    assert resumed.finite_steps.repeats_in_a_row == module.finite_steps.repeats_in_a_row == 3


@pytest.mark.parametrize(
    ("precision", "always", "said"),
    [("bf16-mixed", True, "even in full precision"), ("32-true", True, "no repetition would help")],
)
def test_what_full_precision_does_not_mend_stops(precision: str, always: bool, said: str, tmp_path: Path) -> None:
    module = overflowing(steps={0}, always=always, on_nonfinite="fp32")
    before = weights(module)
    with pytest.raises(TrainingError, match=said):
        trained(module, single(batches(3)), tmp_path, precision=precision)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def test_all_ranks_repeat_a_step_that_failed_on_one(tmp_path: Path) -> None:
    """Rank 1 overflows; both repeat, so the step is that of one process in full precision (to single precision)."""
    data = single(batches(3, count=1, patches=4))
    shared = overflowing(steps={0}, rank=1, on_nonfinite="fp32")
    trained(shared, data, tmp_path, ranks=2, precision="bf16-mixed")
    whole = crossed()
    trained(whole, data, tmp_path, precision="32-true")
    for ours, theirs in zip(weights(shared), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_message_names_the_patches_of_the_rank_that_failed(tmp_path: Path) -> None:
    module = overflowing(steps={0}, always=True, rank=1)
    with pytest.raises(Exception, match="loss or gradient is not finite") as caught:
        trained(module, single(batches(3, count=1, patches=4)), tmp_path, ranks=2, precision="32-true")
    message = str(caught.value)
    assert "labelled_1 " in message
    assert "labelled_3 " in message
    assert "labelled_0 " not in message


def test_the_command_line_says_it_in_one_line(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.optimizer.init_args.lr", "1e30", "--model.clip_norm", "1e30"]
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *more, epochs=3)) == 2
    error = capsys.readouterr().err
    line = error.splitlines()[-1]
    assert line.startswith("flarecps fit: loss or gradient is not finite in epoch ")
    assert " at voxel (" in line
    assert "Traceback" not in error
