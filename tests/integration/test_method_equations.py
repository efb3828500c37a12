"""Every method's step against its formulas, written out here in float64; resumed, and on two ranks, it is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_training
from stores import CONFIGS, TinyStores, fit
from tiny_training import LAMBDA, batches, crossed, module_of, trained

from flarecps.errors import ConfigError
from flarecps.losses import CrossEntropy, DiceCrossEntropy, LinearRamp
from flarecps.methods import (
    BidirectionalCopyPaste,
    CrossPseudoCutMix,
    DualDebiasedSupervision,
    MeanTeacher,
    Method,
    Supervised,
)

AT_ONCE = LinearRamp(final=LAMBDA, length=0)
SCALES = ((0, 2 / 3), (1, 1 / 3))  # of three outputs, of 8, 4 and 2 voxels, the last has no weight


def at_scale(values: torch.Tensor, scale: int) -> torch.Tensor:
    """Every second voxel: of 8 → 4 the nearer of two equally near ones is the second."""
    for axis in range(1, values.ndim) if scale else ():
        values = values.index_select(axis, torch.arange(1, values.shape[axis], 2))
    return values


def entropy(logits: torch.Tensor, labels: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over voxels of −log p."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    found = torch.zeros(labels.shape, dtype=torch.float64)
    for label in range(logits.shape[1]):
        found = found - (labels == label) * p[:, label].log()
    where = torch.ones_like(found) if where is None else where
    return (found * where).sum() / where.sum()


def dice_loss(
    logits: torch.Tensor, labels: torch.Tensor, where: torch.Tensor | None = None, smooth: float = 1e-5
) -> torch.Tensor:
    """−mean soft Dice of the structures over the batch."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    where = torch.ones(labels.shape, dtype=torch.float64) if where is None else where
    found = []
    for label in range(1, logits.shape[1]):
        y, ours = (labels == label) * where, p[:, label] * where
        found.append((2 * (ours * y).sum() + smooth) / (ours.sum() + y.sum() + smooth))
    return -torch.stack(found).mean()


def both(logits: torch.Tensor, labels: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    return entropy(logits, labels, where) + dice_loss(logits, labels, where)


def supervised(outputs: list[torch.Tensor], batch: Any, patches: slice = slice(0, 2)) -> torch.Tensor:
    labels = batch["labelled"]["labels"][:, 0].long()
    return sum(weight * both(outputs[scale][patches], at_scale(labels, scale)) for scale, weight in SCALES)  # type: ignore[return-value]


# -- each method's total, by hand: (siblings, method, batch) → scalar


def crossed_by_hand(siblings: Any, batch: Any, lcps: Callable[..., Any], parts: list[slice]) -> list[torch.Tensor]:
    images = torch.cat([batch["labelled"]["image"], batch["unlabelled"]["image"]])
    outputs = [sibling(images) for sibling in siblings]
    found = []
    for pupil, teacher in ((0, 1), (1, 0)):
        for part in parts:
            for scale, weight in SCALES:
                labels = outputs[teacher][scale][part].argmax(1)
                found.append(weight * lcps(outputs[pupil][scale][part], labels))
    return [sum(supervised(one, batch) for one in outputs), sum(found)]  # type: ignore[list-item]


HALVES, WHOLE = [slice(0, 2), slice(2, 4)], [slice(0, 4)]


def with_entropy(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    lsup, lcps = crossed_by_hand(siblings, batch, entropy, HALVES)
    return lsup + LAMBDA * lcps


def with_smooth(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    lsup, lcps = crossed_by_hand(siblings, batch, lambda x, y: entropy(x, y) + dice_loss(x, y, smooth=100.0), HALVES)
    return lsup + LAMBDA * lcps


def in_equal_steps(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    lsup, lcps = crossed_by_hand(siblings, batch, both, HALVES)
    return (lsup + LAMBDA * lcps) / (1 + 2 * LAMBDA)


def one_mean_in_equal_steps(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    lsup, lcps = crossed_by_hand(siblings, batch, both, WHOLE)
    return (lsup + LAMBDA * lcps) / (1 + LAMBDA)


def cut_mix(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    """Two unlabelled patches, mixed by one mask; contrast, brightness and noise from each patch's generator."""
    u0, u1 = clean = batch["unlabelled"]["image"]
    generators = method.generators(2)
    mask = method.drawn_mask(clean, generators)[0, 0]
    pupils = []
    for generator, (mine, other) in zip(generators, ((u0, u1), (u1, u0)), strict=True):
        contrast, brightness, noise = (torch.rand(3, generator=generator) * 2 - 1).double() * 0.25
        grain = torch.randn(mine.shape, generator=generator).double()
        patch = mine * ~mask + other * mask
        pupils.append(patch * (1 + contrast) + brightness + noise / 2 * grain)
    outputs = [sibling(torch.cat([batch["labelled"]["image"], torch.stack(pupils)])) for sibling in siblings]
    taught = [sibling(clean) for sibling in siblings]
    total = sum(supervised(one, batch) for one in outputs)
    for pupil, teacher in ((0, 1), (1, 0)):
        for scale, weight in SCALES:
            logits = taught[teacher][scale].detach()
            there = at_scale(mask[None], scale)
            mixed = torch.stack([logits[0] * ~there + logits[1] * there, logits[1] * ~there + logits[0] * there])
            total = total + LAMBDA * weight * entropy(outputs[pupil][scale][2:], mixed.argmax(1))
    return total / (1 + LAMBDA)


def mean_teacher(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    """Noise of SD 0.1, cut off at 0.2, for the pupil, then for the teacher; with eight more passes the mask."""
    clean = batch["unlabelled"]["image"]
    generators = method.generators(2)

    def noisy() -> torch.Tensor:
        drawn = torch.stack([torch.randn(clean.shape[1:], generator=one).double() for one in generators])
        return clean + (0.1 * drawn).clamp(-0.2, 0.2)

    outputs = siblings[0](torch.cat([batch["labelled"]["image"], noisy()]))
    with torch.no_grad():
        taught = method.teacher(noisy())[0].softmax(1)
        mask = torch.ones(taught[:, 0].shape, dtype=torch.float64)
        if method.uncertainty_passes:
            mean = sum(method.teacher(noisy())[0].softmax(1) for _ in range(8)) / 8
            mask = (-(mean * mean.log()).sum(1) < 0.75 * math.log(3)).double()
            assert 0 < mask.mean() < 1
    squares = ((outputs[0][2:].softmax(1) - taught) ** 2).sum(1)
    return supervised(outputs, batch) + LAMBDA * (squares * mask).sum() / mask.sum()


def copy_paste(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    (la, lb), (ua, ub) = batch["labelled"]["image"], batch["unlabelled"]["image"]
    truth = batch["labelled"]["labels"][:, 0].long()
    with torch.no_grad():
        pseudo = method.teacher(batch["unlabelled"]["image"])[0].argmax(1)
    mask = method.drawn_mask(la[None])[0, 0]
    assert int((~mask).sum()) == 5**3, "⅔ of 8 voxels, three times"
    outputs = siblings[0](torch.stack([la * mask + ua * ~mask, ub * mask + lb * ~mask]))
    total = torch.zeros((), dtype=torch.float64)
    for number, true_where in ((0, mask), (1, ~mask)):
        for scale, weight in SCALES:
            logits = outputs[scale][number : number + 1]
            where = at_scale(true_where[None], scale)
            total = total + weight * both(logits, at_scale(truth[number : number + 1], scale), where.double()) / 2
            labels = at_scale(pseudo[number : number + 1], scale)
            total = total + 0.5 * weight * both(logits, labels, (~where).double()) / 2
    return total


def pasted_labels(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    """Before: labelled patches alone, pasted both ways; no cuboid of one weighs more than another's."""
    la, lb = batch["labelled"]["image"]
    truth = batch["labelled"]["labels"][:, 0].long()
    mask = method.drawn_mask(la[None])[0, 0]
    outputs = siblings[0](torch.stack([la * mask + lb * ~mask, lb * mask + la * ~mask]))
    total = torch.zeros((), dtype=torch.float64)
    for number, (outside, inside) in enumerate(((0, 1), (1, 0))):
        for scale, weight in SCALES:
            there = at_scale(mask[None], scale)
            for patch, where in ((outside, there), (inside, ~there)):
                labels = at_scale(truth[patch : patch + 1], scale)
                total = total + weight * both(outputs[scale][number : number + 1], labels, where.double()) / 2
    return total


def dual_debiased(siblings: Any, method: Any, batch: Any) -> torch.Tensor:
    """Weights from the state that was set, then everything twice, once by each sibling's weights."""
    shares = [max(a, b) for a, b in zip(STATE["shares"], (0.4, 0.3, 0.3), strict=True)]
    rare = [math.log(max(shares) / one) for one in shares]
    hard = [
        ((u + 1e-6) / (x + 1e-6)) ** 0.2 * (1 - d)
        for u, x, d in zip(STATE["unlearned"], STATE["learned"], STATE["dice"], strict=True)
    ]
    images = torch.cat([batch["labelled"]["image"], batch["unlabelled"]["image"]])
    truth = batch["labelled"]["labels"][:, 0].long()
    outputs = [sibling(images) for sibling in siblings]
    total = torch.zeros((), dtype=torch.float64)
    for pupil, teacher, measure in ((0, 1, rare), (1, 0, hard)):
        w = torch.tensor([3 * one / max(measure) for one in measure], dtype=torch.float64)
        for scale, weight in SCALES:
            pseudo = outputs[teacher][scale].argmax(1)
            for part, labels, factor in (
                (slice(0, 2), at_scale(truth, scale), 1.0),
                (slice(0, 2), pseudo[:2], LAMBDA),
                (slice(2, 4), pseudo[2:], LAMBDA),
            ):
                p = outputs[pupil][scale][part].softmax(1)
                y = torch.eye(3, dtype=torch.float64)[labels].movedim(-1, 1)
                ce = -(w[labels] * (p * y).sum(1).log()).sum() / w[labels].sum()
                axes = (0, 2, 3, 4)
                dice = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
                total = total + factor * weight * (ce - (w * dice)[1:].sum() / 2)
    return total


STATE = {"shares": [0.5, 0.2, 0.35], "dice": [0.9, 0.4, 0.1], "learned": [0.1, 0.2, 0.0], "unlearned": [0.2, 0.1, 0.3]}
METHODS: dict[str, tuple[Callable[[], Method], Callable[..., torch.Tensor]]] = {
    "Lcps is cross-entropy": (lambda: crossed(pseudo_label_loss=CrossEntropy()), with_entropy),
    "Lcps with a smooth": (lambda: crossed(pseudo_label_loss=DiceCrossEntropy(smooth=100.0)), with_smooth),
    "equal steps": (lambda: crossed(equal_steps=True), in_equal_steps),
    "one mean, equal steps": (lambda: crossed(equal_steps=True, one_mean=True), one_mean_in_equal_steps),
    "DHC": (lambda: DualDebiasedSupervision(ramp=AT_ONCE), dual_debiased),
    "CutMix": (lambda: CrossPseudoCutMix(ramp=AT_ONCE, equal_steps=True), cut_mix),
    "mean teacher": (lambda: MeanTeacher(ramp=AT_ONCE), mean_teacher),
    "UA-MT": (lambda: MeanTeacher(ramp=AT_ONCE, uncertainty_passes=8), mean_teacher),
    "BCP": (BidirectionalCopyPaste, copy_paste),
    "BCP, first": (lambda: BidirectionalCopyPaste(pretrained_epochs=1), pasted_labels),
}
WITH_STATE = ("DHC", "CutMix", "mean teacher", "UA-MT", "BCP")


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_formula(name: str) -> None:
    """Loss and gradient of one step; teachers that are averages are moved away from their pupil before."""
    make, by_hand = METHODS[name]
    (batch,) = batches(3, count=1)
    method = make()
    module = module_of(3, method=method).double()
    with torch.no_grad():
        for weights in module.siblings.parameters():
            weights.mul_(3)  # so that some voxels are more certain than others
        for weights in method.parameters():
            weights.mul_(3).add_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(3)))
    method.steps = 5
    if name == "DHC":
        method.state = {name: torch.tensor(values, dtype=torch.float64) for name, values in STATE.items()}
    found = method.step(module.siblings, batch, epoch=0)
    expected = by_hand(module.siblings, method, batch)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = list(module.siblings.parameters())
    ours, theirs = (torch.autograd.grad(one, parameters, allow_unused=True) for one in (found.total, expected))
    for mine, hand in zip(ours, theirs, strict=True):
        hand = torch.zeros_like(mine) if hand is None and mine is not None else hand
        if mine is not None:
            torch.testing.assert_close(mine, hand, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", WITH_STATE)
def test_two_ranks_draw_what_one_draws(name: str, tmp_path: Path) -> None:
    """Three steps of four patches of each kind: the same weights, of teachers too."""
    data = batches(2, count=3, patches=4)
    one, two = (module_of(2, method=METHODS[name][0]()).double() for _ in range(2))
    trained(one, data, tmp_path)
    trained(two, data, tmp_path, ranks=2)
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["CrossPseudoCutMix", "DualDebiasedSupervision", "MeanTeacher", "BidirectionalCopyPaste"]
)
def test_it_trains_and_resumes_bit_for_bit(name: str, tiny_stores: TinyStores, tmp_path: Path) -> None:
    content = yaml.safe_load((CONFIGS / "phantom_3d.yaml").read_text())
    arguments = {"pretrained_epochs": 1} if name == "BidirectionalCopyPaste" else {"ramp": {"length": 1}}
    content["model"]["method"] = {"class_path": f"flarecps.methods.{name}", "init_args": arguments}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    small = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
    through = fit(path, tiny_stores, tmp_path / "through", *small, epochs=3)
    halves = fit(path, tiny_stores, tmp_path / "halves", *small, epochs=2)
    fit(path, tiny_stores, halves, *small, "--ckpt_path", "last", epochs=3)
    assert_same_training(halves, through)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("name", ["Supervised", *METHODS])
def test_what_a_step_costs_is_what_it_computes(name: str, epoch: int) -> None:
    """Patches that pass a network: with gradient a whole, without a third."""
    (batch,) = batches(3, count=1)
    method = Supervised() if name == "Supervised" else METHODS[name][0]()
    if epoch == 0 and hasattr(method, "ramp"):
        method.ramp = LinearRamp(start=1, length=0)
    if epoch == 0 and isinstance(method, BidirectionalCopyPaste):
        method.pretrained_epochs = 1
    module = module_of(3, method=method).double()
    passed = [0.0]

    def count(network: Any, inputs: Any) -> None:
        passed[0] += len(inputs[0]) * (1 if torch.is_grad_enabled() else 1 / 3)

    for network in (*module.siblings, *([method.teacher] if hasattr(method, "teacher") else [])):
        network.register_forward_pre_hook(count)
    method.step(module.siblings, batch, epoch)
    assert method.step_cost({"labelled": 2, "unlabelled": 2}, epoch) == pytest.approx(passed[0])


def test_what_dual_debiasing_remembers_of_two_steps_is_the_formula(tmp_path: Path) -> None:
    """From the siblings' labels before each step."""
    data = batches(3, count=2)
    method = DualDebiasedSupervision(ramp=AT_ONCE)
    module = module_of(3, method=method).double()
    expected = {"shares": [0.4, 0.3, 0.3], "dice": [0.0] * 3, "learned": [0.0] * 3, "unlearned": [0.0] * 3}
    for batch in data:
        first = module.siblings[0](batch["unlabelled"]["image"])[0].argmax(1)
        second = module.siblings[1](batch["labelled"]["image"])[0].argmax(1)
        truth = batch["labelled"]["labels"][:, 0]
        for k in range(3):
            share = (first == k).double().mean().item()
            expected["shares"][k] = 0.95 * expected["shares"][k] + 0.05 * share
            size = int((second == k).sum() + (truth == k).sum())
            dice = 2 * int(((second == k) & (truth == k)).sum()) / size
            change = math.log(max(dice, 1e-6) / max(expected["dice"][k], 1e-6))
            expected["learned"][k] = 0.98 * expected["learned"][k] + 0.02 * max(change, 0)
            expected["unlearned"][k] = 0.98 * expected["unlearned"][k] + 0.02 * max(-change, 0)
            expected["dice"][k] = dice
        method.step(module.siblings, batch, 0)
        method.after_step(module.siblings)
        with torch.no_grad():
            for weights in module.siblings.parameters():
                weights.mul_(1.5)
    for name, values in expected.items():
        assert method.state[name].tolist() == pytest.approx(values, rel=1e-9)


def test_patches_that_cannot_be_paired_are_refused() -> None:
    (batch,) = batches(2, count=1, patches=3)
    for method in (CrossPseudoCutMix(ramp=AT_ONCE), BidirectionalCopyPaste()):
        module = module_of(2, method=method).double()
        with pytest.raises(ConfigError, match="even number"):
            method.step(module.siblings, batch, 0)


def test_the_boxes_of_a_mask_have_the_volume_that_was_drawn() -> None:
    from flarecps.methods.cut_mix import box_mask

    for shape in ((40, 40, 40), (20, 60, 80), (50, 80)):
        shares = [float(box_mask(torch.Size(shape), (0.3, 0.3), torch.Generator().manual_seed(n)).double().mean())
                  for n in range(40)]  # fmt: skip
        assert min(shares) > 0.1 - 0.03, "three boxes, one upon the other"
        assert max(shares) < 0.33
        assert sum(share > 0.27 for share in shares) > 3, "three boxes side by side"
