"""The roads of flarecps.kernels against PyTorch in double precision; Triton's in its interpreter, or on a GPU.

Triton reads TRITON_INTERPRET when it is imported, so without a GPU the interpreter's part runs as
``TRITON_INTERPRET=1 pytest tests/unit/test_kernels.py`` where Triton is installed.
"""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flarecps import kernels
from flarecps.kernels import roads
from flarecps.losses import DiceCrossEntropy, WeightedDiceCrossEntropy
from flarecps.networks import PlainUNet, ResidualEncoderUNet, pad_image_channels
from flarecps.networks.blocks import ConvolutionBlock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_TRITON = kernels.no_triton(DEVICE)
needs_triton = pytest.mark.skipif(NO_TRITON is not None, reason=f"{NO_TRITON}; or set TRITON_INTERPRET=1")
ROADS = ["composite", pytest.param("triton", marks=needs_triton)]
LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest value


def off_by(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest wanted value."""
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def reference(x: Tensor, weight: Tensor, bias: Tensor, slope: float, upstream: Tensor) -> list[Tensor]:
    """Output and gradients of PyTorch's layers in double precision."""
    tensors = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    y = nn.functional.leaky_relu(nn.functional.instance_norm(tensors[0], None, None, *tensors[1:]), slope)
    return [y, *torch.autograd.grad(y, tensors, upstream.double())]


def by_road(
    road: kernels.Road, x: Tensor, weight: Tensor, bias: Tensor, slope: float, upstream: Tensor
) -> list[Tensor]:
    tensors = [one.detach().clone().requires_grad_() for one in (x, weight, bias)]
    with kernels.using(road):
        y = kernels.instance_norm_leaky_relu(*tensors, 1e-5, slope)
        assert y is not None
        return [y, *torch.autograd.grad(y, tensors, upstream)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 6, 8, 10), (1, 5, 7, 3, 5), (3, 1, 9, 11), (2, 70, 3, 3), (1, 3, 41, 53)])
@pytest.mark.parametrize("road", ROADS)
def test_norm_and_activation_are_those_of_double_precision(road, shape, dtype) -> None:
    x = (normal(*shape, seed=1) * 3 + 1).to(dtype).contiguous(memory_format=LAYOUT[len(shape)])
    weight, bias = (normal(shape[1], seed=seed).float() for seed in (2, 3))
    upstream = normal(*shape, seed=4).to(dtype).contiguous(memory_format=LAYOUT[len(shape)])
    found = by_road(road, x, weight, bias, 0.01, upstream)
    for name, one, wanted in zip(
        ("y", "x", "weight", "bias"), found, reference(x, weight, bias, 0.01, upstream), strict=True
    ):
        assert off_by(one, wanted) < TOLERANCE[dtype], name
    assert [one.dtype for one in found] == [dtype, dtype, torch.float32, torch.float32]
    assert all(one.is_contiguous(memory_format=LAYOUT[len(shape)]) for one in found[:2])


@pytest.mark.parametrize("road", ROADS)
def test_a_mean_far_from_zero_costs_no_digits_of_the_deviation(road) -> None:
    x = (normal(1, 4, 12, 9, 11, seed=5) + 4000).float().contiguous(memory_format=torch.channels_last_3d)
    ones, zeros = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    upstream = normal(*x.shape, seed=6).float()
    found, wanted = (f(x, ones, zeros, 1.0, upstream) for f in (lambda *a: by_road(road, *a), reference))
    assert off_by(found[0], wanted[0]) < 1e-3  # E[x²] − E[x]² in single precision is off by all of it: 16e6 ± 1


@needs_triton
def test_many_stretches_are_merged_and_the_result_is_the_same_every_time(monkeypatch) -> None:
    from flarecps.kernels import norm_triton

    monkeypatch.setattr(norm_triton, "TILE", 32)
    monkeypatch.setattr(norm_triton, "MOST_STRETCHES", 5)
    x = normal(2, 6, 7, 5, 3, seed=7).float().contiguous(memory_format=torch.channels_last_3d)
    weight, bias = (normal(6, seed=seed).float() for seed in (8, 9))
    upstream = normal(*x.shape, seed=10).float()
    first, again = (by_road("triton", x, weight, bias, 0.01, upstream) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    for one, wanted in zip(first, reference(x, weight, bias, 0.01, upstream), strict=True):
        assert off_by(one, wanted) < 2e-6


def test_a_gpu_takes_triton_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    card, cpu = torch.device("cuda:0"), torch.device("cpu")
    monkeypatch.setattr(roads.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert [kernels.chosen_road(one, card) for one in ("auto", "plain", "composite", "triton")] == [
        "triton", "plain", "composite", "triton"
    ]  # fmt: skip
    assert kernels.chosen_road("auto", cpu) == "plain"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernels.chosen_road("auto", card) == kernels.chosen_road("triton", card) == "plain"
    assert "older than compute capability 8.0" in (kernels.no_triton(card) or "")
    monkeypatch.setattr(roads.importlib.util, "find_spec", lambda name: None)
    assert kernels.chosen_road("auto", card) == "plain"
    assert "pip install triton" in (kernels.no_triton(card) or "")


@needs_triton
@pytest.mark.parametrize("wrong", ["layout", "precision"])
def test_what_the_kernels_do_not_cover_is_left_to_the_plain_road(wrong) -> None:
    x = normal(2, 6, 7, 5, 3, seed=7)
    x = x.float() if wrong == "layout" else x.contiguous(memory_format=torch.channels_last_3d)
    with kernels.using("triton"):
        assert kernels.instance_norm_leaky_relu(x, x.new_ones(6), x.new_ones(6), 1e-5, 0.01) is None


# -- networks

SMALL = ((8, 12, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)))


def small_network(kind: type, dimensions: int = 3) -> nn.Module:
    features, strides, kernel_sizes = SMALL
    torch.manual_seed(0)
    cut = (
        [stride[-dimensions:] for stride in strides],
        [kernel[-dimensions:] for kernel in kernel_sizes],
    )
    return kind(1, 3, features, *cut).to(DEVICE)


class Layouts(TorchDispatchMode):
    """Notes every operation that is handed a feature map with channels innermost and gives one without."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [one for one in args if isinstance(one, Tensor)]
        for one in (*args[0], *given) if args and isinstance(args[0], list) else given:
            if not (isinstance(one, Tensor) and isinstance(result, Tensor)) or one.data_ptr() == result.data_ptr():
                continue  # a view
            if self._innermost(one) and self._contiguous(result):
                self.lost.append(f"{func} {tuple(result.shape)}")
        return result

    def of_ours(self) -> list[str]:
        """What is not a choice of the CPU's convolutions (1×1×1 ones come out contiguous there) or a small buffer."""
        theirs = ("aten.new_empty", "aten.convolution") if DEVICE.type == "cpu" else ("aten.new_empty",)
        return [one for one in self.lost if not one.startswith(theirs)]

    @staticmethod
    def _innermost(x: Tensor) -> bool:
        return x.ndim in LAYOUT and x.is_contiguous(memory_format=LAYOUT[x.ndim]) and not x.is_contiguous()

    @staticmethod
    def _contiguous(x: Tensor) -> bool:
        return x.ndim in LAYOUT and x.is_contiguous() and not x.is_contiguous(memory_format=LAYOUT[x.ndim])


@pytest.mark.parametrize("dimensions", [3, 2])
@pytest.mark.parametrize("kind", [PlainUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("road", ROADS)
def test_a_network_computes_the_same_by_every_road_and_never_leaves_channels_last(road, kind, dimensions) -> None:
    plain = small_network(kind, dimensions)
    fast = copy.deepcopy(plain).to(memory_format=LAYOUT[dimensions + 2])
    images = normal(2, 1, *(4, 12, 8)[:dimensions], seed=1).float()
    if DEVICE.type == "cpu":  # whose 1×1×1 convolutions lose the layout; cuDNN's do not
        for layer in fast.modules():
            if isinstance(layer, nn.Conv3d) and layer.weight[0, 0].numel() == 1:
                layer.register_forward_hook(lambda _, inputs, y: y.contiguous(memory_format=torch.channels_last_3d))
    layouts = Layouts()
    upstream = [normal(*one.shape, seed=2).float() for one in plain(images)]
    with kernels.using(road), layouts:
        found = fast(images.to(memory_format=LAYOUT[dimensions + 2]))
        torch.autograd.backward(found, [one.to(memory_format=LAYOUT[dimensions + 2]) for one in upstream])
    wanted = plain(images)
    torch.autograd.backward(wanted, upstream)
    assert layouts.of_ours() == []
    for one, other in zip(found, wanted, strict=True):
        assert off_by(one, other) < 1e-5
    for (name, one), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if not name.endswith("convolution.bias"):  # whose gradient before a norm is rounding alone
            assert off_by(one.grad, other.grad) < 1e-4, name
    assert list(fast.state_dict()) == list(plain.state_dict())


# -- losses


def loss_case(dimensions: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (7, 5, 6)[:dimensions]
    logits = 3 * normal(3, classes, *shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(classes - 1, 1), (3, *shape), generator=generator).to(DEVICE, torch.uint8)
    annotated = torch.ones(3, classes, dtype=torch.bool, device=DEVICE)
    if classes > 2:
        annotated[1, classes - 1] = annotated[2, 1] = False
        labels[2][labels[2] == 1] = 0
    trusted = torch.rand((3, *shape), generator=generator).to(DEVICE) > 0.3
    return logits, labels, annotated, trusted


@needs_triton
@pytest.mark.parametrize("masks", ["none", "annotated", "trusted", "broadcast", "both"])
@pytest.mark.parametrize(
    ("dimensions", "classes", "layout"),
    [(3, 14, "contiguous"), (3, 3, "channels last"), (2, 2, "contiguous"), (2, 37, "channels last"), (3, 5, "strided")],
)
def test_losses_and_gradients_are_those_of_double_precision(dimensions, classes, layout, masks) -> None:
    logits, labels, annotated, trusted = loss_case(dimensions, classes, seed=classes)
    given = {"annotated": annotated} if masks in ("annotated", "both") else {}
    if masks in ("trusted", "both"):
        given["trusted"] = trusted
    if masks == "broadcast":
        given["trusted"] = trusted.flatten(1)[:, :1].view(3, *(1,) * dimensions)
    if layout == "channels last":
        logits = logits.contiguous(memory_format=LAYOUT[logits.ndim])
    if layout == "strided":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    for loss in (DiceCrossEntropy(batch_dice=False, smooth=10.0), WeightedDiceCrossEntropy()):
        values, gradients = [], []
        for road, dtype in (("plain", torch.float64), ("triton", torch.float32)):
            own = logits.to(dtype).detach().clone().requires_grad_()
            with kernels.using(road):
                value = loss(own, labels, **given)
                value.backward()
            values.append(value.item())
            gradients.append(own.grad)
        assert values[1] == pytest.approx(values[0], rel=3e-6, abs=1e-6)
        assert off_by(gradients[1], gradients[0]) < 1e-5


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_half_precision_logits_are_single_precision_and_the_stretches_are_merged(dtype, monkeypatch) -> None:
    from flarecps.kernels import class_sums_triton

    monkeypatch.setattr(class_sums_triton, "TILE", 512)
    monkeypatch.setattr(class_sums_triton, "MOST_STRETCHES", 4)
    logits, labels, _, _ = loss_case(3, 14, seed=3)
    logits = logits.to(dtype)
    half, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    with kernels.using("triton"):
        fast = DiceCrossEntropy()(half, labels)
        fast.backward()
    slow = DiceCrossEntropy()(double, labels)
    slow.backward()
    assert fast.item() == pytest.approx(slow.item(), rel=3e-6)
    assert half.grad.dtype == dtype
    assert off_by(half.grad, double.grad) < TOLERANCE[dtype]


@needs_triton
def test_a_logit_that_is_no_number_makes_the_loss_none() -> None:
    logits, labels, _, _ = loss_case(3, 14, seed=3)
    logits[1, 3, 2, 2, 2] = torch.nan
    with kernels.using("triton"):
        assert DiceCrossEntropy()(logits.float(), labels).isnan()


# -- compiled


@pytest.mark.skipif(shutil.which("g++") is None and DEVICE.type == "cpu", reason="inductor needs a C++ compiler")
def test_compiled_blocks_have_one_kernel_between_convolutions_and_no_copy() -> None:
    from torch._inductor.utils import run_and_get_code

    torch.manual_seed(0)
    blocks = [ConvolutionBlock(width, 16, (3, 3, 3), (1, 1, 1)) for width in (4, 16)]
    network = nn.Sequential(*blocks).to(DEVICE, memory_format=torch.channels_last_3d)
    images = normal(2, 4, 6, 8, 10, seed=1).float().to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(network, dynamic=False)

    def step() -> Tensor:
        with kernels.using("triton"):  # compiled, it is the composite
            out = compiled(images)
            out.square().sum().backward()
            return out

    found, (forward, backward) = run_and_get_code(step)
    for code in (forward, backward):
        body = code[code.index("def call(") :]
        assert not re.search(r"\b(aten\.)?clone|\.copy_\(|\.contiguous\(", body)
        sizes = re.findall(r"assert_size_stride\(\w+, \((\d+), (\d+), \d+, \d+, \d+\), \(\d+, (\d+),", body)
        maps = [stride for _, channels, stride in sizes if int(channels) > 1]
        assert len(maps) >= 4
        assert set(maps) == {"1"}
    if DEVICE.type == "cpu":  # on a GPU reductions have kernels of their own
        assert [len(re.findall(r"^\s+cpp_fused\w+\(", code, re.M)) for code in (forward, backward)] == [2, 2]
    plain = network(images)
    assert off_by(found, plain) < 1e-5
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


# -- channels of zeros


@pytest.mark.parametrize("dimensions", [2, 3])
def test_padded_image_channels_change_neither_outputs_nor_gradients(dimensions) -> None:
    plain = small_network(PlainUNet, dimensions)
    padded = copy.deepcopy(plain)
    pad_image_channels([padded], to=4)
    images = normal(2, 1, *(4, 12, 8)[:dimensions], seed=1).float()
    found, wanted = padded(images), plain(images)
    for one, other in zip(found, wanted, strict=True):
        assert off_by(one, other) < 1e-5
    sum(one.square().sum() for one in found).backward()
    sum(one.square().sum() for one in wanted).backward()
    first, other = (next(network.parameters()) for network in (padded, plain))
    assert first.shape == other.shape
    assert off_by(first.grad, other.grad) < 1e-4
    assert [name for name, _ in padded.named_parameters()] == [name for name, _ in plain.named_parameters()]
