"""What the training step promises beside the paper's equations (those are in test_step_equations.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny_training import LR, batches, crossed, module_of, tiny_plan, trained

from flarecps import metric_names
from flarecps.losses import LinearRamp, PatchAgreement, VoxelConfidence
from flarecps.methods import CrossPseudoSupervision, Supervised
from flarecps.networks import ResidualEncoderUNet
from flarecps.training.module import SegmentationModule


def test_supervised_control_is_sibling_1_without_pseudo_labels(tmp_path: Any) -> None:
    """The control has one network, the weights of sibling 1 at the start, and the same steps as λ = 0."""
    data = batches(3)
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=LR)}
    control = SegmentationModule(tiny_plan(3), Supervised(), **settings)
    pair = SegmentationModule(tiny_plan(3), CrossPseudoSupervision(ramp=LinearRamp(final=0.0)), **settings)
    trained(control, data, tmp_path)
    trained(pair, data, tmp_path)
    assert len(control.siblings) == 1
    for a, b in zip(control.siblings[0].parameters(), pair.siblings[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Totals(Callback):
    """L of every epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append(float(pl_module.epoch_means[metric_names.LOSS_TOTAL.replace("/", "|")].compute()))


def test_rising_lambda_leaves_the_learning_rates_alone(tmp_path: Any) -> None:
    """Lsup is constant, L rises with λ by far more than the threshold: a plateau that watched L would cut the rates."""
    module = SegmentationModule(
        tiny_plan(3),
        CrossPseudoSupervision(ramp=LinearRamp(final=0.5, length=4)),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-9),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(
            o, factor=0.2, patience=1, threshold=-1e-3, threshold_mode="abs"
        ),
    )
    totals = Totals()
    trainer = trained(module, batches(3), tmp_path, epochs=6, callbacks=[totals])
    assert min(after - before for before, after in zip(totals.values[:4], totals.values[1:5], strict=True)) > 1e-2
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-9
    assert trainer.optimizers[1].param_groups[0]["lr"] == 1e-9


RANKS = {
    "3D": {"dimensions": 3},
    "3D, partial labels unevenly spread": {"dimensions": 3, "partial": True},
    "3D, Dice per patch, partial labels unevenly spread": {"dimensions": 3, "partial": True, "batch_dice": False},
    "2D": {"dimensions": 2},
    "2D, Dice per patch": {"dimensions": 2, "batch_dice": False},
    "residual encoder": {"dimensions": 3, "network": ResidualEncoderUNet},
    "confident voxels": {"dimensions": 3, "method": {"pseudo_labels": VoxelConfidence(0.51)}},
    "confident voxels, Dice per patch": {
        "dimensions": 2,
        "method": {"pseudo_labels": VoxelConfidence(0.51)},
        "batch_dice": False,
    },
    "agreed patches, one mean": {"dimensions": 2, "method": {"pseudo_labels": PatchAgreement(0.18), "one_mean": True}},
}


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_with_half_the_batch_each_are_one_rank(case: str, tmp_path: Any) -> None:
    """Five steps by gloo, in double precision so that only a wrong sum could tell them apart; all is annotated on rank
    0, little on rank 1."""
    settings: dict[str, Any] = dict(RANKS[case])
    dimensions, partial = settings.pop("dimensions"), settings.pop("partial", False)
    method = settings.pop("method", {})
    data = batches(dimensions, count=5, patches=4, partial=partial)
    one, two, before = (module_of(dimensions, method=crossed(**method), **settings).double() for _ in range(3))
    trained(one, data, tmp_path)
    trained(two, data, tmp_path, ranks=2)
    for theirs, ours, start in zip(*(module.siblings.parameters() for module in (one, two, before)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-10)
        assert ours.ndim == 1 or not torch.equal(ours, start)  # a bias before a norm moves by rounding, or not at all


def test_nothing_is_broadcast_in_validation() -> None:
    """DDP broadcasts a module's buffers in every validation step: ranks with unequally many scans would hang."""
    assert not list(SegmentationModule(tiny_plan(3)).buffers())


def test_fp16_is_refused_with_the_reason(tmp_path: Any) -> None:
    from flarecps.errors import ConfigError

    module = SegmentationModule(tiny_plan(3))
    module._trainer = type("Halved", (), {"precision": "16-mixed"})()  # a GPU is needed for the real thing
    with pytest.raises(ConfigError, match="bf16-mixed"):
        module.configure_optimizers()
