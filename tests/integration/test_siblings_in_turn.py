"""One sibling's feature maps at a time: the joint step's losses and gradients, in half of the memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gpu_scripts import script
from lightning.pytorch.strategies import DDPStrategy
from runs import assert_identical, table
from stores import CONFIGS, TinyStores, fit, fit_words
from tiny_training import LAMBDA, batches, crossed, module_of, tiny_plan, trained
from torch import Tensor, nn

from flarecps.checkpoint import load_plain
from flarecps.cli.main import main
from flarecps.losses import CrossEntropy, LinearRamp, PatchAgreement, VoxelConfidence
from flarecps.method_config import method_of
from flarecps.methods import (
    CrossPseudoCutMix,
    CrossPseudoSupervision,
    DualDebiasedSupervision,
    Losses,
    Method,
    outputs_of,
)
from flarecps.networks import PlainUNet, ResidualEncoderUNet
from flarecps.planning.memory import Learners
from flarecps.planning.plan import Topology
from flarecps.training.module import SegmentationModule

AT_ONCE = LinearRamp(final=LAMBDA, length=0)


class Dropping(PlainUNet):
    """A network that draws random numbers in its forward pass."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(nn.functional.dropout(images, 0.3, self.training))


CASES: dict[str, dict[str, Any]] = {
    "3D": {},
    "2D": {"dimensions": 2},
    "Dice per patch, partial labels": {"batch_dice": False, "partial": True},
    "one mean": {"method": {"one_mean": True}},
    "unlabelled alone, partial labels": {"method": {"cps_on_labelled": False}, "partial": True},
    "confident voxels": {"method": {"pseudo_labels": VoxelConfidence(0.5)}},
    "agreed patches, one mean": {"method": {"pseudo_labels": PatchAgreement(0.18), "one_mean": True}, "dimensions": 2},
    "another loss for Lcps, equal steps": {"method": {"pseudo_label_loss": CrossEntropy(), "equal_steps": True}},
    "λ = 0": {"method": {"ramp": LinearRamp(final=0.0, length=0)}},
    "residual encoder": {"network": ResidualEncoderUNet},
    "channels last": {"channels_last": True},
    "random numbers in the network": {"network": Dropping},
    "CutMix": {"kind": CrossPseudoCutMix},
    "CutMix, 2D": {"kind": CrossPseudoCutMix, "dimensions": 2},
    "CutMix, λ = 0": {"kind": CrossPseudoCutMix, "method": {"ramp": LinearRamp(final=0.0, length=0)}},
    "DHC": {"kind": DualDebiasedSupervision},
}


def pair_of(case: str) -> tuple[SegmentationModule, SegmentationModule, dict[str, Any]]:
    """The joint and the in-turn training of a case, in float64, and what its batches are."""
    settings = dict(CASES[case])
    kind, method = settings.pop("kind", CrossPseudoSupervision), {"ramp": AT_ONCE} | settings.pop("method", {})
    shape = {"dimensions": settings.pop("dimensions", 3), "partial": settings.pop("partial", False)}
    joint, in_turn = (
        module_of(shape["dimensions"], method=kind(**method, siblings_in_turn=turn), **settings).double()
        for turn in (False, True)
    )
    return joint, in_turn, shape


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_joint_step(case: str) -> None:
    """In float64, to 1e-12; what comes after in the step, such as clipping, sees no difference."""
    *modules, shape = pair_of(case)
    (batch,) = batches(**shape, count=1)
    found = []
    for module in modules:
        torch.manual_seed(5)
        losses = module.method.step(module.siblings, batch, epoch=0)
        losses.total.backward()
        gradients = [one.grad for one in module.siblings.parameters()]
        found.append(
            [losses.total, *losses.supervised, *losses.unsupervised, *losses.finest, *gradients, torch.rand(1)]
        )
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["3D", "Dice per patch, partial labels", "confident voxels", "CutMix, 2D", "DHC"])
def test_two_ranks_in_turn_take_the_joint_steps_of_two_ranks(case: str, tmp_path: Path) -> None:
    """Three clipped steps by gloo: the same weights as the joint ones of two ranks, and, but for sums, of one."""
    joint, in_turn, shape = pair_of(case)
    alone = pair_of(case)[0]
    data = batches(**shape, count=3, patches=4)
    trained(alone, data, tmp_path)
    for module in (joint, in_turn):
        trained(module, data, tmp_path, ranks=2)
    for ours, theirs, ones in zip(*(one.siblings.parameters() for one in (in_turn, joint, alone)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours, ones, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{"static_graph": True}, {"find_unused_parameters": True}])
def test_ddps_own_settings_change_nothing(settings: dict[str, bool], tmp_path: Path) -> None:
    data = batches(2, count=3, patches=4)
    joint, in_turn = (module_of(2, method=crossed(siblings_in_turn=turn)).double() for turn in (False, True))
    for module in (joint, in_turn):
        trained(module, data, tmp_path, ranks=2, strategy=DDPStrategy(start_method="fork", **settings))
    for ours, theirs in zip(in_turn.siblings.parameters(), joint.siblings.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Overflowing(CrossPseudoSupervision):
    """Sibling 1's logits are infinite under autocast."""

    def outputs(self, *arguments: Any, **settings: Any) -> list[list[Tensor]]:
        found = super().outputs(*arguments, **settings)
        if torch.is_autocast_enabled("cpu"):
            found[0][0] = found[0][0] * torch.inf
        return found


@pytest.mark.parametrize("method", [CrossPseudoSupervision, Overflowing])
def test_half_precision_and_steps_repeated_in_full_precision_are_the_joint_ones(method: Any, tmp_path: Path) -> None:
    data = [
        {name: part | {"image": part["image"].float()} for name, part in batch.items()} for batch in batches(3, count=3)
    ]
    joint, in_turn = (
        module_of(3, method=method(ramp=AT_ONCE, siblings_in_turn=turn), on_nonfinite="fp32") for turn in (False, True)
    )
    for module in (joint, in_turn):
        trained(module, data, tmp_path, precision="bf16-mixed")
        assert module.finite_steps.repeats_in_a_row == (3 if method is Overflowing else 0)
    for ours, theirs in zip(in_turn.siblings.parameters(), joint.siblings.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def happened(module: SegmentationModule, batch: Any) -> list[tuple[str, int]]:
    """Forward passes and gradients of a step as they come, by sibling; what repeats is told once."""
    told: list[tuple[str, int]] = []
    for number, sibling in enumerate(module.siblings):
        sibling.register_forward_pre_hook(lambda *_, number=number: told.append(("forward", number)))
        for weights in sibling.parameters():
            weights.register_post_accumulate_grad_hook(lambda _, number=number: told.append(("gradient", number)))
    module.method.step(module.siblings, batch, 0).total.backward()
    return [one for place, one in enumerate(told) if place == 0 or told[place - 1] != one]


class Three(Method):
    """A method of a user's own, with three siblings."""

    sibling_count = 3
    siblings_in_turn = True

    def step(self, siblings: nn.ModuleList, batch: Any, epoch: int) -> Any:
        images = batch["labelled"]["image"]
        outputs = outputs_of(siblings, images, self.siblings_in_turn)
        supervised = self.supervised_losses(outputs, batch["labelled"])
        nothing = [torch.zeros(()) for _ in siblings]
        finest = [scales[0].detach() for scales in outputs]
        return Losses(torch.stack(supervised).sum(), supervised, nothing, finest, len(images))


def test_a_siblings_turn_comes_when_the_one_after_it_is_done() -> None:
    (batch,) = batches(3, count=1)
    forward, gradient = "forward", "gradient"
    passes = [(forward, 0), (forward, 1)]
    backward = [(gradient, 1), (forward, 0), (gradient, 0)]
    joint, in_turn, three = (
        module_of(3, method=method).double() for method in (crossed(), crossed(siblings_in_turn=True), Three())
    )
    assert happened(joint, batch) == [*passes, (gradient, 1), (gradient, 0)]
    assert happened(in_turn, batch) == passes + backward
    assert happened(three, batch) == [*passes, (forward, 2), (gradient, 2), (forward, 1), *backward]
    patches = {"labelled": 2, "unlabelled": 2}
    assert joint.method.step_cost(patches, 0) == 8
    assert in_turn.method.step_cost(patches, 0) == pytest.approx(8 + 4 / 3)
    assert three.method.step_cost(patches, 0) == pytest.approx(6 + 4 / 3)


@pytest.mark.parametrize("kind", [CrossPseudoSupervision, CrossPseudoCutMix])
def test_a_step_holds_the_memory_of_one_network(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn((2, 1, 32, 32, 32), generator=generator)
    labels = torch.randint(0, 3, image.shape, generator=generator).to(torch.uint8)
    batch = {"labelled": {"image": image, "labels": labels}, "unlabelled": {"image": image.flip(2)}}
    plan = tiny_plan(3)
    plan["topology"]["features"] = [16, 24, 32, 32]
    held_by = script("memory", monkeypatch).Held
    most = []
    for turn in (False, True):
        module = SegmentationModule(plan, kind(ramp=AT_ONCE, siblings_in_turn=turn))
        with held_by() as held:
            module.method.step(module.siblings, batch, 0).total.backward()
        most.append(held.most)
    assert most[1] / most[0] == pytest.approx(Learners(in_turn=True).networks / Learners().networks, abs=0.05)


def test_a_run_in_turn_is_the_run_and_resumes_bit_for_bit(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """By the command line; the configs of both are told to be the same method."""
    small = ["--data.global_batch", "{labelled: 2, unlabelled: 2}", "--model.method.init_args.ramp.start", 0]
    turn = ["--model.method.init_args.siblings_in_turn", "true"]
    joint = fit("phantom_3d.yaml", tiny_stores, tmp_path / "joint", *small)
    halves = fit("phantom_3d.yaml", tiny_stores, tmp_path / "halves", *small, *turn, epochs=1)
    fit("phantom_3d.yaml", tiny_stores, halves, *small, *turn, "--ckpt_path", "last")
    ours, theirs = (load_plain(run / "checkpoints" / "last.ckpt") for run in (halves, joint))
    for entry in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_identical(ours[entry], theirs[entry], entry)
    assert table(halves) == table(joint)
    assert ours["epoch"] == 1
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (joint, halves)]
    assert configs[1]["model"]["method"]["init_args"]["siblings_in_turn"] is True
    assert method_of(configs[0]) == method_of(configs[1])


def test_dry_run_and_summary_say_its_memory(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = []
    for turn in (False, True):
        content = yaml.safe_load((CONFIGS / "phantom_3d.yaml").read_text())
        content["model"]["method"].setdefault("init_args", {})["siblings_in_turn"] = turn
        content["data"] |= {"store": str(tiny_stores.three), "patch_voxels": [16, 32, 32]}
        content["data"]["global_batch"] = {"labelled": 8, "unlabelled": 8}
        path = tmp_path / f"{turn}.yaml"
        path.write_text(yaml.safe_dump(content))
        words = fit_words(path, tiny_stores, tmp_path / "run", "--data.patch_voxels", "[16,32,32]", "--dry-run")
        for each in (words, ["summary", "--config", str(path)]):
            assert main(each) == 0
            shown = capsys.readouterr().out
            (row,) = (line for line in shown.splitlines() if "memory of a step, estimated" in line)
            found.append(float(row.replace("│", " ").replace("GB", "").split()[-1]))
    assert found[0] == found[1] > 0.1
    assert found[2] == found[3] < 0.8 * found[0]


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
def test_compiled_siblings_take_turns_too() -> None:
    (batch,) = batches(2, count=1)
    two_stages = Topology((3, 4), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    found = []
    for turn in (False, True):
        module = module_of(2, method=crossed(siblings_in_turn=turn), topology=two_stages, compile=True).double()
        module.method.step(module.siblings, batch, 0).total.backward()
        found.append([one.grad for one in module.siblings.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
