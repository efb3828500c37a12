"""How far the fast road's numbers are from the plain one's and from double precision, and the curves of 20 steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from bench import CLASSES, Bench

from flarecps.kernels import Road, chosen_road, using
from flarecps.losses import DeepSupervision, DiceCrossEntropy, LinearRamp, downsampled_labels
from flarecps.methods import CrossPseudoSupervision
from flarecps.networks import NETWORKS, he_normal_, set_memory_format

CURVE_STEPS = 20


def numbers(bench: Bench) -> dict[str, Any]:
    """How far logits, loss and gradients are from double precision, by road and precision; 20 steps' losses."""
    spec = bench.spec()
    patch, edge = ([16, 16, 16], 8) if bench.tiny else ([32, 64, 96], 24)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = _differentiated(spec, patch, "cpu", torch.float64, "plain", None)
    fast = _fast_road(bench)
    rows = {}
    for precision, dtype in (("32", None), ("bf16", torch.bfloat16)):
        for road in ("plain", fast):
            found = _differentiated(spec, patch, bench.device, torch.float32, road, dtype)
            rows[f"{road} {precision}"] = {name: _apart(found[name], exact[name]) for name in exact}
    agree = {
        "single precision": max(rows[f"{fast} 32"].values()) < 1e-3,
        "bf16 as near as the plain road": rows[f"{fast} bf16"]["gradients"] <= 1.5 * rows["plain bf16"]["gradients"],
    }
    curves = {
        "CPU, plain road, single precision": _curve(edge, "cpu", "plain", None),
        "device, plain road, bf16": _curve(edge, bench.device, "plain", torch.bfloat16),
        "device, fast road, bf16": _curve(edge, bench.device, fast, torch.bfloat16),
    }
    reference, *others = (torch.tensor(curve, dtype=torch.float64) for curve in curves.values())
    noise, ours_apart = (float((curve / reference - 1).abs().max()) for curve in others)
    agree["20 steps within three times the plain road's distance in bf16"] = ours_apart <= max(3 * noise, 0.01)
    return {
        "road": fast,
        "from_float64": rows,
        "curves": curves,
        "curve_noise": noise,
        "curve_apart": ours_apart,
        "checks": agree,
        "agree": all(agree.values()),
    }


def _fast_road(bench: Bench) -> Road:
    """What `fit` takes on this device; in a rehearsal the composite, which a CPU can compute."""
    return "composite" if bench.tiny else chosen_road("auto", torch.device(bench.device))


@contextmanager
def _computed(road: Road, autocast: torch.dtype | None) -> Iterator[None]:
    """By this road, forward and backward.

    In bfloat16 without oneDNN: its convolutions of small patches differ every time on some CPUs, or are nan (2.13).
    """
    with using(road), torch.backends.mkldnn.flags(enabled=autocast is None):
        yield


def _differentiated(
    spec: dict[str, Any], patch: list[int], device: str, dtype: torch.dtype, road: Road, autocast: torch.dtype | None
) -> dict[str, list[torch.Tensor]]:
    """Logits, loss and gradients of Dice + cross-entropy at all scales, two patches of noise, in float64."""
    generator = torch.Generator().manual_seed(1)
    network = he_normal_(NETWORKS[spec["network"]](**spec["arguments"]), generator)
    images = torch.randn(2, 1, *patch, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *patch), generator=generator).byte().to(device)
    network = network.to(device, dtype).train()
    set_memory_format([network], len(patch), channels_last=road != "plain")
    with _computed(road, autocast):
        with torch.autocast(device, autocast) if autocast else nullcontext():
            logits = network(images.to(device, dtype))
            targets = [downsampled_labels(labels, scale.shape[2:]) for scale in logits]
            loss = DeepSupervision(DiceCrossEntropy(batch_dice=True))(logits, targets)
        loss.backward()
    gradients = [one.grad for one in network.parameters() if one.grad is not None]
    found = {"logits": list(logits), "loss": [loss], "gradients": gradients}
    return {name: [one.detach().double().cpu() for one in tensors] for name, tensors in found.items()}


def _apart(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """‖one - other‖ / ‖other‖, all tensors together."""
    difference = sum(float((one - other).square().sum()) for one, other in zip(ones, others, strict=True))
    return math.sqrt(difference / sum(float(other.square().sum()) for other in others))


def _curve(edge: int, device: str, road: Road, autocast: torch.dtype | None) -> list[float]:
    """Losses of 20 CPS steps of two small siblings on the same four patches of noise, of this edge."""
    generator = torch.Generator().manual_seed(2)
    topology: Any = ([8, 16, 16], [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3)
    siblings = torch.nn.ModuleList(
        he_normal_(NETWORKS["PlainUNet"](1, 4, *topology), torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ).to(device)
    set_memory_format(siblings, 3, channels_last=road != "plain")
    images = torch.randn(2, 2, 1, edge, edge, edge, generator=generator)
    labels = (images[0] > 0.5).byte() + (images[0] > 1).byte()
    streams = {"labelled": {"image": images[0], "labels": labels}, "unlabelled": {"image": images[1]}}
    batch = {name: {key: one.to(device) for key, one in part.items()} for name, part in streams.items()}
    optimizer = torch.optim.SGD(siblings.parameters(), 0.01, momentum=0.9, nesterov=True)
    method, losses = CrossPseudoSupervision(ramp=LinearRamp(final=0.5, length=0)), []
    for _ in range(CURVE_STEPS):
        optimizer.zero_grad()
        with _computed(road, autocast):
            with torch.autocast(device, autocast) if autocast else nullcontext():
                loss = method.step(siblings, batch, epoch=0).total
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
