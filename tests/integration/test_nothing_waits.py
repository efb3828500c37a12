"""A training step queues its work and waits for no device: no value is read on the host, nothing is copied to it.

Nor does it anything that a GPU refuses in deterministic mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import batches, module_of, trained
from torch.utils._python_dispatch import TorchDispatchMode

from flarecps import kernels
from flarecps.errors import TrainingError
from flarecps.losses import LinearRamp, dice, label_counts
from flarecps.methods import CrossPseudoSupervision, DualDebiasedSupervision, dhc
from flarecps.networks import PlainUNet, ResidualEncoderUNet
from flarecps.training import finite, health
from flarecps.training.module import SegmentationModule
from flarecps.training.optimisation import NesterovSGD


def single(data: list[Any]) -> list[Any]:
    return [{name: part | {"image": part["image"].float()} for name, part in batch.items()} for batch in data]


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.siblings.parameters()]


WAITING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::item", "aten::bincount"}


class Waits(TorchDispatchMode):
    """Notes the operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func._schema.name == "aten::index" and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if func._schema.name in WAITING or masked:
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def fused(**settings: Any) -> SegmentationModule:
    return module_of(3, optimizer=lambda p: NesterovSGD(p, lr=0.05, momentum=0.9, fused=True), **settings)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches that a CUDA device takes, on the CPU."""
    monkeypatch.setattr(SegmentationModule, "_passes_over", lambda *_: True)
    monkeypatch.setattr(health, "counted_labels", label_counts._scattered)
    monkeypatch.setattr(dhc, "counted_labels", label_counts._scattered)
    monkeypatch.setattr(dice, "_joined", lambda known, device: None if known is None else dice.joined_classes(known))


def watched(monkeypatch: pytest.MonkeyPatch, module: SegmentationModule) -> Waits:
    """Lets every training step but the first of ``module`` be watched."""
    waits, step = Waits(), module.training_step

    def watching(batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            step(batch, batch_idx)
            return
        with waits:
            step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", watching)
    return waits


@pytest.mark.parametrize("method", [CrossPseudoSupervision, DualDebiasedSupervision])
def test_a_step_reads_nothing(method: Any, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = fused(method=method(ramp=LinearRamp(final=0.3, length=0)))
    waits = watched(monkeypatch, module)
    read = finite.FiniteSteps.read
    monkeypatch.setattr(module.finite_steps, "read", lambda: _unwatched(lambda: read(module.finite_steps), waits))
    trained(module, single(batches(3, count=3, partial=True)), tmp_path, precision="32-true")
    assert waits.found == []


def _unwatched(call: Any, waits: Waits) -> None:
    """The one read, of what the step before left on the host."""
    before = len(waits.found)
    call()
    del waits.found[before:]


def test_the_test_sees_a_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = fused(on_nonfinite="fp32")  # which decides within the step
    waits = watched(monkeypatch, module)
    trained(module, single(batches(3, partial=True)), tmp_path, precision="32-true")
    assert "aten::_local_scalar_dense" in waits.found


def test_steps_that_are_read_late_are_the_same_steps(as_on_a_gpu: None, tmp_path: Path) -> None:
    late = fused()
    trained(late, single(batches(3)), tmp_path, precision="32-true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "_passes_over", lambda *_: False)
        at_once = fused()
        trained(at_once, single(batches(3)), tmp_path, precision="32-true")
    assert all(torch.equal(*pair) for pair in zip(weights(late), weights(at_once), strict=True))


@pytest.mark.parametrize("bad", [1, 2], ids=["in the middle", "last of the epoch"])
def test_a_late_read_stops_with_the_patches_of_its_step_and_leaves_the_weights(
    bad: int, as_on_a_gpu: None, tmp_path: Path
) -> None:
    data = single(batches(3, count=3))
    data[bad]["labelled"]["image"][0, 0, 1, 2, 3] = torch.nan
    module = fused()
    with pytest.raises(TrainingError, match=f"from labelled labelled_{2 * bad} at voxel"):
        trained(module, data, tmp_path, precision="32-true")
    before = fused()
    trained(before, data[:bad], tmp_path, precision="32-true")
    assert all(torch.equal(*pair) for pair in zip(weights(module), weights(before), strict=True))


REFUSED = re.compile(
    r"aten::(avg_pool3d_backward|adaptive_\w+_backward|max_pool3d\w+_backward|upsample_(bi|tri)?(linear|cubic)\w*_backward|"
    r"nll_loss\w*|cumsum|kthvalue|median|histc|grid_sampler\w+_backward|reflection_pad\w+|replication_pad\w+_backward|put_)$"
)  # on a CUDA device with trainer.deterministic, by the list in torch.use_deterministic_algorithms


class Refused(TorchDispatchMode):
    """Notes what a GPU in deterministic mode would raise an error for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if REFUSED.match(func._schema.name):
            self.found.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("road", ["plain", "composite"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", [PlainUNet, ResidualEncoderUNet])
def test_networks_do_nothing_that_deterministic_mode_refuses(
    kind: Any, dimensions: int, road: kernels.Road, deterministic: None
) -> None:
    strides = [[1] * dimensions, [2] * dimensions, [2] * dimensions]
    network = kind(1, 3, [4, 6, 8], strides, [[3] * dimensions] * 3).to("meta")
    with Refused() as refused, kernels.using(road):
        logits = network(torch.empty(2, 1, *(16,) * dimensions, device="meta"))
        sum(scale.sum() for scale in logits).backward()
    assert refused.found == set()


def test_the_test_sees_what_is_refused() -> None:
    x = torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    with Refused() as refused:
        torch.nn.functional.avg_pool3d(x, 2).sum().backward()
    assert refused.found == {"aten::avg_pool3d_backward"}


@pytest.mark.parametrize("method", [CrossPseudoSupervision, DualDebiasedSupervision])
def test_a_step_does_nothing_that_deterministic_mode_refuses(
    method: Any, as_on_a_gpu: None, deterministic: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = fused(method=method(ramp=LinearRamp(final=0.3, length=0)))
    step, refused = module.training_step, Refused()

    def watching(batch: Any, batch_idx: int) -> None:
        with refused:
            step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", watching)
    trained(module, single(batches(3, count=2, partial=True)), tmp_path, precision="32-true", deterministic=True)
    assert refused.found == set()


def test_labels_are_counted_alike() -> None:
    labels = torch.randint(0, 9, (5000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(label_counts._scattered(labels, 11), torch.bincount(labels, minlength=11))


def test_a_road_that_is_not_there_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    if kernels.no_triton(torch.device("cpu")) is None:
        pytest.skip("Triton's interpreter is at hand")
    module = fused(kernels="triton")
    trained(module, single(batches(3)), tmp_path, precision="32-true")
    assert sum("slower" in one.message for one in caplog.records) == 1
    assert module.road == "plain"


def test_the_composite_trains_as_the_plain_road_does(tmp_path: Path) -> None:
    plain, composite = fused(), fused(kernels="composite")
    for module in (plain, composite):
        trained(module, single(batches(3)), tmp_path, precision="32-true")
    assert composite.channels_last
    assert not plain.channels_last
    for ours, theirs in zip(weights(composite), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert list(composite.state_dict()) == list(plain.state_dict())
