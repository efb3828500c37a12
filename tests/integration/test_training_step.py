"""One optimiser step against an independent float64 computation from the paper's equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from flarecps.losses import LinearRamp
from flarecps.planning.plan import Intensity, Plan, Topology, plan_to_json
from flarecps.training.module import CrossPseudoSupervision

LAMBDA = 0.3
LR, MOMENTUM, DECAY, CLIP = 0.05, 0.9, 1e-3, 0.5


def tiny_plan(dimensions: int, batch_dice: bool = True) -> dict[str, Any]:
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    return plan_to_json(
        Plan(
            dataset="tiny",
            dimensions=dimensions,
            labels={"background": 0, "liver": 1, "spleen": 2},
            left_right_pairs=(),
            channels=("CT",),
            spacing_mm=(1.0, 1.0, 1.0),
            axis_order=(0, 1, 2),
            median_shape_voxels=(8, 8, 8),
            patch_voxels=(8,) * dimensions,
            topology=Topology((3, 4, 5), (ones, twos, twos), (threes,) * 3),
            global_batch={"labelled": 2, "unlabelled": 2},
            batch_dice=batch_dice,
            intensity=Intensity("ct", -100, 100, 0, 50, "global"),
            fingerprint={},
            memory_gb=0.0,
        )
    )


def batches(dimensions: int, count: int = 2) -> list[dict[str, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(7)
    shape = (2, 1) + (8,) * dimensions
    return [
        {
            "labelled": {
                "image": torch.randn(shape, generator=generator, dtype=torch.float64),
                "labels": torch.randint(0, 3, shape, generator=generator).to(torch.uint8),
                "annotated": torch.ones(2, 3, dtype=torch.bool),
            },
            "unlabelled": {"image": torch.randn(shape, generator=generator, dtype=torch.float64)},
        }
        for _ in range(count)
    ]


def trained(
    module: CrossPseudoSupervision, data: list[Any], tmp_path: Any, epochs: int = 1, **settings: Any
) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        precision="64-true",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    loaders = {key: DataLoader([batch[key] for batch in data], batch_size=None) for key in data[0]}
    trainer.fit(module, CombinedLoader(loaders, "min_size"))
    return trainer


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, batch_dice: bool) -> torch.Tensor:
    """Cross-entropy − soft Dice from one-hot targets, as the paper's nnU-Net loss is defined."""
    classes = logits.shape[1]
    p = torch.softmax(logits, 1).flatten(2)
    y = torch.eye(classes, dtype=logits.dtype)[labels.long().flatten(1)].movedim(-1, 1)
    entropy = -(p.log() * y).sum(1).mean()
    axes = (0, 2) if batch_dice else (2,)
    dice = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    return entropy - dice[..., 1:].mean()


def reference_step(
    networks: list[torch.nn.Module], velocities: list[list[torch.Tensor]], batch: dict[str, Any], batch_dice: bool
) -> None:
    """L = Σ Lsup + λ Σ (Lcps labelled + Lcps unlabelled); clip; SGD with Nesterov momentum, written out."""
    labels = batch["labelled"]["labels"][:, 0]
    outputs = [
        [network(batch[part]["image"]) for part in ("labelled", "unlabelled")] for network in networks
    ]  # two forward passes: what the module does in one must be the same
    weights = [1.0, 0.0]  # two decoder levels: nnU-Net leaves the coarsest out
    total = torch.zeros((), dtype=torch.float64)
    for me, other in ((0, 1), (1, 0)):
        for scale, weight in enumerate(weights):
            if weight == 0.0:
                continue
            total = total + weight * plain_loss(outputs[me][0][scale], labels, batch_dice)
            for part in (0, 1):
                pseudo = outputs[other][part][scale].detach().argmax(1)
                total = total + LAMBDA * weight * plain_loss(outputs[me][part][scale], pseudo, batch_dice)
    for network, velocity in zip(networks, velocities, strict=True):
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        scale = min(1.0, CLIP / (norm.item() + 1e-6))
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                step = gradient * scale + DECAY * parameter
                velocity[i] = MOMENTUM * velocity[i] + step
                parameter -= LR * (step + MOMENTUM * velocity[i])


@pytest.mark.parametrize(("dimensions", "batch_dice"), [(3, True), (3, False), (2, True)])
def test_two_steps_equal_an_independent_computation(dimensions: int, batch_dice: bool, tmp_path: Any) -> None:
    data = batches(dimensions)
    module = CrossPseudoSupervision(
        tiny_plan(dimensions, batch_dice),
        optimizer=lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY),
        ramp=LinearRamp(final=LAMBDA, length=0),
        clip_norm=CLIP,
    )
    networks = [copy.deepcopy(sibling).double() for sibling in module.siblings]
    velocities = [[torch.zeros_like(p) for p in network.parameters()] for network in networks]
    trained(module, data, tmp_path)
    for batch in data:
        reference_step(networks, velocities, batch, batch_dice)
    for ours, theirs in zip(module.siblings, networks, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


def test_supervised_control_is_sibling_1_without_pseudo_labels(tmp_path: Any) -> None:
    """The control has one network, the weights of sibling 1 at the start, and the same steps as λ = 0."""
    data = batches(3)
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=LR)}
    control = CrossPseudoSupervision(tiny_plan(3), cross_pseudo_supervision=False, **settings)
    pair = CrossPseudoSupervision(tiny_plan(3), ramp=LinearRamp(final=0.0), **settings)
    trained(control, data, tmp_path)
    trained(pair, data, tmp_path)
    assert len(control.siblings) == 1
    for a, b in zip(control.siblings[0].parameters(), pair.siblings[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rising_lambda_leaves_the_learning_rates_alone(tmp_path: Any) -> None:
    """The plateau watches Lsup: with images that teach nothing new and λ rising, L rises and the rate stays."""
    module = CrossPseudoSupervision(
        tiny_plan(3),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-9),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(
            o, factor=0.2, patience=1, threshold=-1e-3, threshold_mode="abs"
        ),
        ramp=LinearRamp(final=0.5, length=4),
    )
    trainer = trained(module, batches(3), tmp_path, epochs=6)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-9
    assert trainer.optimizers[1].param_groups[0]["lr"] == 1e-9


def test_nothing_is_broadcast_in_validation() -> None:
    """DDP broadcasts a module's buffers in every validation step: ranks with unequally many scans would hang."""
    assert not list(CrossPseudoSupervision(tiny_plan(3)).buffers())


def test_fp16_is_refused_with_the_reason(tmp_path: Any) -> None:
    from flarecps.errors import ConfigError

    module = CrossPseudoSupervision(tiny_plan(3))
    module._trainer = type("Halved", (), {"precision": "16-mixed"})()  # a GPU is needed for the real thing
    with pytest.raises(ConfigError, match="bf16-mixed"):
        module.configure_optimizers()
