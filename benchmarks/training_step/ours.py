"""Our side of `compare.py`: the step of cross pseudo supervision, made by the trainer that `flarecps fit` uses.

    python ours.py exchange EXCHANGE.pt --patch 32 48 32
    python ours.py measure --patch 112 160 128 --batch 2 --device cuda --precision bf16
    python ours.py rate --device cuda --precision bf16 --patch 112 160 128

`exchange` writes weights, images and labels with the logits and loss computed from them. `measure` prints one line of
JSON: time and peak memory of steps. `rate` prints what the device reaches in a product of matrices and in the network's
largest convolution.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from flarecps import networks
from flarecps.interop.nnunet_weights import nnunet_parameter_names
from flarecps.losses import DeepSupervision, DiceCrossEntropy, LinearRamp, downsampled_labels
from flarecps.methods import CrossPseudoSupervision
from flarecps.planning.plan import Intensity, Plan, Topology, plan_to_json
from flarecps.training.module import SegmentationModule

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


def main() -> None:
    """Write an exchange, or print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["exchange", "measure", "rate"])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--spec", type=json.loads, default={}, help="the network: class and topology, as JSON")
    parser.add_argument("--patch", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, default=2, help="labelled patches, and as many unlabelled ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--fused", action="store_true", help="SGD in one kernel")
    parser.add_argument("--in-turn", action="store_true", help="one sibling's feature maps at a time")
    parser.add_argument("--fast", action="store_true", help="kernels auto, channels innermost and fused SGD, as in fit")
    parser.add_argument("--padded", action="store_true", help="four channels for the first convolution")
    options = parser.parse_args()
    if options.what == "exchange":
        torch.save(exchange(options.spec, options.patch, options.batch), options.file)
    else:
        print(json.dumps({"measure": measure, "rate": rate}[options.what](options)))


def exchange(spec: dict[str, Any], patch: list[int], batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Weights under nnU-Net's names, images, labels, and what our network and loss make of them."""
    generator = torch.Generator().manual_seed(1)
    arguments = spec["arguments"]
    network = networks.NETWORKS[spec["network"]](**arguments)
    networks.he_normal_(network, generator)
    with torch.no_grad():
        for parameter in network.parameters():  # norms and biases, too, so that none of them is left out unnoticed
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    network = network.to(dtype).train()
    images = torch.randn(batch, arguments["in_channels"], *patch, generator=generator, dtype=dtype)
    labels = torch.randint(0, arguments["classes"], (batch, *patch), generator=generator)
    with torch.no_grad():
        logits = network(images)
        targets = [downsampled_labels(labels, scale.shape[2:]) for scale in logits]
        loss = DeepSupervision(DiceCrossEntropy(batch_dice=True))(logits, targets)
    names = nnunet_parameter_names(network)
    return {
        "network": spec["network"],
        "arguments": arguments,
        "weights": {names[ours]: parameter.detach() for ours, parameter in network.named_parameters()},
        "images": images,
        "labels": [target[:, None] for target in targets],
        "batch_dice": True,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "logits": logits,
        "loss": loss,
    }


def measure(options: argparse.Namespace, *callbacks: Callback) -> dict[str, Any]:
    """Seconds of steps under Lightning's trainer, and peak memory; ``callbacks`` look on."""
    torch.manual_seed(0)
    arguments = options.spec["arguments"]
    kind = networks.NETWORKS[options.spec["network"]]
    module = SegmentationModule(
        plan_to_json(plan(arguments, options.patch, options.batch)),
        CrossPseudoSupervision(ramp=LinearRamp(final=0.5, length=0), siblings_in_turn=options.in_turn),
        network=kind,
        optimizer=partial(
            torch.optim.SGD,
            lr=0.01,
            momentum=0.99,
            nesterov=True,
            weight_decay=3e-5,
            fused=options.fused or (options.fast and options.device.startswith("cuda")) or None,
        ),
        compile=options.compile,
        channels_last=None if options.fast else options.channels_last,
        kernels="auto" if options.fast else "plain",
        pad_channels=4 if options.padded else 0,
    )
    size = (options.batch, 1, *options.patch)
    steps = options.warm_up + options.steps
    streams = {
        "labelled": {"image": torch.randn(size), "labels": torch.randint(0, arguments["classes"], size).byte()},
        "unlabelled": {"image": torch.randn(size)},
    }
    device = torch.device(options.device)
    streams = {name: {key: value.to(device) for key, value in part.items()} for name, part in streams.items()}
    stopwatch = Stopwatch(device, options.warm_up)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which devices there are, and what it advises
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on data loaders, of which there are none here
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1 if device.index is None else [device.index],
            precision=PRECISIONS[options.precision],  # type: ignore[arg-type]
            max_epochs=1,
            limit_train_batches=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            benchmark=True,
            callbacks=[stopwatch, *callbacks],
        )
        loaders = {name: DataLoader([part] * steps, batch_size=None) for name, part in streams.items()}
        trainer.fit(module, CombinedLoader(loaders, "min_size"))
    peak = (
        torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else highest_gb() - stopwatch.resident_gb
    )
    return {"side": "flarecps", "seconds": stopwatch.seconds, "peak_gb": peak, "torch": torch.__version__}


class Stopwatch(Callback):
    """Remembers the seconds of every step after the first ``warm_up`` ones."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.seconds: list[float] = []
        self.resident_gb = 0.0
        self.start = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident_gb = pages * resource.getpagesize() / 1e9

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.start = now(self.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self.warm_up:
            self.seconds.append(now(self.device) - self.start)


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of a square product of matrices, and of a 3×3(×3) convolution of the finest stage, forward."""
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    edge = 8192 if device.type == "cuda" else 1024
    torch.backends.cudnn.benchmark = True
    left, right = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    width, dimensions = options.spec["arguments"]["features"][0], len(options.patch)
    layer = (nn.Conv3d if dimensions == 3 else nn.Conv2d)(width, width, 3, padding=1, device=device, dtype=dtype)
    patch = torch.randn(options.batch, width, *options.patch, device=device, dtype=dtype)
    with torch.no_grad():
        matrices = best(lambda: left @ right, device)
        convolution = best(lambda: layer(patch), device)
    operations = 2 * patch.numel() * width * 3**dimensions
    return {
        "matrix_flops": 2 * edge**3 / matrices,
        "convolution_flops": operations / convolution,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }


def best(work: Any, device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest of ``repeats`` calls, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        start = now(device)
        work()
        seconds.append(now(device) - start)
    return min(seconds[2:])


def plan(arguments: dict[str, Any], patch: list[int], batch: int) -> Plan:
    """A plan of this network; spacing, intensities and names mean nothing here."""
    return Plan(
        dataset="noise",
        dimensions=len(patch),
        labels={"background": 0, **{f"organ {label}": label for label in range(1, arguments["classes"])}},
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=(1.0, 1.0, 1.0),
        axis_order=(0, 1, 2),
        median_shape_voxels=(256, 256, 256),
        patch_voxels=tuple(patch),
        topology=Topology(
            tuple(arguments["features"]),
            tuple(tuple(stride) for stride in arguments["strides"]),
            tuple(tuple(kernel) for kernel in arguments["kernels"]),
        ),
        global_batch={"labelled": batch, "unlabelled": batch},
        batch_dice=True,
        intensity=Intensity("ct", -100, 100, 0, 50, "global"),
        fingerprint={},
        memory_gb=0.0,
    )


def now(device: torch.device) -> float:
    """The time when everything asked for so far is done; on a CPU this process's own, whatever runs beside it."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def highest_gb() -> float:
    """The most main memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
