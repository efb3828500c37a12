"""The networks: the paper's sizes and nnU-Net's, shapes at every scale, and siblings that are strangers."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flarecps.errors import ConfigError
from flarecps.interop.nnunet_weights import nnunet_parameter_names
from flarecps.networks import NETWORKS, PlainUNet, ResidualEncoderUNet, compile_in_place, he_normal_, set_memory_format
from flarecps.networks import blocks as network_blocks
from flarecps.networks.cost import network_cost
from flarecps.planning.memory import MemoryModel
from flarecps.planning.plan import Topology

PEER = Path(__file__).resolve().parents[2] / "benchmarks" / "training_step" / "peer.py"

THREE_D = {
    "features": [32, 64, 128, 256, 320, 320],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
    "kernels": [[3, 3, 3]] * 6,
}
TWO_D = {
    "features": [32, 64, 128, 256, 480, 480, 480, 480],
    "strides": [[1, 1]] + [[2, 2]] * 7,
    "kernels": [[3, 3]] * 8,
}
SMALL = {
    "features": [4, 6, 8],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
}


@pytest.mark.parametrize(("topology", "parameters"), [(THREE_D, 30_794_784), (TWO_D, 41_285_472)])
def test_parameters_are_the_papers_table_2(topology: dict, parameters: int) -> None:
    with torch.device("meta"):
        network = PlainUNet(1, 14, **topology)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert f"{parameters / 1e6:.2f}" in {"30.79", "41.29"}


@pytest.mark.parametrize(("topology", "parameters"), [(THREE_D, 101_949_830), (TWO_D, 124_397_410)])
def test_residual_parameters_are_nnunets(topology: dict, parameters: int) -> None:
    """The numbers of dynamic_network_architectures 0.4.4; ``test_nnunets_networks_compute_the_same`` asks it again."""
    with torch.device("meta"):
        network = ResidualEncoderUNet(1, 14, **topology)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.arguments["blocks_per_stage"] == [1, 3, 4, 6, 6, 6, 6, 6][: len(topology["features"])]


def test_scales_are_the_papers_in_3d() -> None:
    with torch.device("meta"):
        outputs = PlainUNet(1, 14, **THREE_D)(torch.empty(1, 1, 112, 160, 128))
    assert [tuple(o.shape[2:]) for o in outputs] == [
        (112, 160, 128),
        (56, 80, 64),
        (28, 40, 32),
        (14, 20, 16),
        (7, 10, 8),
    ]


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_evaluation_computes_the_finest_scale_only_and_the_same(kind: Any) -> None:
    network = he_normal_(kind(2, 3, **SMALL), torch.Generator().manual_seed(0))
    x = torch.randn(2, 2, 4, 8, 8)
    with torch.no_grad():
        trained, evaluated = network.train()(x), network.eval()(x)
    assert [tuple(o.shape) for o in trained] == [(2, 3, 4, 8, 8), (2, 3, 4, 4, 4)]
    assert len(evaluated) == 1
    torch.testing.assert_close(evaluated[0], trained[0])


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_without_deep_supervision_only_the_finest_head_is_built(kind: Any) -> None:
    with_all, with_one = (
        he_normal_(kind(1, 3, **SMALL, deep_supervision=many), torch.Generator().manual_seed(0))
        for many in (True, False)
    )
    absent = {name for name in with_all.state_dict() if name.startswith("heads.0.")}
    assert with_all.state_dict().keys() - with_one.state_dict().keys() == {n.replace("0", "1", 1) for n in absent}
    state = {name: value for name, value in with_all.state_dict().items() if not name.startswith("heads.")}
    state |= {name.replace("1", "0", 1): v for name, v in with_all.state_dict().items() if name.startswith("heads.1.")}
    with_one.load_state_dict(state)
    x = torch.randn(1, 1, 4, 8, 8)
    (alone,) = with_one(x)
    torch.testing.assert_close(alone, with_all(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_a_network_is_built_again_from_its_arguments(kind: Any) -> None:
    network = kind(1, 3, **SMALL)
    twin = kind(**network.arguments)
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_patches_of_a_batch_do_not_see_each_other(kind: Any) -> None:
    """What the module relies on when it leaves unlabelled patches out while λ is 0."""
    network = he_normal_(kind(1, 3, **SMALL), torch.Generator().manual_seed(0)).double()
    x = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64)
    together = network(x)
    for scale, alone in zip(together, network(x[:1]), strict=True):
        torch.testing.assert_close(scale[:1], alone)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [PlainUNet, ResidualEncoderUNet])
def test_no_activation_copies_its_gradient_and_all_are_those_of_the_layers(
    kind: Any, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; autograd's CopySlices, of what is done in place to a view, copies a gradient twice."""
    network, image = he_normal_(kind(2, 3, **SMALL), torch.Generator().manual_seed(0)), torch.randn(2, 2, 4, 8, 8)
    found = []
    for copies in (False, True):
        if copies:
            monkeypatch.setattr(network_blocks, "_unviewed", lambda y: y)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = network(image)
        total = torch.stack([one.float().square().mean() for one in outputs]).sum()
        assert any("CopySlices" in name for name in _operations(total.grad_fn)) == copies
        total.backward()
        found.append([*outputs, *(weights.grad for weights in network.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def _operations(last: Any) -> set[str]:
    """The names of autograd's nodes, from the last one on."""
    names, left = {}, [last]
    while left:
        node = left.pop()
        if node is not None and node not in names:
            names[node] = node.name()
            left += [before for before, _ in node.next_functions]
    return set(names.values())


def test_a_new_residual_block_passes_its_input_on() -> None:
    """The second norm starts at 0, as nnU-Net's: LeakyReLU(x + 0)."""
    network = he_normal_(ResidualEncoderUNet(1, 3, **SMALL, blocks_per_stage=[2, 1, 1]), torch.Generator())
    x = torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(network.encoder[0][1](x), torch.nn.functional.leaky_relu(x, 0.01))


@pytest.mark.parametrize("blocks", [[1, 2], [1, 0, 2]])
def test_blocks_that_do_not_fit_the_stages_are_refused(blocks: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 3 numbers"):
        ResidualEncoderUNet(1, 3, **SMALL, blocks_per_stage=blocks)


@pytest.mark.parametrize("kind", NETWORKS.values())
@pytest.mark.parametrize("dimensions", [2, 3])
def test_channels_last_computes_the_same(kind: Any, dimensions: int) -> None:
    topology = {name: [row[:dimensions] for row in rows] for name, rows in SMALL.items() if name != "features"}
    network = he_normal_(kind(1, 3, features=SMALL["features"], **topology), torch.Generator().manual_seed(0))
    x = torch.randn((2, 1, *(4, 8, 8)[:dimensions]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = network(x)
    set_memory_format([network], dimensions, channels_last=True)
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[dimensions]
    assert network.encoder[1][0].state_dict().keys()
    for scale, expected in zip(network(x), plain, strict=True):
        torch.testing.assert_close(scale, expected, rtol=1e-5, atol=1e-5)
    weights = [p for p in network.parameters() if p.ndim == dimensions + 2]
    assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    seeing = torch.nn.Identity()
    set_memory_format([seeing], dimensions, channels_last=True)
    assert seeing(torch.randn((2, 3, *(4, 8, 8)[:dimensions]))).is_contiguous(memory_format=memory_format)


def test_a_compiled_network_stores_the_same() -> None:
    """Names and weights; the integration tests run the compiler itself."""
    plain = he_normal_(PlainUNet(1, 3, **SMALL), torch.Generator().manual_seed(0))
    compiled = PlainUNet(**plain.arguments)
    compile_in_place([compiled], True)
    assert compiled._compiled_call_impl is not None
    compiled.load_state_dict(plain.state_dict())
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 1, 4, 8, 8)
    with torch.compiler.set_stance("force_eager"):
        for scale, expected in zip(compiled(x), plain(x), strict=True):
            torch.testing.assert_close(scale, expected)


def test_compilation_that_does_not_fit_two_siblings_is_refused() -> None:
    network = PlainUNet(1, 3, **SMALL)
    compile_in_place([network], False)
    assert network._compiled_call_impl is None
    with pytest.raises(ConfigError, match="reduce-overhead"):
        compile_in_place([network], "reduce-overhead")


def test_he_initialisation_has_its_variance_and_zero_biases() -> None:
    network = he_normal_(
        PlainUNet(16, 3, [64, 64], [[1, 1], [2, 2]], [[3, 3], [3, 3]]), torch.Generator().manual_seed(1)
    )
    weight = network.encoder[0][0].convolution.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (16 * 9)), rel=0.03)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("convolution.bias"))


def test_siblings_are_independent_and_reproducible() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return (
            he_normal_(PlainUNet(1, 3, **SMALL), torch.Generator().manual_seed(seed)).encoder[1][0].convolution.weight
        )

    torch.testing.assert_close(drawn(0), drawn(0), rtol=0, atol=0)
    correlation = torch.corrcoef(torch.stack([drawn(0).flatten(), drawn(1).flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.2


def test_mismatched_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry per stage"):
        PlainUNet(1, 3, [4, 8], [[1, 1]], [[3, 3], [3, 3]])


@pytest.mark.parametrize(
    ("topology", "patch", "table_2", "proper"),
    [(THREE_D, (112, 160, 128), 585.4295, 523.58), (TWO_D, (512, 512), 65.5497, 58.02)],
)
def test_multiply_accumulates_are_the_papers(topology: dict, patch: tuple, table_2: float, proper: float) -> None:
    with torch.device("meta"):
        cost = network_cost(PlainUNet(1, 14, **topology), 1, patch)
    assert cost.macs_table_2 / 1e9 == pytest.approx(table_2, abs=1e-4)
    assert cost.macs / 1e9 == pytest.approx(proper, abs=0.01)


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_multiply_accumulates_are_torchs_own_count(kind: Any) -> None:
    network = kind(1, 3, **SMALL)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.randn(1, 1, 4, 8, 8))
    assert counter.get_total_flops() == 2 * network_cost(kind(1, 3, **SMALL).to("meta"), 1, (4, 8, 8)).macs


def test_feature_maps_are_what_the_planner_counts() -> None:
    """Planner and network are of one mind; both numbers are nnU-Net v2's own, whose residual one has 44,800 more.

    It counts a projection in the stage that only pools what it carries.
    """
    with torch.device("meta"):
        plain, residual = (network_cost(kind(1, 14, **THREE_D), 1, (112, 160, 128)) for kind in NETWORKS.values())
    topology = Topology(**{name: tuple(map(tuple_of, rows)) for name, rows in THREE_D.items()})
    assert plain.convolved_elements == MemoryModel(8.0, 3, 14).elements_per_patch((112, 160, 128), topology)
    assert plain.convolved_elements == 520_522_240
    assert residual.convolved_elements == 635_201_280 - 320 * 7 * 5 * 4


def tuple_of(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def exchange(kind: Any, topology: dict[str, Any], patch: tuple[int, ...], more: dict[str, Any]) -> dict[str, Any]:
    """A network in double precision, with weights drawn for every parameter, and what it makes of a patch."""
    generator = torch.Generator().manual_seed(1)
    network = he_normal_(kind(2, 3, **topology, **more), generator).double()
    with torch.no_grad():
        for parameter in network.parameters():  # norms and biases, too: none may be left out unnoticed
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    images = torch.randn(2, 2, *patch, generator=generator, dtype=torch.float64)
    names = nnunet_parameter_names(network)
    return {
        "network": kind.__name__,
        "arguments": network.arguments,
        "weights": {names[ours]: parameter.detach() for ours, parameter in network.named_parameters()},
        "images": images,
        "logits": [scale.detach() for scale in network(images)],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def test_nnunets_networks_compute_the_same(tmp_path: Path) -> None:
    """nnU-Net v2's own classes, given our weights under its names: same parameters, same logits at every scale."""
    python = os.environ.get("FLARECPS_PEER_PYTHON")
    if not python:
        pytest.skip("nnU-Net is not at hand (set FLARECPS_PEER_PYTHON to its Python; 'make peers' installs it)")
    capped = {"features": [4, 8, 8], "strides": [[1, 1], [2, 2], [2, 2]], "kernels": [[3, 3]] * 3}
    cases = [
        exchange(PlainUNet, SMALL, (4, 8, 8), {}),
        exchange(PlainUNet, SMALL, (4, 8, 8), {"output_bias": True}),
        exchange(ResidualEncoderUNet, SMALL, (4, 8, 8), {}),
        exchange(ResidualEncoderUNet, capped, (8, 16), {"blocks_per_stage": [2, 1, 3]}),
    ]
    files = [(tmp_path / f"question_{number}.pt", tmp_path / f"answer_{number}.pt") for number in range(len(cases))]
    for case, (question, _) in zip(cases, files, strict=True):
        torch.save(case, question)
    subprocess.run([python, str(PEER), "check", *(str(file) for pair in files for file in pair)], check=True)
    for case, (_, file) in zip(cases, files, strict=True):
        answer = torch.load(file, weights_only=True)
        biased = case["arguments"].get("output_bias", True)
        missing = 0 if biased else 4 + 6 + 2 * 3  # of two transposed convolutions and two heads
        assert case["parameters"] + missing == answer["parameters"]
        for ours, theirs in zip(case["logits"], answer["logits"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
