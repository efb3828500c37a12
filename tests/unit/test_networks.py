"""The networks: the paper's sizes, shapes at every scale, and siblings that are strangers."""

from __future__ import annotations

import math

import pytest
import torch

from flarecps.networks import PlainUNet, he_normal_
from flarecps.networks.cost import network_cost

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


def test_evaluation_computes_the_finest_scale_only_and_the_same() -> None:
    network = he_normal_(PlainUNet(2, 3, **SMALL), torch.Generator().manual_seed(0))
    x = torch.randn(2, 2, 4, 8, 8)
    with torch.no_grad():
        trained, evaluated = network.train()(x), network.eval()(x)
    assert [tuple(o.shape) for o in trained] == [(2, 3, 4, 8, 8), (2, 3, 4, 4, 4)]
    assert len(evaluated) == 1
    torch.testing.assert_close(evaluated[0], trained[0])


def test_patches_of_a_batch_do_not_see_each_other() -> None:
    """What the module relies on when it leaves unlabelled patches out while λ is 0."""
    network = he_normal_(PlainUNet(1, 3, **SMALL), torch.Generator().manual_seed(0)).double()
    x = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64)
    together = network(x)
    for scale, alone in zip(together, network(x[:1]), strict=True):
        torch.testing.assert_close(scale[:1], alone)


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
