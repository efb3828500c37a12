"""Dice + cross-entropy alone: time and memory beside the same loss written with a one-hot target.

    python benchmarks/training_step/loss.py [OUT.json] --patch 64 64 64

Forward and backward of one loss at one scale, as in a step: logits of a network, labels of 8 bits. The other side is
the textbook form: softmax, a float one-hot of all classes, and torch's own cross-entropy. ``peak`` is what is held at
most during both passes beyond the logits and labels themselves, the gradient included; ``kept`` is what waits for the
backward pass, the time when a step holds most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from flarecps.losses import dice_cross_entropy

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


def one_hot_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The same number by way of a float one-hot target of all classes."""
    target = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1).float()
    p = logits.float().softmax(1)
    axes = (0, *range(2, logits.ndim))
    dice = (2 * (p * target).sum(axes) + 1e-5) / (p.sum(axes) + target.sum(axes) + 1e-5)
    return F.cross_entropy(logits.float(), labels.long()) - dice[1:].mean()


def main() -> None:
    """Measure both forms alternately and print, or write, the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--patch", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--precision", choices=list(DTYPES), default="32", help="of the logits")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(options.batch, options.classes, *options.patch, generator=generator)
    logits = logits.to(DTYPES[options.precision])
    labels = torch.randint(0, options.classes, (options.batch, *options.patch), generator=generator).byte()
    forms = {"flarecps": dice_cross_entropy, "one-hot": one_hot_loss}
    values = {name: float(loss(logits, labels)) for name, loss in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, loss in forms.items():
            seconds[name].append(timed(loss, logits, labels))
    unit = logits.numel() * 4
    found = {
        name: {
            "value": values[name],
            "seconds": statistics.median(seconds[name]),
            "peak_mb": peak_bytes(loss, logits, labels) / 1e6,
            "kept_mb": kept_bytes(loss, logits, labels) / 1e6,
        }
        for name, loss in forms.items()
    }
    result = {
        "logits": list(logits.shape),
        "precision": options.precision,
        "logits_in_single_precision_mb": unit / 1e6,
        "forms": found,
        "ratios": {key: found["flarecps"][key] / found["one-hot"][key] for key in ("seconds", "peak_mb", "kept_mb")},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timed(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    values = logits.detach().requires_grad_()
    start = time.perf_counter()
    loss(values, labels).backward()
    return time.perf_counter() - start


def peak_bytes(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> int:
    """The most bytes held at once in both passes, beyond what there was before, as torch's allocator tells them."""
    values = logits.detach().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(values, labels).backward()
    kineto = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]")
    held = highest = 0
    for _, size in events:
        held += size
        highest = max(highest, held)
    return highest


def kept_bytes(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> int:
    """Bytes that the backward pass waits for, logits and labels excepted: every storage counted once."""
    values = logits.detach().requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(values, labels)
    for given in (values, labels):
        kept.pop(given.untyped_storage().data_ptr(), None)
    del value
    return sum(kept.values())


if __name__ == "__main__":
    main()
