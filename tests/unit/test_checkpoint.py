"""Checkpoints: what is read back, and that every file that is not one is refused by name without running its code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flarecps.checkpoint import check_fits, load_plain, model_entry, read_checkpoint
from flarecps.errors import CheckpointError
from flarecps.networks import PlainUNet
from flarecps.planning.plan import Intensity, Plan, Topology

PLAN = Plan(
    dataset="made up",
    dimensions=3,
    labels={"background": 0, "liver": 1, "spleen": 2},
    left_right_pairs=(),
    channels=("CT",),
    spacing_mm=(2.5, 0.8, 0.8),
    axis_order=(0, 1, 2),
    median_shape_voxels=(20, 30, 30),
    patch_voxels=(8, 8, 8),
    topology=Topology((2, 3), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
    global_batch={"labelled": 2, "unlabelled": 2},
    batch_dice=True,
    intensity=Intensity("ct", -160, 240, 60, 80),
    fingerprint={},
    memory_gb=0.1,
)


def networks(count: int = 2) -> nn.ModuleList:
    topology = PLAN.topology
    return nn.ModuleList(
        PlainUNet(1, PLAN.class_count, topology.features, topology.strides, topology.kernels) for _ in range(count)
    )


def content(siblings: nn.ModuleList | None = None) -> dict[str, Any]:
    """A checkpoint as the training module leaves it, with other entries beside ours."""
    siblings = siblings or networks()
    state = {f"siblings.{name}": value for name, value in siblings.state_dict().items()}
    state["smoothed_loss._extra_state"] = torch.tensor([0.5, 0.6])
    return {"state_dict": state, "epoch": 6, "flarecps": model_entry(PLAN, siblings, 7), "optimizer_states": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_needs_nothing_else(count: int, path: Path) -> None:
    siblings = networks(count)
    torch.save(content(siblings), path)
    model = read_checkpoint(path)
    assert (model.plan, model.epoch, model.path) == (PLAN, 7, path)
    assert (model.labels, model.patch_voxels) == (PLAN.labels, (8, 8, 8))
    assert len(model.siblings) == count
    image = torch.randn(1, 1, 8, 8, 8)
    for read, original in zip(model.siblings, siblings, strict=True):
        assert not read.training
        with torch.no_grad():
            assert torch.equal(read(image), original.eval()(image)[0])
            assert read(image.half()).dtype == torch.float32, "the network's own precision"


def test_the_entry_says_which_networks_inference_may_use(path: Path) -> None:
    """A teacher beside one sibling is what comes back; a checkpoint that names none has its siblings."""
    siblings, (teacher,) = networks(1), networks(1)
    held = content(siblings)
    held["state_dict"] |= {f"method.teacher.{name}": value for name, value in teacher.state_dict().items()}
    held["flarecps"] = model_entry(PLAN, siblings, 7, ["method.teacher."])
    for entry, expected in ((held["flarecps"], teacher), ({**held["flarecps"]}, siblings[0])):
        if expected is not teacher:
            del entry["inference_networks"]
        torch.save(held | {"flarecps": entry}, path)
        (read,) = read_checkpoint(path).siblings
        for name, value in expected.state_dict().items():
            assert torch.equal(read.network.state_dict()[name], value), name


def test_only_plain_types_are_in_it(path: Path) -> None:
    """The whole of it passes torch's own weights_only reader, which knows tensors and plain types alone."""
    torch.save(content(), path)
    assert torch.load(path, weights_only=True)["flarecps"]["plan"]["spacing_mm"] == [2.5, 0.8, 0.8]


# -- files that are none


class Payload:
    """Leaves a file behind when it is unpickled by a reader that runs what it reads."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def text(path: Path) -> None:
    path.write_text("no checkpoint at all")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    torch.save(content(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def deflated(path: Path) -> None:
    """A few hundred kB that would fill the memory."""
    torch.save(content() | {"callbacks": torch.zeros(1 << 24)}, path)
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": {}, "flarecps": Payload(path.parent / "trace")}))


def hidden_object(path: Path) -> None:
    torch.save(content() | {"callbacks": Payload(path.parent / "trace")}, path)


def whole_network(path: Path) -> None:
    torch.save(networks(1)[0], path)


def foreign(path: Path) -> None:
    torch.save({"state_dict": networks().state_dict(), "epoch": 3}, path)


def bare_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def entry_of_another_kind(path: Path) -> None:
    torch.save(content() | {"flarecps": "0.1.0"}, path)


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (text, "not a checkpoint that can be loaded safely"),
        (empty, "not a checkpoint that can be loaded safely"),
        (truncated, "copied completely"),
        (deflated, "bytes that unpack to"),
        (pickled, "not a checkpoint that can be loaded safely"),
        (hidden_object, "not a checkpoint that can be loaded safely"),
        (whole_network, "not a checkpoint that can be loaded safely"),
        (foreign, "without the plan of a flarecps checkpoint"),
        (bare_tensor, "without the plan of a flarecps checkpoint"),
        (entry_of_another_kind, "entry is not one"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(write: Callable[[Path], None], complaint: str, path: Path) -> None:
    write(path)
    with pytest.raises(CheckpointError, match=complaint) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (path.parent / "trace").exists(), "code from the file ran"


@pytest.mark.parametrize("name", ["missing.ckpt", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_plain(tmp_path / name)


# -- contents that contradict themselves


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    broken = content()
    change(broken)
    return broken


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another schema": (lambda c: c["flarecps"].update(schema=99, version="9.9"), "schema 99.*use the flarecps.*9.9"),
    "an unknown network": (lambda c: c["flarecps"]["network"].update(name="Oracle"), "'Oracle', known are PlainUNet"),
    "no network": (lambda c: c["flarecps"].pop("network"), "do not fit"),
    "no weights": (lambda c: c.pop("state_dict"), "do not fit"),
    "a weight missing": (lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))), "do not fit.*Missing key"),
    "a weight of another shape": (
        lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(1)}),
        "do not fit",
    ),
    "a third sibling's weights": (lambda c: c["state_dict"].update({"siblings.2.x": torch.zeros(1)}), "do not fit"),
    "fewer siblings than weights": (lambda c: c["flarecps"].update(siblings=1), "do not fit"),
    "no siblings": (
        lambda c: (c["flarecps"].update(siblings=0, inference_networks=[]), c["state_dict"].clear()),
        "no network",
    ),
    "other arguments": (lambda c: c["flarecps"]["network"]["arguments"].update(depth=3), "do not fit"),
    "a network for other labels": (
        lambda c: c["flarecps"]["plan"]["labels"].update(stomach=3),
        r"\(1, 3\), the plan \(1, 4\)",
    ),
    "no plan": (lambda c: c["flarecps"].pop("plan"), "do not fit"),
    "a plan that is none": (lambda c: c["flarecps"].update(plan=[1, 2]), "do not fit"),
    "no epochs": (lambda c: c["flarecps"].pop("completed_epochs"), "do not fit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contents_that_contradict_themselves_are_refused(case: str, path: Path) -> None:
    change, complaint = BROKEN[case]
    torch.save(changed(change), path)
    with pytest.raises(CheckpointError, match=complaint) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


# -- a training that goes on from it


def test_the_same_networks_on_the_same_images_fit() -> None:
    check_fits(content(), replace(PLAN, patch_voxels=(16, 8, 8), dataset="renamed"), networks())


@pytest.mark.parametrize(
    ("plan", "siblings", "complaint"),
    [
        (PLAN, 1, "siblings is 2, this config's is 1"),
        (replace(PLAN, spacing_mm=(3.0, 0.8, 0.8)), 2, "spacing_mm"),
        (replace(PLAN, intensity=Intensity("ct", -160, 240, 0, 80)), 2, "intensity"),
        (replace(PLAN, labels={"background": 0, "spleen": 1, "liver": 2}), 2, "labels"),
    ],
)
def test_another_model_is_refused(plan: Plan, siblings: int, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        check_fits(content(), plan, networks(siblings))
