"""The optimiser step against an independent float64 computation from the paper's equations, in all its settings."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from typing import Any

import pytest
import torch
from tiny_training import CLIP, DECAY, KNOWN, LAMBDA, LR, MOMENTUM, tiny_plan, trained

from flarecps.losses import LinearRamp, PatchAgreement, VoxelConfidence
from flarecps.methods import CrossPseudoSupervision
from flarecps.networks import ResidualEncoderUNet
from flarecps.planning.plan import Topology
from flarecps.training.module import SegmentationModule

CLASSES = 3
STREAMS = ("labelled", "unlabelled")


def plan_of_four_stages(dimensions: int, batch_dice: bool = True) -> dict[str, Any]:
    """The tiny plan, whose last stage keeps its first axis, with the batch of ``noise``."""
    plan = tiny_plan(dimensions, batch_dice)
    strides = [*plan["topology"]["strides"][:-1], [1, *(2,) * (dimensions - 1)]]
    return plan | {"topology": plan["topology"] | {"strides": strides}, "global_batch": dict.fromkeys(STREAMS, 4)}


def noise(dimensions: int, count: int = 2, patches: int = 4, incomplete: bool = False) -> list[dict[str, Any]]:
    """``count`` batches of noise with labels; ``incomplete``: those of ``KNOWN`` only."""
    generator = torch.Generator().manual_seed(7)
    shape = (patches, 1) + (8,) * dimensions
    found = []
    for _ in range(count):
        images = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        labels = torch.randint(0, CLASSES, shape, generator=generator).to(torch.uint8)
        annotated = torch.ones(patches, CLASSES, dtype=torch.bool)
        if incomplete:
            annotated = KNOWN[:patches]
            for sample, known in enumerate(annotated):
                labels[sample][~known[labels[sample].long()]] = 0
        labelled = {"image": images[0], "labels": labels, "annotated": annotated}
        found.append({"labelled": labelled, "unlabelled": {"image": images[1]}})
    return found


OF_THE_METHOD = ("one_mean", "cps_on_labelled", "pseudo_labels")


def module_of(dimensions: int, batch_dice: bool = True, **settings: Any) -> SegmentationModule:
    chosen = {name: settings.pop(name) for name in OF_THE_METHOD if name in settings}
    return SegmentationModule(
        plan_of_four_stages(dimensions, batch_dice),
        CrossPseudoSupervision(ramp=LinearRamp(final=LAMBDA, length=0), **chosen),
        optimizer=lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY),
        clip_norm=CLIP,
        **settings,
    )


def plain_loss(
    logits: torch.Tensor, labels: torch.Tensor, batch_dice: bool, known: Any = None, kept: Any = None
) -> torch.Tensor:
    """Cross-entropy − soft Dice from one-hot targets, as the paper's nnU-Net loss is defined.

    ``known`` (patch, class): the probability of the others is background's, and their Dice leaves the mean. ``kept``
    (patch, voxel): the others are as if they were not there.
    """
    p = torch.softmax(logits, 1).flatten(2)
    y = torch.eye(CLASSES, dtype=logits.dtype)[labels.long().flatten(1)].movedim(-1, 1)
    counts = torch.ones(len(p), CLASSES, dtype=torch.bool) if known is None else known
    p = torch.cat([p[:, :1] + (p * ~counts[:, :, None]).sum(1, keepdim=True), (p * counts[:, :, None])[:, 1:]], 1)
    mask = torch.ones(p[:, 0].shape, dtype=p.dtype) if kept is None else kept.to(p.dtype)
    if not mask.any():
        return logits.sum() * 0
    entropy = -((p * y).sum(1).log() * mask).sum() / mask.sum()
    axes = (0, 2) if batch_dice else (2,)
    p, y = p * mask[:, None], y * mask[:, None]
    dice = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    there = mask.any(1)[:, None] & counts
    there = (there.any(0) if batch_dice else there)[..., 1:]
    return entropy - dice[..., 1:][there].mean()


def confident(teacher: list[torch.Tensor], student: list[torch.Tensor]) -> list[torch.Tensor]:
    """Voxels whose teacher is at least half sure, by scale."""
    return [scale.softmax(1).flatten(2).max(1).values >= 0.5 for scale in teacher]


def agreed(teacher: list[torch.Tensor], student: list[torch.Tensor], threshold: float) -> list[torch.Tensor]:
    """Patches in which the siblings' finest labels have a mean Dice of at least ``threshold``, by scale."""
    kept = []
    for one, other in zip(teacher[0].argmax(1), student[0].argmax(1), strict=True):
        sizes = [int((one == c).sum() + (other == c).sum()) for c in range(1, CLASSES)]
        common = [int(((one == c) & (other == c)).sum()) for c in range(1, CLASSES)]
        dice = [2 * both / size for both, size in zip(common, sizes, strict=True) if size]
        kept.append(sum(dice) / len(dice) >= threshold if dice else True)
    return [torch.tensor(kept)[:, None].expand(len(kept), scale[0, 0].numel()) for scale in teacher]


def reference_step(
    networks: list[torch.nn.Module],
    velocities: list[list[torch.Tensor]],
    batch: dict[str, Any],
    batch_dice: bool,
    one_mean: bool = False,
    trust: Any = None,
    cps_on_labelled: bool = True,
) -> list[float]:
    """L = Σ Lsup + λ Σ (Lcps labelled + Lcps unlabelled); clip; SGD with Nesterov momentum, written out.

    What comes back: the shares of voxels that were trusted, of every patch's finest scale.
    """
    labels, known = batch["labelled"]["labels"][:, 0], batch["labelled"]["annotated"]
    outputs = [
        [network(batch[part]["image"]) for part in ("labelled", "unlabelled")] for network in networks
    ]  # two forward passes: what the module does in one must be the same
    weights = [2 / 3, 1 / 3, 0]  # three decoder levels: nnU-Net leaves the coarsest out
    assert len(outputs[0][0]) == len(weights)
    total = torch.zeros((), dtype=torch.float64)
    shares: list[float] = []
    for me, other in ((0, 1), (1, 0)):
        parts = [(outputs[me][part], outputs[other][part]) for part in ((0, 1) if cps_on_labelled else (1,))]
        if one_mean:
            parts = [tuple([torch.cat(scales) for scales in zip(*outputs[who], strict=True)] for who in (me, other))]
        for scale, weight in enumerate(weights[:2]):
            edges = outputs[me][0][scale].shape[2:]
            target = torch.nn.functional.interpolate(labels[:, None].double(), size=edges, mode="nearest-exact")[:, 0]
            total = total + weight * plain_loss(outputs[me][0][scale], target, batch_dice, known)
            for mine, theirs in parts:
                kept = None if trust is None else trust(theirs, mine)[scale]
                if kept is not None and scale == 0:
                    shares += kept.double().mean(1).tolist()
                pseudo = theirs[scale].detach().argmax(1)
                total = total + LAMBDA * weight * plain_loss(mine[scale], pseudo, batch_dice, kept=kept)
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
    return shares


CASES: dict[str, dict[str, Any]] = {
    "3D": {},
    "3D, Dice per patch": {"batch_dice": False},
    "2D": {"dimensions": 2},
    "2D, Dice per patch": {"dimensions": 2, "batch_dice": False},
    "residual encoder": {"network": ResidualEncoderUNet},
    "residual encoder, 2D": {"network": ResidualEncoderUNet, "dimensions": 2},
    "one mean": {"one_mean": True},
    "Lcps on unlabelled patches only": {"cps_on_labelled": False},
    "partial labels": {"partial": True},
    "partial labels, Dice per patch": {"partial": True, "batch_dice": False},
    "confident voxels": {"pseudo_labels": VoxelConfidence(0.5), "trust": confident},
    "confident voxels, Dice per patch": {
        "pseudo_labels": VoxelConfidence(0.5),
        "trust": confident,
        "batch_dice": False,
    },
    "agreed patches": {"pseudo_labels": PatchAgreement(0.12), "trust": partial(agreed, threshold=0.12)},
    "agreed patches, one mean, 2D": {
        "pseudo_labels": PatchAgreement(0.18),
        "trust": partial(agreed, threshold=0.18),
        "one_mean": True,
        "dimensions": 2,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_two_steps_equal_an_independent_computation(case: str, tmp_path: Any) -> None:
    settings = dict(CASES[case])
    dimensions, incomplete = settings.pop("dimensions", 3), settings.pop("partial", False)
    batch_dice, trust = settings.pop("batch_dice", True), settings.pop("trust", None)
    data = noise(dimensions, incomplete=incomplete)
    module = module_of(dimensions, batch_dice, **settings)
    networks = [copy.deepcopy(sibling).double() for sibling in module.siblings]
    velocities = [[torch.zeros_like(p) for p in network.parameters()] for network in networks]
    trained(module, data, tmp_path)
    shares: list[float] = []
    switches = {name: settings[name] for name in ("one_mean", "cps_on_labelled") if name in settings}
    for batch in data:
        shares += reference_step(networks, velocities, batch, batch_dice, trust=trust, **switches)
    if trust is not None:
        assert min(shares) < 0.5 < max(shares), "some is trusted, some is not"
    for ours, theirs in zip(module.siblings, networks, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_channels_last_takes_the_same_steps(dimensions: int, tmp_path: Any) -> None:
    data = noise(dimensions)
    plain, innermost = (module_of(dimensions, channels_last=last) for last in (False, True))
    trained(plain, data, tmp_path)
    trained(innermost, data, tmp_path)
    for a, b in zip(plain.siblings.parameters(), innermost.siblings.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
def test_compiled_siblings_take_the_same_steps_and_their_checkpoint_loads_plain(tmp_path: Any) -> None:
    data = noise(2)
    two_stages = Topology((3, 4), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    plain, compiled = (module_of(2, topology=two_stages, compile=compile_) for compile_ in (False, True))
    trained(plain, data, tmp_path)
    trainer = trained(compiled, data, tmp_path)
    for a, b in zip(plain.siblings.parameters(), compiled.siblings.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    trainer.save_checkpoint(tmp_path / "compiled.ckpt")
    content = torch.load(tmp_path / "compiled.ckpt", weights_only=True)
    fresh = module_of(2, topology=two_stages).double()
    fresh.load_state_dict(content["state_dict"])
    assert fresh.state_dict().keys() == plain.state_dict().keys()
    images = data[0]["unlabelled"]["image"]
    with torch.no_grad():
        for ours, theirs in zip(fresh.siblings, plain.siblings, strict=True):
            torch.testing.assert_close(ours(images)[0], theirs(images)[0], rtol=1e-5, atol=1e-5)


def test_a_bf16_step_is_near_that_of_single_precision(tmp_path: Any) -> None:
    """bf16-mixed: weights stay in single precision, and both siblings move nearly as far in nearly one direction."""
    two_stages = Topology((3, 4), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))  # no norms over a few voxels
    data = [
        {name: {k: v.float() if v.is_floating_point() else v for k, v in part.items()} for name, part in batch.items()}
        for batch in noise(3, count=1)
    ]
    start, full, half = (module_of(3, topology=two_stages) for _ in range(3))
    trained(full, data, tmp_path, precision="32-true")
    trained(half, data, tmp_path, precision="bf16-mixed")
    for siblings in zip(start.siblings, full.siblings, half.siblings, strict=True):
        before, after, after_half = (torch.nn.utils.parameters_to_vector(one.parameters()) for one in siblings)
        assert after_half.dtype == torch.float32
        moved, moved_half = after - before, after_half - before
        assert torch.nn.functional.cosine_similarity(moved, moved_half, dim=0) > 0.95
        assert moved_half.norm().item() == pytest.approx(moved.norm().item(), rel=0.1)
